"""Versions made here, and which version of each model serves: STATE/checkpoints, which any number of processes share.

NAME/VERSION/model.safetensors is a version, never changed once it is there. `serving.json` says for a name which
version `serves`, and which is `next`: workers load that one before it serves.
"""

import base64
import contextlib
import fcntl
import json
import math
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

FILE = "model.safetensors"
POINTERS = "serving.json"
LARGEST_HEADER = 16 << 20
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

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, str]]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pointers = self.pointers()
            yield pointers
            part = self.folder / f".{POINTERS}.{uuid4().hex}"
            with part.open("w") as file:
                file.write(json.dumps(pointers, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.folder / POINTERS)

    # --- new ones ---

    def reserve(self, name: str, known: list[str]) -> str:
        """A number above all versions that are `known` or on their way here, for one caller alone."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        while True:
            there = [path.name for path in (self.folder / name).iterdir()]
            number = max((int(version) for version in (*known, *there) if version.isdecimal()), default=0) + 1
            with contextlib.suppress(FileExistsError):
                (self.folder / name / str(number)).mkdir()
                return str(number)

    def path(self, name: str, version: str) -> Path:
        """Where a version lies, or will."""
        return self.folder / name / version / FILE

    def publish(self, made: Path, name: str, version: str) -> Path:
        """Move a file to where it is a version, whole or not at all. Raises FileExistsError: versions do not change."""
        path = self.path(name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}")
        shutil.move(made, part)
        try:
            part.chmod(0o444)
            os.link(part, path)
        finally:
            part.unlink()
        with self._changing():
            pass  # a new stamp: registries look again
        return path


def loaded(workers: Mapping[str, Mapping[str, Any]], ref: str) -> bool:
    """Whether every worker that serves has loaded `name@version`, or has said why it cannot."""
    ready = [said for said in workers.values() if said["state"] == "ready"]
    return all(ref in said["capacity"] or ref in said.get("refused", {}) for said in ready)


def refused(workers: Mapping[str, Mapping[str, Any]], ref: str) -> str:
    """Why a worker could not load `name@version`; nothing where none said so."""
    return next((said["refused"][ref] for said in workers.values() if ref in said.get("refused", {})), "")


class ForeignError(ValueError):
    """A file that is no version of the model that it is sent for."""


def header(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file's header says, and its length in bytes. Raises ForeignError, OSError."""
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start.ljust(8, b"\xff"))
        if len(start) < 8 or length > path.stat().st_size - 8:
            raise ForeignError("it is no safetensors file, or a truncated one: its header is longer than the file")
        if length > LARGEST_HEADER:
            raise ForeignError(f"its header has {length} bytes; at most {LARGEST_HEADER} are read")
        raw = file.read(length)
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ForeignError(f"its header cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ForeignError("its header cannot be read: it is no object")
    return found, length


def inspect(path: Path, name: str) -> dict[str, Any]:
    """The card of a safetensors file whose header is sound and which says that it is a version of `name`.

    Nothing is unpickled and no tensor is made; whether the weights fit the card's family is for `models check` to
    say. Raises ForeignError.
    """
    tensors, length = header(path)
    try:
        metadata = tensors.pop("__metadata__", {})
        end = _end(tensors)
        card = json.loads(metadata["card"])
    except KeyError as error:
        raise ForeignError("it carries no card: export it by GET /v1/models/{name}/versions/{n}/file") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ForeignError(f"its header cannot be read: {error}") from error
    there = path.stat().st_size - 8 - length
    if end != there:
        raise ForeignError(f"it is damaged: its header promises {end} bytes of weights, it has {there}")
    missing = [field for field in CARD if field not in card] if isinstance(card, dict) else list(CARD)
    if missing:
        raise ForeignError(f"its card lacks {', '.join(missing)}")
    if card["name"] != name:
        raise ForeignError(
            f"its card is that of {str(card['name'])[:120]!r}; send it to /v1/models/{card['name']}/versions"
        )
    return dict(card)


def _end(tensors: Mapping[str, Any]) -> int:
    """Where the tensors end which a header lists, one after another without a gap. Raises ValueError."""
    end = 0
    for name, said in sorted(tensors.items(), key=lambda one: one[1]["data_offsets"]):
        first, last = said["data_offsets"]
        bits = BITS.get(said["dtype"])
        if bits is None:
            raise ValueError(f"{name[:60]} is of the unknown type {said['dtype']!r}")
        if any(not isinstance(edge, int) or edge < 0 for edge in said["shape"]):
            raise ValueError(f"{name[:60]} has the shape {said['shape']}")
        if first != end or 8 * (last - first) != math.prod(said["shape"]) * bits:
            raise ValueError(f"{name[:60]} does not lie where it should")
        end = last
    return end


def preview(path: Path) -> bytes | None:
    """The PNG in a version's header of what the model makes; None where it has none."""
    found = header(path)[0].get("__metadata__", {}).get("preview")
    return base64.b64decode(found) if found else None
