"""Read the descriptions of the model families that can be trained.

`families.json` beside this file describes the families of `models/`; `python -m models families`
writes it, and a test compares it with their code.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from core.blobs import is_remote, open_blobs
from core.settings import Settings, StatePaths

JsonObject = Mapping[str, Any]
Schema = dict[str, Any]  # a JSON Schema of an object


class SmallestBatch(BaseModel):
    """The least images per optimizer step for configurations that the JSON Schema `when` accepts.

    `pictures` is this number of images.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: int
    when: Schema


class FamilyDescription(BaseModel):
    """How a family can be trained.

    `config` and `training` are the JSON Schemas of these parts of a recipe, and `recipe` has the
    defaults. `data` is "photographs" for super-resolution, otherwise "pictures". `players` are the
    names of the separately optimized networks of an adversarial family, such as "generator".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    data: Literal["pictures", "photographs"]
    players: list[str]
    smallest_batches: list[SmallestBatch]
    config: Schema
    training: Schema
    recipe: dict[Literal["config", "training"], dict[str, Any]]


FAMILIES_KEY = "families.json"  # of the blob with descriptions of extra families, where hosts share the blob store

_DESCRIPTIONS = TypeAdapter(dict[str, FamilyDescription])


def load_families(settings: Settings) -> Mapping[str, FamilyDescription]:
    """Return the descriptions of all families, keyed by name.

    The setting `extra_models` names a folder with more families. They are included as soon as a
    training worker has written their descriptions.
    """
    shipped = _shipped_families()
    if settings.extra_models is None:
        return shipped
    try:
        if is_remote(settings.blobs):
            described = open_blobs(settings.blobs).get(FAMILIES_KEY)
        else:
            described = StatePaths(settings.state).families.read_bytes()
        return {**_DESCRIPTIONS.validate_json(described), **shipped}
    except FileNotFoundError:  # no training worker has written it yet
        return shipped


@lru_cache(maxsize=1)
def _shipped_families() -> dict[str, FamilyDescription]:
    return _DESCRIPTIONS.validate_json(Path(__file__).with_name("families.json").read_bytes())
