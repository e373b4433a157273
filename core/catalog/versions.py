"""Versions made here, and which version of each model serves: STATE/checkpoints, which any number of processes share.

NAME/VERSION/model.safetensors is a version, never changed once it is there. `serving.json` says for a name which
version `serves`, and which is `next`: workers load that one before it serves.
"""

import contextlib
import fcntl
import json
import math
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from core.catalog.card_check import CardError, check_card, check_preview

FILE = "model.safetensors"
POINTERS = "serving.json"
HIDDEN, DELETED = ".hidden", "deleted"
"""What the file of a version is named while it is being deleted, and what its folder holds afterwards."""

MAX_HEADER_BYTES = 1 << 20
MAX_DIMENSIONS, INTEGER_LIMIT = 8, 1 << 48
"""Of a tensor that a header lists: how many axes it has at most, and what its sizes and offsets lie below."""
_PARTIAL = re.compile(r"\.[0-9a-f]{32}")
CARD = (
    "format",
    "name",
    "version",
    "family",
    "summary",
    "created_at",
    "config",
    "image",
    "operations",
    "figures",
    "provenance",
    "license",
)
"""What the card of a version must have; `models.kit.card` says the same, and a test that it does."""

BITS = {f"{kind}{bits}": bits for kind in "IU" for bits in (8, 16, 32, 64)} | {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "BOOL": 8,
}


class ServingError(ValueError):
    """A version that serves, or is about to, cannot be deleted."""


class Versions:
    """The folder of versions made here."""

    def __init__(self, folder: Path) -> None:
        """Open the folder; it is made when something comes into it."""
        self.folder = folder

    # --- which one serves ---

    def stamp(self) -> int:
        """Another number after each change of what serves."""
        try:
            return (self.folder / POINTERS).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def pointers(self) -> dict[str, dict[str, str]]:
        """By name: the version that `serves`, and the one that is `next`, where either is settled."""
        try:
            found: dict[str, dict[str, str]] = json.loads((self.folder / POINTERS).read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def announce(self, name: str, version: str) -> None:
        """Have workers load a version, as the next to serve."""
        with self._changing() as pointers:
            pointers.setdefault(name, {})["next"] = version

    def withdraw(self, name: str, version: str) -> None:
        """Take an announcement back, if it is still that one."""
        with self._changing() as pointers:
            if pointers.get(name, {}).get("next") == version:
                del pointers[name]["next"]

    def serve(self, name: str, version: str) -> None:
        """From now on the name alone means this version."""
        with self._changing() as pointers:
            found = pointers.setdefault(name, {})
            found["serves"] = version
            if found.get("next") == version:
                del found["next"]

    def settle(self, name: str, version: str) -> None:
        """Have this version serve if none is named yet: a newer one must not serve merely by being there."""
        with self._changing() as pointers:
            pointers.setdefault(name, {}).setdefault("serves", version)

    # --- removal ---

    def hide(self, name: str, versions: Sequence[str], *, model: bool = False) -> dict[str, str]:
        """Take versions out of sight, so that no new request finds them; return what `serving.json` said of the name.

        `model` takes the name out of it as well. Raises ServingError for a version that serves or is about to.
        """
        with self._changing() as pointers:
            said = dict(pointers.get(name, {}))
            if said.get("next") in versions or (said.get("serves") in versions and not model):
                raise ServingError(f"{name}@{said.get('next') or said['serves']}")
            if model:
                pointers.pop(name, None)
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).rename(self.path(name, version).with_name(HIDDEN))
        return said

    def unhide(self, name: str, versions: Sequence[str], said: Mapping[str, str]) -> None:
        """Undo `hide`."""
        with self._changing() as pointers:
            if said:
                pointers.setdefault(name, dict(said))
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).with_name(HIDDEN).rename(self.path(name, version))

    def discard(self, name: str, versions: Sequence[str]) -> None:
        """Delete hidden versions. Their folders stay: were a number used twice, old weights could pass for new."""
        for version in versions:
            folder = self.path(name, version).parent
            if folder.is_dir():
                (folder / DELETED).touch()
                (folder / HIDDEN).unlink(missing_ok=True)

    def discard_interrupted(self, older_than_s: float) -> None:
        """Delete what a process that died had hidden."""
        for file in self.folder.glob(f"*/*/{HIDDEN}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_ctime > older_than_s:
                    self.discard(file.parent.parent.name, [file.parent.name])

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, str]]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pointers = self.pointers()
            yield pointers
            part = self.folder / f".{POINTERS}.{uuid4().hex}"
            try:
                with part.open("w") as file:
                    file.write(json.dumps(pointers, indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(self.folder / POINTERS)
            finally:
                part.unlink(missing_ok=True)

    # --- new ones ---

    def reserve(self, name: str, known: list[str]) -> str:
        """A number above all versions that are `known` or on their way here, for one caller alone."""
        while True:
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # a sweep removes a folder that is empty
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                there = [path.name for path in (self.folder / name).iterdir()]
                number = max((int(version) for version in (*known, *there) if version.isdecimal()), default=0) + 1
                (self.folder / name / str(number)).mkdir()
                return str(number)

    def leftovers(self, awaited: Callable[[str], bool]) -> list[Path]:
        """What killed processes have left here: files half-way to being a version, pointers half-written, numbers that
        were reserved in vain.

        `awaited` says of a model whether something may be about to make a version of it.
        """
        found = list(self.folder.glob(f".{POINTERS}.*"))
        for model in self.folder.glob("[!.]*"):
            if not awaited(model.name) and model.is_dir():
                found += _without_versions(model)
        return found

    @staticmethod
    def remove(leftover: Path) -> None:
        """Remove a leftover: what has become a version meanwhile, or holds one, stays."""
        with contextlib.suppress(OSError):
            if leftover.is_dir():
                for path in leftover.iterdir():
                    if path.is_dir() or _PARTIAL.fullmatch(path.name):
                        Versions.remove(path)
                leftover.rmdir()
            else:
                leftover.unlink()

    def path(self, name: str, version: str) -> Path:
        """Where a version lies, or will."""
        return self.folder / name / version / FILE

    def publish(self, made: Path, name: str, version: str) -> Path:
        """Move a file to where it is a version, whole or not at all. Raises FileExistsError: versions do not change."""
        path = self.path(name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}")
        try:
            shutil.move(made, part)
            part.chmod(0o444)
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        with self._changing():
            pass  # a new stamp: registries look again
        return path


def _without_versions(folder: Path) -> list[Path]:
    """The folder itself where it holds no file of a version; or else what in it holds none, or is half of one."""
    inside = list(folder.glob("*"))
    if all(_PARTIAL.fullmatch(path.name) for path in folder.rglob("*") if not path.is_dir()):
        return [folder]
    folders = [left for path in inside if path.is_dir() for left in _without_versions(path)]
    return folders + [path for path in inside if not path.is_dir() and _PARTIAL.fullmatch(path.name)]


def loaded(workers: Mapping[str, Mapping[str, Any]], ref: str) -> bool:
    """Whether some worker serves, and each that does has loaded `name@version` or has said why it cannot."""
    ready = [said for said in workers.values() if said["state"] == "ready"]
    return bool(ready) and all(ref in said["capacity"] or ref in said.get("refused", {}) for said in ready)


def awaited(workers: Mapping[str, Mapping[str, Any]], ref: str) -> str:
    """What is missing until `name@version` can serve, in words."""
    if not workers:
        return "no inference worker is running"
    ready = [said for said in workers.values() if said["state"] == "ready"]
    if not ready:
        return "no inference worker is ready: those there are load their models, or stop"
    missing = sum(ref not in said["capacity"] for said in ready)
    return f"{missing} of {len(ready)} inference workers have not loaded {ref} yet"


def refused(workers: Mapping[str, Mapping[str, Any]], ref: str) -> str:
    """Why a worker could not load `name@version`; nothing where none said so."""
    return next((said["refused"][ref] for said in workers.values() if ref in said.get("refused", {})), "")


class ImportRejectedError(ValueError):
    """A file that is no version of the model that it is sent for."""


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file's header says, and its length in bytes. Raises ForeignError, OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start.ljust(8, b"\xff"))
        if len(start) < 8 or length > path.stat().st_size - 8:
            raise ImportRejectedError(
                "it is no safetensors file, or a truncated one: its header is longer than the file"
            )
        if length > MAX_HEADER_BYTES:
            raise ImportRejectedError(f"its header has {length} bytes; at most {MAX_HEADER_BYTES} are read")
        raw = file.read(length)
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImportRejectedError(f"its header cannot be read: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise ImportRejectedError("its header cannot be read: it is no object")
    return found, length


def inspect(path: Path, name: str) -> dict[str, Any]:
    """The card of a safetensors file whose header is sound and which says that it is a version of `name`.

    Nothing is unpickled and no tensor is made; whether the weights fit the card's family is for `models check` to
    say. Raises ForeignError.
    """
    tensors, length = header(path)
    tensors.pop("__metadata__", None)
    try:
        end = _end(tensors)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ImportRejectedError(f"its header cannot be read: {str(error)[:200]}") from error
    there = path.stat().st_size - 8 - length
    if end != there:
        raise ImportRejectedError(f"it is damaged: its header promises {end} bytes of weights, it has {there}")
    try:
        with safe_open(path, "numpy") as file:  # the rules of the format, as its own library has them
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ImportRejectedError(f"it is damaged: {str(error)[:200]}") from error
    if "card" not in metadata:
        raise ImportRejectedError("it carries no card: export it by GET /v1/models/{name}/versions/{n}/file")
    try:
        card = check_card(metadata["card"])
        if "preview" in metadata:
            check_preview(metadata["preview"])
    except CardError as error:
        raise ImportRejectedError(str(error)) from error
    missing = [field for field in CARD if field not in card]
    if missing:
        raise ImportRejectedError(f"its card lacks {', '.join(missing)}")
    if card["name"] != name:
        raise ImportRejectedError(
            f"its card is that of {card['name']!r}; send it to /v1/models/{card['name']}/versions"
        )
    return card


def _end(tensors: Mapping[str, Any]) -> int:
    """Where the tensors end which a header lists, one after another without a gap. Raises ValueError and the like."""
    for name, said in tensors.items():
        sizes, offsets = said["shape"], said["data_offsets"]
        if len(sizes) > MAX_DIMENSIONS or len(offsets) != 2:
            raise ValueError(f"{name[:60]!r} has {len(sizes)} dimensions; at most {MAX_DIMENSIONS} may be")
        # before any arithmetic: a product of many or of long integers takes minutes
        if not all(type(size) is int and 0 <= size < INTEGER_LIMIT for size in (*sizes, *offsets)):
            raise ValueError(f"{name[:60]!r} has a shape or offsets that are no integers in [0, 2^48)")
    end = 0
    for name, said in sorted(tensors.items(), key=lambda one: one[1]["data_offsets"]):
        first, last = said["data_offsets"]
        bits = BITS.get(said["dtype"])
        if bits is None:
            raise ValueError(f"{name[:60]!r} is of the unknown type {str(said['dtype'])[:40]!r}")
        if first != end or 8 * (last - first) != math.prod(said["shape"]) * bits:
            raise ValueError(f"{name[:60]!r} does not lie where it should")
        end = last
    return end


def preview(path: Path) -> bytes | None:
    """The PNG in a version's header of what the model makes; None where it has none, or none that can be shown."""
    metadata = header(path)[0].get("__metadata__", {})
    if "preview" not in metadata:
        return None
    try:
        return check_preview(metadata["preview"])
    except CardError:
        return None
