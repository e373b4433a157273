"""Scratch folders of one process: removed at the end, and known as abandoned if it was killed."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.blobs import remove_tree

LOCK = "lock"


class WorkFolder:
    """A folder that is removed at the end unless it is handed over."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = False

    def hand_over(self) -> None:
        """Keep the folder: another process continues with it and removes it."""
        self._kept = True

    @property
    def kept(self) -> bool:
        """Whether the folder was handed over."""
        return self._kept


@contextmanager
def work_folder(path: Path) -> Iterator[WorkFolder]:
    """Create a folder and hold its lock, which marks it as in use. Raises OSError."""
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
    """Return whether a live process holds a lock file; False if there is no such file."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
