"""Model families that can be trained, by the descriptions that `python -m models families` writes.

`families.json` beside this file describes the families of `models/`; a test compares it with their
code.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from core.paths import StatePaths
from core.settings import Settings

Schema = dict[str, Any]  # a JSON Schema of an object


class SmallestBatch(BaseModel):
    """The fewest images of an optimizer step, for configurations that the JSON Schema `when`
    accepts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pictures: int
    when: Schema


class FamilyDescription(BaseModel):
    """How a family can be trained: JSON Schemas of its configuration and training, and its default
    recipe.

    `data`: "photographs" for super-resolution, otherwise "pictures". `players`: the modules of an
    adversarial family.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str
    data: Literal["pictures", "photographs"]
    players: list[str]
    smallest_batches: list[SmallestBatch]
    config: Schema
    training: Schema
    recipe: dict[Literal["config", "training"], dict[str, Any]]


_DESCRIPTIONS = TypeAdapter(dict[str, FamilyDescription])


def load_families(settings: Settings) -> Mapping[str, FamilyDescription]:
    """Return the description of each family by name, with those in the folder of extra models."""
    shipped = _shipped_families()
    if settings.extra_models is None:
        return shipped
    try:
        return {**_DESCRIPTIONS.validate_json(StatePaths(settings.state).families.read_bytes()), **shipped}
    except FileNotFoundError:  # no training worker has written it yet
        return shipped


@lru_cache(maxsize=1)
def _shipped_families() -> dict[str, FamilyDescription]:
    return _DESCRIPTIONS.validate_json(Path(__file__).with_name("families.json").read_bytes())
