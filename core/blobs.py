"""Store blobs (bytes under a key) in a local folder or, by `core.s3_blobs`, in an S3 bucket."""

import contextlib
import errno
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

RETRIES = 4  # of a request to an object store
PARTIAL = ".part"  # suffix of files that are being written


class BlobsUrlError(ValueError):
    """Raised for a URL that names no blob store; the message says what would work."""


class Blobs(ABC):
    """A flat store of immutable byte strings under slash-separated keys.

    Its methods raise OSError for any error of the store, and FileNotFoundError for a missing blob.
    """

    read_bytes: int
    """How many bytes a caller should read with one `get`."""
    upload_s: float
    """How old a blob may be, in seconds, when it appears: the longest time that an upload takes."""

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key` atomically."""

    @abstractmethod
    def take(self, key: str, file: Path, media: str = "") -> None:
        """Store the content of a local file under `key` atomically.

        The file is moved into a local store; it is copied into a remote store and stays. `media` is
        the media type with which a remote store sends it by `signed_url`.
        """

    @abstractmethod
    def check_room(self, size_bytes: int) -> None:
        """Raise OSError (ENOSPC) if a local store has less than `size_bytes` bytes of free space.

        A remote store does not report its free space and is not checked.
        """

    @abstractmethod
    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes `begin` … `end` − 1 of the blob `key`, or fewer at its end.

        `begin` None means from the start, `end` None to the end.
        """

    @abstractmethod
    def copy_to(self, key: str, file: Path) -> None:
        """Copy a blob to a local file, in bounded memory."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove the blob with the key `prefix` and all blobs below it, if there are any."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether the store has a blob with this key."""

    @abstractmethod
    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of the entries directly below `prefix`, keyed by name.

        An entry is a blob or a folder; the size of a folder is the sum over all blobs below it. The
        prefix "" means the whole store.
        """

    @abstractmethod
    def names(self, prefix: str) -> dict[str, float]:
        """Return the modification times of the entries directly below `prefix`, keyed by name.

        An entry is a blob or a folder; times are Unix times. In a local store, the time of a folder
        is when an entry was last added to it or removed from it; in a remote store, it is the time
        of the newest blob below it.
        """

    @abstractmethod
    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all blobs at or below `prefix`, sorted; "" means the whole store.

        Partial files are left out.
        """

    @abstractmethod
    def sweep(self, prefix: str, older_than_s: float, *, partial: bool = False) -> int:
        """Remove blobs below `prefix` written over `older_than_s` seconds ago; return their number.

        With `partial`, remove only partial files: a process that was killed while it wrote a blob
        leaves one in a local store. No blob younger than `upload_s` is removed, because a store may
        date a blob by the start of its upload, which may take that long.
        """

    @abstractmethod
    def signed_url(self, key: str, expires_s: float) -> str | None:
        """Return a URL by which anybody can read a blob for `expires_s` seconds.

        The blob need not exist. None for a local store, which has no URLs.
        """


def open_blobs(url: str, retries: int = RETRIES) -> Blobs:
    """Open the store at a URL: `file:///FOLDER`, which is created if it is missing, or
    `s3://BUCKET/PREFIX`.

    Nothing is connected yet. Requests to an object store are repeated at most `retries` times.
    Raises BlobsUrlError for another URL, and ImportError if a package for it is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path:
        return FolderBlobs(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        from core.s3_blobs import S3Blobs  # noqa: PLC0415 - its package is an extra

        return S3Blobs(url, retries)
    raise BlobsUrlError(
        "it begins with neither file:/// nor s3://; for example file:///srv/blobs or s3://BUCKET/PREFIX"
    )


def is_remote(url: str) -> bool:
    """Return whether the blob store at a URL is one that several hosts can use, without opening it."""
    return urlsplit(url).scheme != "file"


def check_key(key: str) -> str:
    """Return a key unchanged. Raises ValueError if it is empty, begins with a slash, or has ".."."""
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError(f"not a key: {key!r}")
    return key


class FolderBlobs(Blobs):
    """Blobs in a local folder, one file each."""

    read_bytes = 64 << 10
    upload_s = 0.0

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is created if it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        self._root = str(folder)

    def path(self, key: str) -> Path:
        """Return the path of a blob, whether it exists or not."""
        return Path(f"{self._root}/{check_key(key)}")

    def put(self, key: str, data: bytes) -> None:
        """Write the data to a temporary file beside the blob's, then rename it."""
        with self._partial_file(key) as partial:
            partial.write_bytes(data)

    def take(self, key: str, file: Path, media: str = "") -> None:  # noqa: ARG002 - of the interface
        """Move the file `file` to the path of the blob `key`."""
        with self._partial_file(key) as partial:
            shutil.move(file, partial)

    @contextlib.contextmanager
    def _partial_file(self, key: str) -> Iterator[Path]:
        """Yield the path of a file for the block to write, which then becomes the blob `key`.

        If the block raises, the file is removed.
        """
        path = self.path(key)
        partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def check_room(self, size_bytes: int) -> None:
        """Compare `size_bytes` with the free space of the folder's disk."""
        if shutil.disk_usage(self._root).free < size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Read the bytes `begin` … `end` − 1 of the blob's file."""
        with self.path(key).open("rb") as file:
            start = file.seek(begin or 0)
            return file.read(-1 if end is None else max(0, end - start))

    def copy_to(self, key: str, file: Path) -> None:
        """Copy the blob's file to the path `file`."""
        shutil.copyfile(self.path(key), file)

    def delete(self, prefix: str) -> None:
        """Remove the file or folder at the path of `prefix`; errors are ignored."""
        remove_tree(self.path(prefix))

    def exists(self, key: str) -> bool:
        """Return whether the blob's file exists."""
        return self.path(key).exists()

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of files and folders in the folder `prefix`, with unfinished files."""
        sizes: dict[str, int] = {}
        root = self._below(prefix)
        for path, status in walk(root):
            name = path[len(root) + 1 :].partition("/")[0]
            sizes[name] = sizes.get(name, 0) + status.st_size
        return sizes

    def names(self, prefix: str) -> dict[str, float]:
        """Return the modification time of each file and subfolder in the folder `prefix`."""
        modified = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self._below(prefix)) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    modified[entry.name] = entry.stat(follow_symlinks=False).st_mtime
        return modified

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all files at or below `prefix`, without unfinished files."""
        root = self._below(prefix)
        paths = [root] if Path(root).is_file() else [path for path, _ in walk(root)]
        return sorted(path[len(self._root) + 1 :] for path in paths if not path.endswith(PARTIAL))

    def sweep(self, prefix: str, older_than_s: float, *, partial: bool = False) -> int:
        """Remove files that were written long ago by the clock of this host; return their number.

        `older_than_s` is the least age in seconds. Only files below `prefix` are removed.
        """
        removed = 0
        for path, status in walk(self._below(prefix)):
            if (path.endswith(PARTIAL) or not partial) and time.time() - status.st_mtime > older_than_s:
                with contextlib.suppress(FileNotFoundError):
                    Path(path).unlink()
                    removed += 1
        return removed

    def signed_url(self, key: str, expires_s: float) -> None:
        """Return None: files of a local folder have no URL."""

    def _below(self, prefix: str) -> str:
        """Return the path of the folder that `prefix` names; "" is the folder of the store."""
        return f"{self._root}/{check_key(prefix)}" if prefix else self._root


def size_of(path: Path) -> int:
    """Return the size in bytes of all files in a folder and its subfolders; 0 if it is missing."""
    return sum(status.st_size for _, status in walk(path))


def walk(root: Path | str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, `os.lstat` of it) for each file in a folder and its subfolders.

    Files and folders that are deleted meanwhile are skipped.
    """
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                yield f"{folder}/{name}", os.lstat(f"{folder}/{name}")


def remove_tree(path: Path) -> bool:
    """Remove a file, or a folder with its content; return whether nothing of it is left.

    Errors are ignored; files that cannot be removed stay.
    """
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return not os.path.lexists(path)
