"""Find models and their versions, and read the cards in their checkpoint files."""

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jsonschema_rs

from core.catalog.cards import Card, CardError, CodeFormat, ImageShape, OperationSpec, parse_card
from core.catalog.checkpoint_file import read_card
from core.catalog.operations import BY_METHOD, Operation
from core.catalog.shared_versions import SharedFile, SharedVersions
from core.catalog.validation import InvalidOptionsError, option_errors, whole_numbers
from core.catalog.versions import FILE, Versions
from core.files import find, modified_at_ns

log = logging.getLogger(__name__)

_RESCAN_S = 1.0  # shortest time between two scans for an unknown name

_CHECK_S = 0.1  # shortest time between two checks for another active version


@dataclass(frozen=True)
class ModelOperation:
    """An operation of a model: the JSON Schema of its options, their defaults and a validator.

    The `validator` is that of jsonschema_rs for `schema`. `codes` is the format of the latent codes
    that the operation reads, if it reads any.
    """

    operation: Operation
    schema: Mapping[str, Any]
    defaults: Mapping[str, Any]
    validator: Any
    codes: CodeFormat | None = None

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a request: the defaults updated with `given`.

        Where the schema requires an integer, 4.0 is returned as 4. Raises InvalidOptionsError if
        the schema rejects an option.
        """
        if not given and self._valid_without:
            return {**self.defaults}
        errors = option_errors(given, self.schema.get("properties", {}), self.validator, "options", "option")
        if errors:
            raise InvalidOptionsError(errors)
        return {**self.defaults, **whole_numbers(self.schema, given)}

    @cached_property
    def _valid_without(self) -> bool:
        """Whether the schema accepts a request without options."""
        return not option_errors({}, {}, self.validator, "options", "option")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model: its model card, and the path of its checkpoint file.

    `shared` is set for a version in the blob store: its file is not at `path`; call `file` to
    download it.
    """

    name: str
    version: str
    card: Card
    path: Path
    operations: Mapping[str, ModelOperation] = field(default_factory=dict)
    shared: SharedFile | None = None
    fetch: Callable[[SharedFile], Path] | None = field(default=None, repr=False, compare=False)

    def file(self) -> Path:
        """Return the path of the checkpoint file on this host.

        Blocks while a version in the blob store is downloaded. Raises OSError if that fails.
        """
        return self.fetch(self.shared) if self.fetch is not None and self.shared is not None else self.path

    @property
    def size_bytes(self) -> int:
        """Size of the checkpoint file. Raises FileNotFoundError if it was deleted from a folder."""
        return self.shared.size_bytes if self.shared is not None else self.path.stat().st_size

    @property
    def content_id(self) -> str:
        """A text that changes if the version's file is replaced by another file."""
        return self.shared.sha256 if self.shared is not None else str(modified_at_ns(self.path))

    @cached_property
    def ref(self) -> str:
        """The version's reference: `name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def image(self) -> ImageShape:
        """Shape of the model's images."""
        return self.card.image


def _model_operation(method: str, spec: OperationSpec) -> ModelOperation:
    schema = dict(spec.options)
    if not schema:
        raise CardError(f"the operation {method!r} has no options")
    if BY_METHOD[method].codes and spec.codes is None:
        raise CardError(f"the operation {method!r} does not say what its codes are")
    defaults = {name: rule["default"] for name, rule in schema.get("properties", {}).items() if "default" in rule}
    return ModelOperation(BY_METHOD[method], schema, defaults, jsonschema_rs.validator_for(schema), spec.codes)


def read_version(path: Path) -> ModelVersion:
    """Read the model card of a file NAME/VERSION/model.safetensors; return the version.

    The names of its folders are the model's name and the version. Raises ValueError if the file is
    damaged or its card describes no model that this service can run.
    """
    version, name = path.parent.name, path.parent.parent.name
    return _model_version(name, version, path, lambda: read_card(path))


def _model_version(name: str, version: str, path: Path, read: Callable[[], Card]) -> ModelVersion:
    """Return a version, whose model card is the result of `read()`.

    Raises ValueError if `read` raises it, or if the card describes no model that this service can
    run.
    """
    try:
        card = read()
        known = {method: spec for method, spec in card.operations.items() if method in BY_METHOD}
        operations = {method: _model_operation(method, spec) for method, spec in known.items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a schema may be anything
        raise ValueError(f"the checkpoint file of {name}@{version} cannot be used: {error}") from error
    channels, height, width = card.image
    tiled = any(operation.operation.tiled for operation in operations.values())
    spec = card.operations["upscale"] if tiled else OperationSpec({})
    margin = spec.margin_for(dict.fromkeys(spec.option_margins, 1))
    if channels not in ({3} if tiled else {1, 3}) or min(height, width) <= 2 * margin:
        raise ValueError(f"the card of {name}@{version} describes no image: {channels}×{height}×{width}")
    return ModelVersion(name, version, card, path, operations)


class Registry:
    """The versions of all models: the shipped versions in `folder`, and those made here in `made`.

    A model's name without a version means the active version: the version that was activated, or
    else the newest.
    """

    def __init__(self, folder: Path, made: Path | Versions | None = None) -> None:
        """Read the model cards of all versions in `folder` and, if `made` is not None, in `made`.

        If the versions are in the job database, a thread watches it for changes.
        """
        self._folder = folder
        self._made = Versions(made) if isinstance(made, Path) else made
        self._entries: dict[str, dict[str, ModelVersion]] = {}
        self._pointers: dict[str, dict[str, str]] = {}
        self._stamp = self._checked_at = 0.0
        self.scans = 0
        """Number of scans of the folders so far: the versions are the same while it stays."""
        self._scanned_at = 0.0
        self._scanning = threading.Lock()
        self.scan()
        self._closed = threading.Event()
        if isinstance(self._made, SharedVersions):
            arguments = weakref.ref(self), self._closed
            threading.Thread(target=_watch, args=arguments, name="registry", daemon=True).start()

    def close(self) -> None:
        """Stop reading changes from the job database."""
        self._closed.set()

    def scan(self) -> None:
        """Read the folders of versions again; read the model cards of new files only.

        Files that are damaged or cannot be read are skipped, with a warning in the log.
        """
        with self._scanning:
            self._scan()

    def _scan(self) -> None:
        """Read the folders of versions again, without reading the cards of known versions."""
        versions: dict[str, dict[str, ModelVersion]] = {}
        stamp, pointers = (self._made.stamp(), self._made.pointers()) if self._made else (0, {})
        for name, version, path, read in self._sources():
            if version in versions.get(name, {}):
                continue  # shipped versions go first
            known = self._entries.get(name, {}).get(version)
            try:
                entry = known or read()
            except (OSError, ValueError) as error:
                log.warning("checkpoint file skipped", extra={"file": str(path), "reason": str(error)})
                continue
            versions.setdefault(name, {})[version] = entry
        self._stamp, self._pointers, self._entries = stamp, pointers, versions
        self.scans += 1
        self._scanned_at = self._checked_at = time.monotonic()

    def _sources(self) -> Iterator[tuple[str, str, Path, Callable[[], ModelVersion]]]:
        """Yield (name, version, path, function that reads the card) of each version, shipped ones
        first.
        """
        shared = self._made if isinstance(self._made, SharedVersions) else None
        folders = [self._folder, *([self._made.folder] if self._made and not shared else [])]
        for path in (path for folder in folders for path in find(folder, f"*/*/{FILE}")):
            yield path.parent.parent.name, path.parent.name, path, partial(read_version, path)
        for file in shared.published() if shared else ():
            path = shared.path(file.name, file.version) if shared else Path()
            yield file.name, file.version, path, partial(self._shared_version, file, path)

    def _shared_version(self, file: SharedFile, path: Path) -> ModelVersion:
        """Return the version of a file in the blob store, whose card is in the job database."""
        entry = _model_version(file.name, file.version, path, lambda: parse_card(file.card))
        fetch = self._made.fetch if isinstance(self._made, SharedVersions) else None
        return replace(entry, shared=file, fetch=fetch)

    def refresh(self, *, force: bool = False) -> None:
        """Read the folders again if a version was published, activated or made a candidate.

        This is checked at most ten times a second, or at once with `force`.
        """
        now = time.monotonic()
        if self._made is None or (now - self._checked_at < _CHECK_S and not force):
            return
        if isinstance(self._made, SharedVersions) and not force:
            return  # a thread does so, because a request must not wait for the database
        self._checked_at = now
        if self._made.stamp() != self._stamp:
            self.scan()

    def find(self, ref: str) -> ModelVersion | None:
        """Return the version of a reference: `name@version`, or `name` for the active version.

        Returns None if the version does not exist. The folders are read again first if a version
        was published or activated since they were last read. They are also read again before None
        is returned, unless that was done in the last second.
        """
        self.refresh()
        entry = self._lookup(ref)
        rescans = not isinstance(self._made, SharedVersions)
        if entry is None and rescans and time.monotonic() - self._scanned_at > _RESCAN_S:
            self.scan()
            entry = self._lookup(ref)
        return entry

    def _lookup(self, ref: str) -> ModelVersion | None:
        """Return the version of a reference from the entries in memory; None if it is not there."""
        name, _, version = ref.partition("@")
        versions = self._entries.get(name)
        if not versions:
            return None
        return versions.get(version) if version else versions[self._active_version(name, versions)]

    def _active_version(self, name: str, versions: Mapping[str, ModelVersion]) -> str:
        """Return the number of a model's active version: the activated one, or else the newest."""
        active = self._pointers.get(name, {}).get("serves", "")
        return active if active in versions else max(versions, key=_version_order)

    def active(self) -> list[ModelVersion]:
        """Return the active version of each model, sorted by name."""
        self.refresh()
        return [versions[self._active_version(name, versions)] for name, versions in sorted(self._entries.items())]

    def candidates(self) -> list[ModelVersion]:
        """Return the candidates: versions that workers load before they become active."""
        self.refresh()
        staged = [self._entries.get(name, {}).get(pointer.get("next", "")) for name, pointer in self._pointers.items()]
        return [entry for entry in staged if entry is not None]

    def is_current(self, entry: ModelVersion) -> bool:
        """Return whether a version is its model's active version or candidate.

        The folders are not read again. Returns False if the version does not exist any more.
        """
        versions = self._entries.get(entry.name, {})
        if entry.version not in versions:
            return False
        candidate = self._pointers.get(entry.name, {}).get("next")
        return entry.version in (self._active_version(entry.name, versions), candidate)

    def is_made(self, entry: ModelVersion) -> bool:
        """Return whether this service made a version; the others are files of the operator."""
        return entry.shared is not None or (self._made is not None and entry.path.is_relative_to(self._made.folder))

    def names(self) -> list[str]:
        """Return the names of all models; the folders are not read again."""
        return list(self._entries)

    def refs(self) -> list[str]:
        """Return all versions as `name@version`, sorted; the folders are not read again."""
        return sorted(entry.ref for versions in self._entries.values() for entry in versions.values())

    def versions(self, name: str) -> list[str]:
        """Return all version numbers of a model, oldest first; an empty list if it is unknown."""
        return sorted(self._entries.get(name, {}), key=_version_order)


def _watch(reference: "weakref.ref[Registry]", closed: threading.Event) -> None:
    """Read changes of versions from the job database until the registry is closed or deleted."""
    while not closed.wait(_CHECK_S) and (registry := reference()) is not None:
        try:
            registry.refresh(force=True)
        except Exception as error:  # noqa: BLE001 - the database may be away for a while
            log.warning("versions not read", extra={"reason": str(error)[:300]})
            closed.wait(_RESCAN_S)
        del registry


def _version_order(version: str) -> tuple[int, str]:
    """Return the sort key of a version: its number, and 0 for versions that are not numbers."""
    return (int(version) if version.isdecimal() else 0, version)
