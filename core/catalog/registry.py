"""The models that can be asked, known by their cards alone: read from safetensors headers, without torch."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs

from core.catalog.card_check import CardError, check_card
from core.catalog.numbers import whole_numbers
from core.catalog.operations import BY_METHOD, Operation
from core.catalog.validation import InvalidOptionsError, option_errors
from core.catalog.versions import FILE, Versions, header

log = logging.getLogger(__name__)

_RESCAN_S = 1.0
_LOOK_S = 0.1


@dataclass(frozen=True)
class ModelOperation:
    """One operation of one model: what it takes, with the options' defaults and their check."""

    operation: Operation
    schema: Mapping[str, Any]
    defaults: Mapping[str, Any]
    check: Any

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options in force: `given` over the defaults, whole numbers as integers. Raises FaultsError."""
        rules = self.schema.get("properties", {})
        wrong = option_errors(given, rules, self.check, "options", "option")
        if wrong:
            raise InvalidOptionsError(wrong)
        return {**self.defaults, **whole_numbers(self.schema, given)}


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model: its card, and where its weights lie."""

    name: str
    version: str
    card: Mapping[str, Any]
    path: Path
    choices: Mapping[str, ModelOperation] = field(default_factory=dict)

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def image(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's images."""
        image = self.card["image"]
        return image["channels"], image["height"], image["width"]

    @property
    def margin(self) -> int:
        """Pixels on every side of an image that are context alone, of a model that works tile by tile."""
        return int(self.card["operations"]["upscale"]["margin"])


def read_card(path: Path) -> dict[str, Any]:
    """The card in a safetensors file's header. Raises ValueError if the file is damaged, has none or a huge one."""
    try:
        return check_card(header(path)[0]["__metadata__"]["card"])
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} carries no card") from error


def _choice(method: str, stated: Mapping[str, Any]) -> ModelOperation:
    schema = stated["options"]
    defaults = {name: rule["default"] for name, rule in schema.get("properties", {}).items() if "default" in rule}
    return ModelOperation(BY_METHOD[method], schema, defaults, jsonschema_rs.validator_for(schema))


def read_entry(path: Path) -> ModelVersion:
    """The model in a NAME/VERSION/model.safetensors file; its folders name it. Raises ValueError."""
    version, name = path.parent.name, path.parent.parent.name
    try:
        card = read_card(path)
        stated = {method: stated for method, stated in card["operations"].items() if method in BY_METHOD}
        entry = ModelVersion(
            name, version, card, path, {method: _choice(method, one) for method, one in stated.items()}
        )
        channels, height, width = entry.image
        tiled = any(choice.operation.tiled for choice in entry.choices.values())
        margin = entry.margin if tiled else 0
    except CardError as error:
        raise ValueError(f"the card of {name}@{version} cannot be used: {error}") from error
    except (LookupError, TypeError, AttributeError, jsonschema_rs.ValidationError) as error:
        raise ValueError(f"the card of {name}@{version} lacks something: {error!r}") from error
    if channels not in ({3} if tiled else {1, 3}) or min(height, width) <= 2 * margin or margin < 0:
        raise ValueError(f"the card of {name}@{version} describes no image: {channels}×{height}×{width}")
    return entry


class Registry:
    """All models in a folder of checkpoints and, if given, in that of versions made here.

    A name alone means the version that was set to serve, or else the newest.
    """

    def __init__(self, folder: Path, made: Path | None = None) -> None:
        """Read every card below the folders."""
        self._folder = folder
        self._made = Versions(made) if made is not None else None
        self._entries: dict[str, dict[str, ModelVersion]] = {}
        self._pointers: dict[str, dict[str, str]] = {}
        self._stamp = self._looked = 0.0
        self._scanned = 0.0
        self.scan()

    def scan(self) -> None:
        """Read the folders anew; cards already known are kept, and a damaged file is left out."""
        found: dict[str, dict[str, ModelVersion]] = {}
        folders = [self._folder, *([self._made.folder] if self._made else [])]
        if self._made:
            self._stamp, self._pointers = self._made.stamp(), self._made.pointers()
        for path in (path for folder in folders for path in sorted(folder.glob(f"*/*/{FILE}"))):
            version, name = path.parent.name, path.parent.parent.name
            if version in found.get(name, {}):
                continue  # what ships goes before what was made here
            known = self._entries.get(name, {}).get(version)
            try:
                entry = known or read_entry(path)
            except (OSError, ValueError) as error:
                log.warning("checkpoint left out", extra={"file": str(path), "reason": str(error)})
                continue
            found.setdefault(name, {})[version] = entry
        self._entries = found
        self._scanned = self._looked = time.monotonic()

    def refresh(self, *, run_inline: bool = False) -> None:
        """See that another version serves, wherever it was switched; looks ten times a second at most."""
        now = time.monotonic()
        if self._made is None or (now - self._looked < _LOOK_S and not run_inline):
            return
        self._looked = now
        if self._made.stamp() != self._stamp:
            self.scan()

    def find(self, ref: str) -> ModelVersion | None:
        """The model `name` or `name@version`; None if there is none."""
        self.refresh()
        entry = self._look(ref)
        if entry is None and time.monotonic() - self._scanned > _RESCAN_S:
            self.scan()
            entry = self._look(ref)
        return entry

    def _look(self, ref: str) -> ModelVersion | None:
        name, _, version = ref.partition("@")
        versions = self._entries.get(name)
        if not versions:
            return None
        return versions.get(version) if version else versions[self._serves(name, versions)]

    def _serves(self, name: str, versions: Mapping[str, ModelVersion]) -> str:
        chosen = self._pointers.get(name, {}).get("serves", "")
        return chosen if chosen in versions else max(versions, key=_order)

    def serving(self) -> list[ModelVersion]:
        """The version of each model that answers to the bare name, by name."""
        self.refresh()
        return [versions[self._serves(name, versions)] for name, versions in sorted(self._entries.items())]

    def candidates(self) -> list[ModelVersion]:
        """Versions that are to serve next: a worker loads them meanwhile."""
        self.refresh()
        found = [self._entries.get(name, {}).get(said.get("next", "")) for name, said in self._pointers.items()]
        return [entry for entry in found if entry is not None]

    def versions(self, name: str) -> list[str]:
        """All versions of a model, oldest first."""
        return sorted(self._entries.get(name, {}), key=_order)


def _order(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)
