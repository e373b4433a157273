"""Versions made here, and which version of each model serves: STATE/checkpoints, which any number of processes share.

NAME/VERSION/model.safetensors is a version, never changed once it is there. `serving.json` says for a name which
version `serves`, and which is `next`: workers load that one before it serves.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

FILE = "model.safetensors"
POINTERS = "serving.json"


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
        return path


def loaded(workers: Mapping[str, Mapping[str, Any]], ref: str) -> bool:
    """Whether every worker that serves has loaded `name@version`, or has said why it cannot."""
    ready = [said for said in workers.values() if said["state"] == "ready"]
    return all(ref in said["capacity"] or ref in said.get("refused", {}) for said in ready)


def refused(workers: Mapping[str, Mapping[str, Any]], ref: str) -> str:
    """Why a worker could not load `name@version`; nothing where none said so."""
    return next((said["refused"][ref] for said in workers.values() if ref in said.get("refused", {})), "")
