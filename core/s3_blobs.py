"""Store blobs in an S3-compatible object store, with obstore.

Credentials, region and endpoint are those of the standard variables `AWS_…`, of a container or of
the host's role; the URL may also name the endpoint and the region. Nothing is cached.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import IO
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore import exceptions
from obstore.store import S3Store

from core.blobs import RETRIES, Blobs, BlobsUrlError, check_key
from core.storage import ObjectStoreError

log = logging.getLogger(__name__)

_PART_BYTES = 8 << 20  # of an upload or download in parts; smaller blobs are one request
_MOST_PARTS = 9000  # S3 allows 10 000
_CONCURRENT_PARTS = 4
_PAGE = 1000  # objects of a listing or deletion; S3 sends so many at once
_UPLOAD_TIMEOUT_S = 3600.0
# A retry follows errors of the server and of the network. Waiting threads are those of requests. The request's time-out
# covers its whole body, so large objects are read and written in parts.
_RETRY_TIMEOUT_S, _CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 20, 5, 60
_OPTIONS = ("endpoint", "region")
_FULL = ("StorageFull", "QuotaExceeded", "507 Insufficient Storage")


# See docs/decisions.md#objects-are-read-and-written-with-obstore
class S3Blobs(Blobs):
    """Blobs in a bucket, as objects below a prefix.

    A listing is one request per thousand objects. The time of an object that was uploaded in parts
    is when its upload began, so a new object may be as old as `upload_s`.
    """

    read_bytes = 1 << 20
    upload_s = _UPLOAD_TIMEOUT_S + _REQUEST_TIMEOUT_S + _RETRY_TIMEOUT_S

    def __init__(self, url: str, retries: int = RETRIES) -> None:
        """Use the bucket and prefix of a URL `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`.

        Nothing is connected yet. Raises BlobsUrlError if the URL is not valid.
        """
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if not parts.netloc or parts.username or not options.keys() <= set(_OPTIONS) or not all(options.values()):
            raise BlobsUrlError(
                "it is not of the form s3://BUCKET/PREFIX?endpoint=URL&region=NAME, where all after BUCKET may be left "
                "out; keys are set by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        try:
            self._store = S3Store(
                parts.netloc,
                prefix=parts.path.strip("/") or None,
                client_options={
                    "allow_http": True,  # an endpoint within a cluster; AWS's are https
                    "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT_S),
                    "timeout": timedelta(seconds=_REQUEST_TIMEOUT_S),
                },
                retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT_S)},
                **options,  # type: ignore[arg-type]
            )
        except (exceptions.BaseError, ValueError) as error:
            raise BlobsUrlError(f"it cannot be used: {error}") from error

    def put(self, key: str, data: bytes) -> None:
        """Upload `data`, in parts if it is large."""
        with _os_errors(key, writing=True):
            obstore.put(self._store, check_key(key), data, chunk_size=_PART_BYTES, max_concurrency=_CONCURRENT_PARTS)

    def take(self, key: str, file: Path, media: str = "") -> None:
        """Upload a file, in parts if it is large. An upload that takes over an hour is aborted."""
        attributes = {"Content-Type": media} if media else None
        with _os_errors(key, writing=True), file.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            part_bytes = max(_PART_BYTES, -(-size // _MOST_PARTS))
            source = _parts(content, part_bytes) if size > part_bytes else content.read()
            obstore.put(
                self._store,
                check_key(key),
                source,
                attributes=attributes,
                chunk_size=part_bytes,
                max_concurrency=_CONCURRENT_PARTS,
            )

    def check_room(self, size_bytes: int) -> None:
        """Do nothing: an object store does not report its free space."""

    def get(self, key: str, begin: int | None = None, end: int | None = None) -> bytes:
        """Download the bytes `begin` … `end` − 1 of an object, or all of them."""
        start = begin or 0
        if end is not None and end <= start:
            return b""
        with _os_errors(key):
            if end is not None:
                return bytes(obstore.get_range(self._store, check_key(key), start=start, end=end))
            options = {"range": {"offset": start}} if start else None
            return bytes(obstore.get(self._store, check_key(key), options=options).bytes())  # type: ignore[arg-type]

    def copy_to(self, key: str, file: Path) -> None:
        """Download an object, in parts if it is large.

        Raises OSError if it ends early or is replaced meanwhile.
        """
        with _os_errors(key), file.open("wb") as target:
            meta = obstore.head(self._store, check_key(key))
            for start in range(0, meta["size"], _PART_BYTES):
                options: dict[str, object] = {"range": (start, min(start + _PART_BYTES, meta["size"]))}
                if meta["e_tag"]:
                    options["if_match"] = meta["e_tag"]
                target.write(obstore.get(self._store, check_key(key), options=options).bytes())  # type: ignore[arg-type]
            if target.tell() != meta["size"]:
                raise ObjectStoreError(errno.EIO, f"the object store sent {target.tell()} of {meta['size']} bytes")

    def delete(self, prefix: str) -> None:
        """Delete all objects below `prefix`, with one request per thousand objects."""
        with _os_errors(prefix):
            paths = [check_key(prefix), *(path for path, _, _ in self._objects(prefix))]
            self._delete(paths)

    def _delete(self, paths: list[str]) -> None:
        for first in range(0, len(paths), _PAGE):
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, paths[first : first + _PAGE])

    def exists(self, key: str) -> bool:
        """Return whether the metadata of the object can be read."""
        try:
            with _os_errors(key):
                obstore.head(self._store, check_key(key))
        except FileNotFoundError:
            return False
        return True

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return the sizes of objects below `prefix`, summed by the name directly below it."""
        sizes: dict[str, int] = {}
        with _os_errors(prefix):
            for path, size, _ in self._objects(prefix):
                name = _entry(prefix, path)
                sizes[name] = sizes.get(name, 0) + size
        return sizes

    def names(self, prefix: str) -> dict[str, float]:
        """Return for each name directly below `prefix` the time of its newest object."""
        modified: dict[str, float] = {}
        with _os_errors(prefix):
            for path, _, written_at in self._objects(prefix):
                name = _entry(prefix, path)
                modified[name] = max(modified.get(name, 0.0), written_at)
        return modified

    def keys(self, prefix: str) -> list[str]:
        """Return the keys of all objects at or below `prefix`."""
        with _os_errors(prefix):
            keys = [path for path, _, _ in self._objects(prefix)]
            if not keys and prefix and self.exists(prefix):
                return [prefix]
        return sorted(keys)

    def sweep(self, prefix: str, older_than_s: float, *, partial: bool = False) -> int:
        """Delete objects below `prefix` that are older than `older_than_s`; return their number.

        With `partial` return 0: S3 has no partial objects.
        """
        if partial:
            return 0
        with _os_errors(prefix):
            before = time.time() - max(older_than_s, self.upload_s)
            old = [path for path, _, written_at in self._objects(prefix) if written_at < before]
            self._delete(old)
        return len(old)

    def signed_url(self, key: str, expires_s: float) -> str:
        """Return a URL that is signed with the credentials of this process."""
        with _os_errors(key):
            return obstore.sign(self._store, "GET", check_key(key), timedelta(seconds=expires_s))

    def _objects(self, prefix: str) -> Iterator[tuple[str, int, float]]:
        """Yield (key, size in bytes, Unix time of the last write) for each object below `prefix`."""
        for page in obstore.list(self._store, check_key(prefix) if prefix else None, chunk_size=_PAGE):
            for one in page:
                yield one["path"], one["size"], one["last_modified"].timestamp()


def _entry(prefix: str, path: str) -> str:
    """Return the name directly below `prefix` to which the key `path` belongs."""
    return path[len(prefix) :].strip("/").partition("/")[0]


def _parts(content: IO[bytes], part_bytes: int) -> Iterator[bytes]:
    """Yield the file `content` in parts for an upload. Raises TimeoutError after an hour."""
    ends = time.monotonic() + _UPLOAD_TIMEOUT_S
    while part := content.read(part_bytes):
        if time.monotonic() > ends:
            raise TimeoutError(errno.ETIMEDOUT, f"an upload took over {_UPLOAD_TIMEOUT_S:.0f} s")
        yield part


@contextlib.contextmanager
def _os_errors(key: str, *, writing: bool = False) -> Iterator[None]:
    """Convert obstore's errors in the block to OSError; the text of the original is logged.

    With `writing`, "not found" is a failure of the store (it has lost a part of the upload), and
    not FileNotFoundError. The message may reach clients, so it has neither the address nor the
    bucket.
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.errno is not None:
            raise  # a local file
        if "NoSuchBucket" in str(error):
            raise ObjectStoreError(errno.EIO, "there is no such bucket") from error
        if writing:
            log.warning("object store failed", extra={"key": key, "reason": str(error)[:2000]})
            raise ObjectStoreError(errno.EIO, "the object store has lost a part of an upload") from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key) from error
    except OSError:
        raise
    except Exception as error:
        log.warning("object store failed", extra={"key": key, "reason": str(error)[:2000]})
        if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
            raise ObjectStoreError(errno.EACCES, "the object store refuses the access") from error
        if any(word in str(error) for word in _FULL):
            raise ObjectStoreError(errno.ENOSPC, "the object store is full") from error
        raise ObjectStoreError(errno.EIO, f"the object store failed ({type(error).__name__})") from error
