"""Named bytes that outlive a process: a folder by default, any fsspec store by URL."""

import contextlib
import shutil
import time
from pathlib import Path
from uuid import uuid4

import fsspec


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
        """Store `data` under `key`, whole or not at all."""
        path = self._path(key)
        if not self._local:  # object stores write whole objects
            self._fs.pipe_file(path, data)
            return
        partial = f"{path}.{uuid4().hex}.part"
        with self._fs.open(partial, "wb") as file:
            file.write(data)
        self._fs.mv(partial, path)

    def take(self, key: str, file: Path) -> None:
        """Store a local file under `key`, whole or not at all; the file itself may be gone afterwards."""
        path = self._path(key)
        if not self._local:
            self._fs.put_file(str(file), path)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, f"{path}.part")
        Path(f"{path}.part").replace(path)

    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """The bytes under `key`, all or those from `begin` up to `end`. Raises FileNotFoundError."""
        return bytes(self._fs.cat_file(self._path(key), begin, end))

    def delete(self, prefix: str) -> None:
        """Remove the blob at `prefix` and all below it; what is not there is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._path(prefix), recursive=True)

    def usage_bytes(self) -> int:
        """Bytes in the whole store."""
        return int(self._fs.du(self._root, total=True))

    def sweep(self, prefix: str, older_than_s: float) -> int:
        """Remove blobs below `prefix` not touched for `older_than_s` seconds; answers how many went."""
        gone = 0
        with contextlib.suppress(FileNotFoundError):
            for path, info in self._fs.find(self._path(prefix), detail=True).items():
                touched = info.get("mtime", info.get("created", 0))
                if isinstance(touched, int | float) and time.time() - touched > older_than_s:
                    with contextlib.suppress(FileNotFoundError):
                        self._fs.rm_file(path)
                        gone += 1
        return gone
