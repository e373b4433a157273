"""Small file systems for tests: a tmpfs that can be filled to the last byte and emptied again."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FILLER = "filler"


class SmallDisk:
    """A file system of its own; writing to it when it is full raises ENOSPC."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Fill the disk to the last byte, including space that has become free since the last
        call.
        """
        with (self.path / FILLER).open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                try:
                    while file.write(b"\0" * size):
                        pass
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Free the space that `fill` has used."""
        (self.path / FILLER).unlink(missing_ok=True)

    def free(self) -> int:
        """Return the number of free bytes."""
        disk = os.statvfs(self.path)
        return disk.f_bavail * disk.f_frsize


@contextlib.contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a tmpfs of this size at a folder; skip the test if this user may not mount."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk that fills needs the right to mount a tmpfs: {done.stderr.decode().strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
