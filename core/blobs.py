"""Store blobs (bytes under a key) in a local folder or an object store, by its fsspec URL."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

PARTIAL = ".part"  # suffix of files that are being written


class Blobs:
    """A flat store of immutable byte strings under slash-separated keys."""

    def __init__(self, url: str) -> None:
        """Open the store at an fsspec URL, and create its root folder if that is missing."""
        self._fs, self._root = fsspec.url_to_fs(url, auto_mkdir=True)
        self._fs.makedirs(self._root, exist_ok=True)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    @property
    def read_bytes(self) -> int:
        """How many bytes a caller should read with one `get`.

        64 KiB from a local store, 1 MiB from a remote one.
        """
        return (64 if self._local else 1024) << 10

    def _path(self, key: str) -> str:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._root}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key` atomically. Raises OSError for any error of the store."""
        if self._local:
            with self._partial_file(key) as partial:
                partial.write_bytes(data)
        else:  # object stores write whole objects
            with _as_os_error():
                self._fs.pipe_file(self._path(key), data)

    def take(self, key: str, file: Path) -> None:
        """Store the content of a local file under `key` atomically.

        The file is moved into a local store; it is copied into a remote store and stays. Raises
        OSError for any error of the store.
        """
        if self._local:
            with self._partial_file(key) as partial:
                shutil.move(file, partial)
        else:
            with _as_os_error():
                self._fs.put_file(str(file), self._path(key))

    @contextlib.contextmanager
    def _partial_file(self, key: str) -> Iterator[Path]:
        """Yield the path of a file for the block to write, which then becomes the blob `key`.

        The file is in the folder of a local store. If the block raises, it is removed.
        """
        path = Path(self._path(key))
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
        """Raise OSError (ENOSPC) if a local store has less than `size_bytes` bytes of free space.

        A remote store is not checked.
        """
        if self._local and shutil.disk_usage(self._root).free < size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes `begin` … `end` − 1 of the blob `key`.

        `begin` None means from the start, `end` None to the end. Raises FileNotFoundError if there
        is no such blob.
        """
        return bytes(self._fs.cat_file(self._path(key), begin, end))

    def copy_to(self, key: str, file: Path) -> None:
        """Copy a blob to a local file, in bounded memory.

        Raises FileNotFoundError if there is no such blob.
        """
        self._fs.get_file(self._path(key), str(file))

    def delete(self, prefix: str) -> None:
        """Remove the blob with the key `prefix` and all blobs below it, if there are any."""
        if self._local:
            remove_tree(Path(self._path(prefix)))
            return
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(prefix), recursive=True)

    def exists(self, key: str) -> bool:
        """Return whether there is a blob under `key`."""
        return bool(self._fs.exists(self._path(key)))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes of the entries directly below `prefix`, keyed by name.

        The size of a folder is that of all blobs below it.
        """
        sizes: dict[str, int] = {}
        root = self._path(prefix)
        with contextlib.suppress(FileNotFoundError):
            for path, info in self._fs.find(root, detail=True).items():
                word = path[len(root) :].strip("/").partition("/")[0]
                sizes[word] = sizes.get(word, 0) + int(info.get("size") or 0)
        return sizes

    def names(self, prefix: str) -> dict[str, float]:
        """Return the modification times of the entries directly below `prefix`, keyed by name.

        They are Unix times. If the store does not know one, it is the current time for a blob and 0
        for a folder. That of a local folder is when an entry was last added to it or removed.
        """
        modified = {}
        if self._local:
            with contextlib.suppress(FileNotFoundError), os.scandir(self._path(prefix)) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        modified[entry.name] = entry.stat(follow_symlinks=False).st_mtime
            return modified
        self._fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            for info in self._fs.ls(self._path(prefix), detail=True):
                modified[info["name"].rstrip("/").rsplit("/", 1)[-1]] = _written_at(info)
        return modified

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all blobs at or below `prefix`, sorted; "" means the whole store.

        Partial files are left out.
        """
        path = self._path(prefix) if prefix else self._root
        paths = self._fs.find(path)
        return sorted(name[len(self._root) + 1 :] for name in paths if not name.endswith(PARTIAL))

    def usage_bytes(self) -> int:
        """Return the size of the whole store in bytes."""
        return size_of(Path(self._root)) if self._local else int(self._fs.du(self._root, total=True))

    def sweep(self, prefix: str, older_than_s: float, *, partial: bool = False) -> int:
        """Remove blobs below `prefix` written over `older_than_s` seconds ago; return their number.

        With `partial`, remove only partial files: a process that was killed while it wrote a blob
        leaves one in a local store.
        """
        removed = 0
        for path, written_at in self._files(prefix):
            if (path.endswith(PARTIAL) or not partial) and time.time() - written_at > older_than_s:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
                    removed += 1
        return removed

    def _files(self, prefix: str) -> list[tuple[str, float]]:
        """Return (path, modification time in Unix time) of each file at or below `prefix`.

        "" means the whole store.
        """
        root = self._path(prefix) if prefix else self._root
        if self._local:
            return [(path, status.st_mtime) for path, status in _walk(root)]
        with contextlib.suppress(FileNotFoundError):
            return [(path, _written_at(info)) for path, info in self._fs.find(root, detail=True).items()]
        return []


def size_of(path: Path) -> int:
    """Return the size in bytes of all files in a folder and its subfolders; 0 if it is missing."""
    return sum(status.st_size for _, status in _walk(str(path)))


def _walk(root: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield (path, `os.lstat` of it) for each file in a folder and its subfolders.

    Files that are deleted meanwhile are skipped.
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


def _written_at(info: Mapping[str, Any]) -> float:
    """Return when an object was last written (Unix time), by fsspec's metadata of it, `info`.

    If the time is unknown, return the current time for an object and 0 for a folder.
    """
    for name in ("mtime", "LastModified", "last_modified", "created"):
        moment = info.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0 if info.get("type") == "directory" else time.time()


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Convert any error that the block raises to OSError.

    The libraries of remote stores have error classes of their own.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}"[:300]) from error
