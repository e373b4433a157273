"""Folders that one process works in for a while: gone at its end, and known for left over if it was killed."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.blobs import remove_tree

LOCK = "lock"


class WorkFolder:
    """A folder that is removed at the end unless it is handed over to somebody else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = False

    def hand_over(self) -> None:
        """Leave the folder where it is: another process goes on with it, and removes it."""
        self._kept = True

    @property
    def kept(self) -> bool:
        """Whether it was handed over."""
        return self._kept


@contextmanager
def work_folder(path: Path) -> Iterator[WorkFolder]:
    """Make a folder and hold the lock that says somebody works in it. Raises OSError."""
    folder = WorkFolder(path)
    try:
        path.mkdir(parents=True)
        with (path / LOCK).open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process, however that ends
            yield folder
    finally:
        if not folder.kept:
            remove_tree(path)


def in_use(lock: Path) -> bool:
    """Return whether a live process holds a lock file. One that is not there is held by nobody."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
