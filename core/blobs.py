"""The blob store: bytes by key, in a folder by default, or in any fsspec store by URL."""

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
        """Open the store at an fsspec URL, creating its folder where it is one."""
        self._fs, self._root = fsspec.url_to_fs(url, auto_mkdir=True)
        self._fs.makedirs(self._root, exist_ok=True)
        self._local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def _path(self, key: str) -> str:
        if not key or key.startswith("/") or ".." in key.split("/"):
            raise ValueError(f"not a key: {key!r}")
        return f"{self._root}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key` atomically. Raises OSError for any error of the store."""
        path = self._path(key)
        if not self._local:  # object stores write whole objects
            with _as_os_error():
                self._fs.pipe_file(path, data)
            return
        partial = f"{path}.{uuid4().hex}{PARTIAL}"
        with _removed_on_failure(partial):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(partial).write_bytes(data)
            Path(partial).replace(path)

    def take(self, key: str, file: Path) -> None:
        """Move a local file to `key` atomically; a remote store copies it.

        Raises OSError, also for errors of a remote store.
        """
        path = self._path(key)
        if not self._local:
            with _as_os_error():
                self._fs.put_file(str(file), path)
            return
        partial = f"{path}.{uuid4().hex}{PARTIAL}"
        with _removed_on_failure(partial):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(file, partial)
            Path(partial).replace(path)

    def check_room(self, size_bytes: int) -> None:
        """Raise OSError (ENOSPC) if a local store lacks room for `size_bytes` more."""
        if self._local and shutil.disk_usage(self._root).free < size_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Return the bytes under `key`, all or `begin` … `end` − 1. Raises FileNotFoundError."""
        return bytes(self._fs.cat_file(self._path(key), begin, end))

    def copy_to(self, key: str, file: Path) -> None:
        """Copy a blob to a local file, in bounded memory. Raises FileNotFoundError."""
        self._fs.get_file(self._path(key), str(file))

    def delete(self, prefix: str) -> None:
        """Remove the blob at `prefix` and all below it; a missing one is no error."""
        if self._local:
            remove_tree(Path(self._path(prefix)))
            return
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(prefix), recursive=True)

    def exists(self, key: str) -> bool:
        """Return whether there is a blob under `key`."""
        return bool(self._fs.exists(self._path(key)))

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes in bytes below `prefix`, by the next segment of the key."""
        sizes: dict[str, int] = {}
        root = self._path(prefix)
        with contextlib.suppress(FileNotFoundError):
            for path, info in self._fs.find(root, detail=True).items():
                word = path[len(root) :].strip("/").partition("/")[0]
                sizes[word] = sizes.get(word, 0) + int(info.get("size") or 0)
        return sizes

    def names(self, prefix: str) -> dict[str, float]:
        """Return the names directly below `prefix`, with their modification times (Unix; 0 if
        unknown).

        A folder's modification time is that of the last entry added or removed.
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
        """Return all keys at or below `prefix`, or of the whole store, without partial files."""
        path = self._path(prefix) if prefix else self._root
        paths = self._fs.find(path)
        return sorted(name[len(self._root) + 1 :] for name in paths if not name.endswith(PARTIAL))

    def usage_bytes(self) -> int:
        """Return the size of the whole store in bytes, without files that vanish meanwhile."""
        if not self._local:
            return int(self._fs.du(self._root, total=True))
        return size_of(Path(self._root))

    def sweep(self, prefix: str, older_than_s: float, *, partial: bool = False) -> int:
        """Remove blobs below `prefix` not written for `older_than_s` seconds; return their number.

        With `partial`, remove only partial files, which killed writers leave in a local store.
        """
        gone = 0
        for path, touched in self._files(prefix):
            if partial and not path.endswith(PARTIAL):
                continue
            if time.time() - touched > older_than_s:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(path)
                    gone += 1
        return gone

    def _files(self, prefix: str) -> list[tuple[str, float]]:
        """Return the files below `prefix` with their modification times, if they still exist."""
        root = self._path(prefix) if prefix else self._root
        if not self._local:
            with contextlib.suppress(FileNotFoundError):
                return [(path, _written_at(info)) for path, info in self._fs.find(root, detail=True).items()]
            return []
        found = []
        for folder, _, names in os.walk(root):
            for name in names:
                with contextlib.suppress(OSError):
                    found.append((f"{folder}/{name}", os.lstat(f"{folder}/{name}").st_mtime))
        return found


def size_of(path: Path) -> int:
    """Return the bytes of all files in a folder and below, without those that vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_size
    return total


def remove_tree(path: Path) -> bool:
    """Remove a file, or a folder with its content; return whether nothing is left.

    Errors are ignored: the caller tries again later.
    """
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def _written_at(info: Mapping[str, Any]) -> float:
    """Return when an object was last written, from any field that the store has; now if unknown."""
    for name in ("mtime", "LastModified", "last_modified", "created"):
        moment = info.get(name)
        if isinstance(moment, datetime):
            return moment.timestamp()
        if isinstance(moment, int | float):
            return float(moment)
    return 0.0 if info.get("type") == "directory" else time.time()


@contextlib.contextmanager
def _removed_on_failure(partial: str) -> Iterator[None]:
    """Remove a partial file if writing it fails."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            Path(partial).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raise errors of a remote store, which have classes of their own, as OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}"[:300]) from error
