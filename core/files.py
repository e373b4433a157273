"""Write files durably, and lock files and work folders that several processes use."""

import fcntl
import glob
import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from uuid import uuid4

from core.blobs import remove_tree

LOCK = "lock"


def write_durably(path: Path, text: str, mode: int = 0o666) -> None:
    """Write `text` to a file atomically and flush it to the disk, by a hidden file beside it.

    `mode` are the file's permissions, from which the process's umask is subtracted.
    """
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(part, "x", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write `text` to a file atomically, without flushing it to the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk, so that new names in it are durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file `path` exclusively while the block runs; first wait until it is unlocked.

    The file is created if it is missing.
    """
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it when the process ends
        yield


def modified_at_ns(path: Path) -> int:
    """Return the modification time of a file or folder in nanoseconds; 0 if it does not exist."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def find(folder: Path, pattern: str) -> list[Path]:
    """Return the paths in `folder` that match a glob pattern, sorted; hidden ones match, too.

    Folders that are deleted meanwhile are skipped. `Path.glob` may raise FileNotFoundError then.
    """
    return sorted(folder / path for path in glob.iglob(pattern, root_dir=folder, include_hidden=True))  # noqa: PTH207


def in_use(lock: Path) -> bool:
    """Return whether a live process has locked a file; False if there is no such file."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def unfinished_file(folder: Path) -> Iterator[io.BufferedRandom]:
    """Yield a new file in `folder`, for writing and reading; then remove it unless it was moved.

    The file is locked while the block runs. The cleanup removes only files without a lock, whose
    processes have died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield cast("io.BufferedRandom", file)
        finally:
            Path(file.name).unlink(missing_ok=True)


@dataclass
class WorkFolder:
    """A folder for the work of one block; it is removed after the block unless `kept` is set."""

    path: Path
    kept: bool = False

    def hand_over(self) -> None:
        """Keep the folder after the block, because another process will use and remove it."""
        self.kept = True


@contextmanager
def work_folder(path: Path) -> Iterator[WorkFolder]:
    """Create the folder `path`, lock it while the block runs, and then remove it.

    The lock shows other processes that the folder is in use. If the block sets `kept` of the
    yielded record, the folder stays. Raises OSError if the folder exists or cannot be created.
    """
    folder = WorkFolder(path)
    path.mkdir(parents=True)  # one that exists belongs to somebody else, and is not removed
    try:
        with locked(path / LOCK):
            yield folder
    finally:
        if not folder.kept:
            remove_tree(path)
