"""Versions made by this service, and which of them is active, in a folder that all processes share.

NAME/VERSION/model.safetensors is a version, never changed once it is there. `serving.json` names
for each model the active version (`serves`) and the candidate (`next`), which workers load before
it becomes active.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

FILE = "model.safetensors"
POINTERS = "serving.json"
# Names of a version's file while it is deleted, and of the empty file that marks a deleted version.
HIDDEN, DELETED = ".hidden", "deleted"

_PARTIAL_FILE = re.compile(r"\.[0-9a-f]{32}")


class VersionActiveError(ValueError):
    """The active version, or the candidate, cannot be deleted."""


# See docs/decisions.md#a-file-names-the-active-version
class Versions:
    """The folder of versions made by this service."""

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created by the first write."""
        self.folder = folder

    # --- the active version ---

    def stamp(self) -> int:
        """Return a number that changes with each change of pointers and each new version."""
        try:
            return (self.folder / POINTERS).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def pointers(self) -> dict[str, dict[str, str]]:
        """Return by model name the active version (`serves`) and the candidate (`next`), if they
        are set.
        """
        try:
            pointers: dict[str, dict[str, str]] = json.loads((self.folder / POINTERS).read_bytes())
        except FileNotFoundError:
            return {}
        return pointers

    def stage(self, name: str, version: str) -> None:
        """Make a version the candidate, which workers load."""
        with self._update() as pointers:
            pointers.setdefault(name, {})["next"] = version

    def unstage(self, name: str, version: str) -> None:
        """Remove the candidate, if it is still this version."""
        with self._update() as pointers:
            if pointers.get(name, {}).get("next") == version:
                del pointers[name]["next"]

    def activate(self, name: str, version: str) -> None:
        """Make a version active."""
        with self._update() as pointers:
            pointer = pointers.setdefault(name, {})
            pointer["serves"] = version
            if pointer.get("next") == version:
                del pointer["next"]

    def pin(self, name: str, version: str) -> None:
        """Make a version active if no active version is set: otherwise the newest one is."""
        with self._update() as pointers:
            pointers.setdefault(name, {}).setdefault("serves", version)

    # --- removal ---

    def hide(self, name: str, versions: Sequence[str], *, model: bool = False) -> dict[str, str]:
        """Hide versions from new requests before they are deleted; return the model's pointers as
        they were.

        `model` removes the pointers, too. Raises VersionActiveError for the active version and the
        candidate.
        """
        with self._update() as pointers:
            pointer = dict(pointers.get(name, {}))
            if pointer.get("next") in versions or (pointer.get("serves") in versions and not model):
                raise VersionActiveError(f"{name}@{pointer.get('next') or pointer['serves']}")
            if model:
                pointers.pop(name, None)
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).rename(self.path(name, version).with_name(HIDDEN))
        return pointer

    def unhide(self, name: str, versions: Sequence[str], pointer: Mapping[str, str]) -> None:
        """Undo `hide`, whose result is `pointer`."""
        with self._update() as pointers:
            if pointer:
                pointers.setdefault(name, dict(pointer))
            for version in versions:
                with contextlib.suppress(FileNotFoundError):
                    self.path(name, version).with_name(HIDDEN).rename(self.path(name, version))

    def discard(self, name: str, versions: Sequence[str]) -> None:
        """Delete hidden versions. Their folders stay, so that no number is used twice for other
        weights.
        """
        for version in versions:
            folder = self.path(name, version).parent
            if folder.is_dir():
                (folder / DELETED).touch()
                (folder / HIDDEN).unlink(missing_ok=True)

    def discard_interrupted(self, older_than_s: float) -> None:
        """Delete versions that a dead process had hidden."""
        for file in self.folder.glob(f"*/*/{HIDDEN}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_ctime > older_than_s:
                    self.discard(file.parent.parent.name, [file.parent.name])

    @contextlib.contextmanager
    def _update(self) -> Iterator[dict[str, dict[str, str]]]:
        """Yield the pointers under a lock, and write them back."""
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

    # --- new versions ---

    def reserve(self, name: str, known: list[str]) -> str:
        """Return an unused version number, above all `known` and reserved ones, and reserve it."""
        while True:
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # a sweep may remove an empty folder
                (self.folder / name).mkdir(parents=True, exist_ok=True)
                existing = [path.name for path in (self.folder / name).iterdir()]
                number = max((int(version) for version in (*known, *existing) if version.isdecimal()), default=0) + 1
                (self.folder / name / str(number)).mkdir()
                return str(number)

    def leftovers(self, in_progress: Callable[[str], bool]) -> list[Path]:
        """Return what killed processes have left: partial files, and folders of reserved numbers
        without a version.

        `in_progress` returns whether a version of a model may be about to be made.
        """
        leftovers = list(self.folder.glob(f".{POINTERS}.*"))
        for model in self.folder.glob("[!.]*"):
            if not in_progress(model.name) and model.is_dir():
                leftovers += _without_versions(model)
        return leftovers

    @staticmethod
    def remove(leftover: Path) -> None:
        """Remove a leftover, unless it is or holds a version by now."""
        with contextlib.suppress(OSError):
            if leftover.is_dir():
                for path in leftover.iterdir():
                    if path.is_dir() or _PARTIAL_FILE.fullmatch(path.name):
                        Versions.remove(path)
                leftover.rmdir()
            else:
                leftover.unlink()

    def path(self, name: str, version: str) -> Path:
        """Return the path of a version's file."""
        return self.folder / name / version / FILE

    def publish(self, made: Path, name: str, version: str) -> Path:
        """Move a file to a version's path atomically. Raises FileExistsError: versions never
        change.
        """
        path = self.path(name, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{uuid4().hex}")
        try:
            shutil.move(made, part)
            part.chmod(0o444)
            os.link(part, path)
        finally:
            part.unlink(missing_ok=True)
        with self._update():
            pass  # changes the stamp, so that registries scan again
        return path


def _without_versions(folder: Path) -> list[Path]:
    """Return the folder if it holds no version's file; otherwise the parts of it that hold none."""
    entries = list(folder.glob("*"))
    if all(_PARTIAL_FILE.fullmatch(path.name) for path in folder.rglob("*") if not path.is_dir()):
        return [folder]
    folders = [left for path in entries if path.is_dir() for left in _without_versions(path)]
    return folders + [path for path in entries if not path.is_dir() and _PARTIAL_FILE.fullmatch(path.name)]
