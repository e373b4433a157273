"""The datasets that can be trained on: a folder each, with memory-mapped arrays and what they are, made once and whole.

STATE/datasets/NAME/ holds `dataset.json` and `train.npy`, `validation.npy`, `test.npy`: uint8 (N, C, H, W), 0 … 255.
`labels.npy`, where labels were sent, is in the order of the three. A folder whose name begins with a dot is at work.
"""

import fcntl
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from core.blobs import remove_tree
from core.datasets.readers import SPLITS
from core.imaging.pictures import grid

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_ABOUT = "dataset.json"
_USES = "uses"
_AT_WORK = re.compile(r"\.[0-9a-f]{32}")
_PREVIEW_VALUES = 4 << 20


class NameTakenError(ValueError):
    """Another dataset has the name."""


class InUseError(ValueError):
    """Trainings use the dataset; `users` are their ids."""

    def __init__(self, users: list[str]) -> None:
        super().__init__(f"in use by {', '.join(users)}")
        self.users = users


class Datasets:
    """All datasets in a folder, for any number of processes on it."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, and clear what processes that died had at work there."""
        self.folder = folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear()

    def clear(self, older_than_s: float = 0.0) -> None:
        """Remove what processes that died had at work here, where nothing was written for so many seconds.

        A folder without a lock is one whose removal was cut short.
        """
        for folder in self.folder.glob(".*"):
            with ExitStack() as stack:
                if self._abandoned(folder, stack) and _age_s(folder) >= older_than_s:
                    remove_tree(folder)

    def _abandoned(self, folder: Path, stack: ExitStack) -> bool:
        """Whether no live process works in a folder; its lock, if it has one, is held until the stack is left."""
        with self._alone():  # or a new one might be seen between its making and its locking
            try:
                lock = stack.enter_context((folder / "lock").open("rb"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held as long as its process lives
            except FileNotFoundError:
                return _AT_WORK.fullmatch(folder.name) is not None
            except OSError:
                return False
            return True

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A folder to make a dataset in; whatever is left there at the end goes."""
        folder = self.folder / f".{uuid4().hex}"
        with ExitStack() as stack:
            stack.callback(remove_tree, folder)
            with self._alone():
                folder.mkdir()
                lock = stack.enter_context((folder / "lock").open("wb"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time adds, deletes or marks."""
        with (self.folder / ".lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def add(self, made: Path, name: str, said: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Put a finished folder under a name; answers the dataset and whether it is new.

        The same arrays under their own name again are the dataset that is there. Raises TakenError for others.
        """
        with self._alone():
            there = self.get(name)
            if there is not None:
                if there["sha256"] != said["sha256"]:
                    raise NameTakenError(name)
                return there, False
            about = {"name": name, "created_at": datetime.now(UTC).isoformat(timespec="milliseconds"), **said}
            with (made / _ABOUT).open("w") as file:
                file.write(json.dumps(about, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            (made / _USES).mkdir()
            made.rename(self.folder / name)
            _sync(self.folder)
            return about, True

    def get(self, name: str) -> dict[str, Any] | None:
        """What `dataset.json` says; None where there is no such dataset."""
        if not NAME.fullmatch(name):
            return None
        try:
            about: dict[str, Any] = json.loads((self.folder / name / _ABOUT).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about

    def path(self, name: str) -> Path:
        """The folder of a dataset that is there."""
        return self.folder / name

    def listing(
        self, after: str = "", limit: int = 20, visible: Callable[[str], bool] = lambda _name: True
    ) -> list[dict[str, Any]]:
        """Datasets by name, those after `after` whose name is `visible`."""
        found = (path.parent.name for path in self.folder.glob(f"[!.]*/{_ABOUT}"))
        names = sorted(name for name in found if name > after and visible(name))
        return [about for name in names[:limit] if (about := self.get(name)) is not None]

    def delete(self, name: str) -> bool:
        """Delete a dataset; False where there is none. Raises InUseError."""
        with self._alone():
            if self.get(name) is None:
                return False
            users = self.users(name)
            if users:
                raise InUseError(users)
            gone = self.folder / f".{uuid4().hex}"
            (self.folder / name / "lock").touch()  # without a holder: cleared at the next start if this is cut short
            (self.folder / name).rename(gone)
        remove_tree(gone)
        return True

    # --- uses ---

    def use(self, name: str, user: str) -> bool:
        """Keep a dataset from being deleted until `release`; False where there is none. Twice is as good as once."""
        with self._alone():
            if self.get(name) is None:
                return False
            (self.folder / name / _USES / user).touch()
            return True

    def release(self, name: str, user: str) -> None:
        """Take back a use; one that is not there is no error."""
        (self.folder / name / _USES / user).unlink(missing_ok=True)

    def users(self, name: str) -> list[str]:
        """Who uses a dataset."""
        folder = self.folder / name / _USES
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    # --- looking ---

    def preview(self, name: str, split: str, count: int) -> bytes | None:
        """PNG of up to `count` pictures, evenly from the whole split; None where the dataset or split has none."""
        try:
            pictures = np.load(self.folder / name / f"{split}.npy", mmap_mode="r")
        except FileNotFoundError:
            return None
        if not len(pictures):
            return None
        most = max(1, _PREVIEW_VALUES // math.prod(pictures.shape[1:]))
        places = np.linspace(0, len(pictures) - 1, min(count, len(pictures), most)).astype(int)
        return grid(np.asarray(pictures[places]), 1 if pictures.shape[2] == 1 else None)


def _age_s(folder: Path) -> float:
    """Seconds since something was last written in a folder; for ever where it vanished."""
    try:
        return time.time() - max(path.lstat().st_mtime for path in (folder, *folder.glob("*"), *folder.glob("made/*")))
    except OSError:
        return math.inf


def _sync(folder: Path) -> None:
    """Have the folder's list of names on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


__all__ = ["NAME", "SPLITS", "Datasets", "InUseError", "NameTakenError"]
