"""File uploads (multipart forms) and downloads, which resume after a broken connection."""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeAlias

import httpx

from reverie.errors import UnexpectedContentError

OCTET_STREAM = "application/octet-stream"

# Called with the number of bytes transferred so far.
ByteProgress: TypeAlias = Callable[[int], object]

# Files as httpx takes them: field name → (file name, open file, content type).
FormFiles: TypeAlias = dict[str, tuple[str, IO[bytes], str]]


@dataclass(frozen=True)
class Upload:
    """Files to send as a multipart form: field name → path."""

    files: Mapping[str, Path]
    on_progress: ByteProgress | None = None

    @contextmanager
    def open(self) -> Iterator[FormFiles]:
        """Open all files and yield them for httpx; `on_progress` is called with the bytes read so
        far.

        Raises OSError if a file cannot be read.
        """
        bytes_read = 0

        def count(chunk_size: int) -> None:
            nonlocal bytes_read
            bytes_read += chunk_size
            if self.on_progress is not None:
                self.on_progress(bytes_read)

        with ExitStack() as stack:
            yield {
                name: (path.name, stack.enter_context(_CountingReader(path, count)), OCTET_STREAM)
                for name, path in self.files.items()
            }


class _CountingReader(io.BufferedReader):
    """A file that reports the size of each chunk that is read from it."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = super().read(size)
        if chunk:
            self._count(len(chunk))
        return chunk


class Download:
    """Writes a response's body to a file.

    The bytes go to a hidden `.part` file, which is renamed when it is complete. After a broken
    connection, the next request asks for the missing bytes only.
    """

    def __init__(self, path: Path, media_type: str, on_progress: ByteProgress | None = None) -> None:
        """Prepare to write a body of `media_type` to `path`; bodies of other types are not written.

        `on_progress` is called with the number of bytes received.
        """
        self.path = path
        self.media_type = media_type
        self.size_bytes = 0
        self.response: httpx.Response | None = None  # the last response that was not an error
        self._part = path.with_name(f".{path.name}.part")
        self._etag = ""
        self._on_progress = on_progress

    def request_headers(self) -> dict[str, str]:
        """Return the headers of the next request, which asks for the missing bytes only."""
        headers = {"Accept-Encoding": "identity"}
        if self.size_bytes and self._etag:
            headers |= {"Range": f"bytes={self.size_bytes}-", "If-Range": self._etag}
        return headers

    def open(self, response: httpx.Response) -> AbstractContextManager[IO[bytes] | None]:
        """Return a context manager that opens the `.part` file for the body of a response.

        The file is opened to append for status 206, and from the start for 200. The context manager
        gives None if the response has another status or another media type than expected.
        """
        if not response.is_error:
            self.response = response
        if not self._is_file(response):
            return nullcontext()
        if response.status_code == 200:
            self.size_bytes = 0
        self._etag = response.headers.get("etag", "")
        return self._part.open("ab" if self.size_bytes else "wb")

    def write(self, file: IO[bytes], chunk: bytes) -> None:
        """Write the next chunk of the body to the open file, and report the progress."""
        file.write(chunk)
        self.size_bytes += len(chunk)
        if self._on_progress is not None:
            self._on_progress(self.size_bytes)

    def _is_file(self, response: httpx.Response) -> bool:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return response.status_code in {200, 206} and media_type == self.media_type

    def commit(self) -> None:
        """Rename the complete `.part` file to its final name.

        Raises UnexpectedContentError if the last response was not the file.
        """
        if self.response is None or not self._is_file(self.response):
            raise UnexpectedContentError(self.path, self.media_type, self.response)
        self._part.replace(self.path)

    def discard(self) -> None:
        """Delete the partial file, if there is one."""
        self._part.unlink(missing_ok=True)
