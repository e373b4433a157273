"""Keep local copies of blobs that never change, in a folder of bounded size on each host."""

import contextlib
import errno
import hashlib
import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

from core.blobs import Blobs
from core.files import locked
from core.storage import ObjectStoreError

_IN_USE_S = 60.0  # a copy that was requested so recently is not removed: its reader may not have opened it yet
_LOCK_DIGITS = 3  # blobs whose digests begin with the same digits have one lock file, so that these files stay few


class BlobCache:
    """A folder with copies of blobs, named by their SHA-256, which the processes of a host share.

    If the copies exceed the limit in bytes, the least recently requested ones are removed. A
    process that has already opened a removed copy can still read it.
    """

    def __init__(self, blobs: Blobs, folder: Path, max_bytes: int) -> None:
        """Use a folder, which the first copy creates, for copies of at most `max_bytes` bytes."""
        self._blobs = blobs
        self._folder = folder
        self._max_bytes = max_bytes
        self._verified: dict[str, int] = {}  # inode of each copy whose digest this process has compared

    def path(self, sha256: str) -> Path:
        """Return the path of the copy of a blob with this digest, whether it exists or not."""
        return self._folder / sha256

    def fetch(self, key: str, sha256: str) -> Path:
        """Return the path of a local copy of the blob `key`; download the blob if there is none.

        Blocks meanwhile. Raises FileNotFoundError if there is no such blob, and OSError if the
        blob's SHA-256 is not `sha256` or if it cannot be downloaded.
        """
        path = self.path(sha256)
        self._folder.mkdir(parents=True, exist_ok=True)
        with locked(self._folder / f".{sha256[:_LOCK_DIGITS]}.lock"):
            if self._is_intact(path, sha256):
                with contextlib.suppress(OSError):
                    os.utime(path)
                return path
            part = self._folder / f".{uuid4().hex}.part"
            try:
                self._blobs.copy_to(key, part)
                if digest_of(part) != sha256:
                    raise ObjectStoreError(errno.EIO, "a blob does not have the digest that was recorded for it")
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            self._verified[sha256] = path.stat().st_ino
        self._make_room()
        return path

    def add(self, file: Path, sha256: str) -> Path:
        """Move a local file whose content was just uploaded into the cache; return its new path."""
        path = self.path(sha256)
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{uuid4().hex}.part"
        shutil.move(file, part)
        part.replace(path)
        self._make_room()
        return path

    def link(self, key: str, sha256: str, target: Path) -> None:
        """Create the hard link `target` to a local copy of the blob `key`, downloaded if needed.

        Blocks meanwhile. The data stays on the disk as long as `target` exists, even if the cache
        removes its copy.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(self.fetch(key, sha256), target)

    def _is_intact(self, path: Path, sha256: str) -> bool:
        """Return whether there is a copy with this SHA-256; a copy with another content is deleted.

        A process computes the digest of a copy once, not at each call.
        """
        try:
            inode = path.stat().st_ino
            if self._verified.get(sha256) != inode and digest_of(path) != sha256:
                path.unlink()
                return False
        except FileNotFoundError:
            return False
        self._verified[sha256] = inode
        return True

    def _make_room(self) -> None:
        """Remove the least recently requested copies until the folder is within its limit.

        Partial downloads of processes that have died are removed, too.
        """
        copies = []
        now = time.time()
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".part" and now - status.st_mtime > self._blobs.upload_s + _IN_USE_S:
                    path.unlink()
                elif not path.name.startswith("."):
                    copies.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in copies) - self._max_bytes
        for requested_at, size, path in sorted(copies):
            if excess <= 0 or now - requested_at < _IN_USE_S:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                excess -= size


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
