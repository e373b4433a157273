"""Define the client's requests, with their uploads and downloads, and the rules for retries."""

import email.utils
import io
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import quote

import httpx

from reverie.errors import UnexpectedContentError

CONNECT_TIMEOUT_S = 5.0
MAX_DELAY_S = 30.0
OCTET_STREAM = "application/octet-stream"

# Called with the number of bytes transferred so far.
ByteProgress: TypeAlias = Callable[[int], object]

# Files as httpx takes them: field name → (file name, open file, content type).
FormFiles: TypeAlias = dict[str, tuple[str, IO[bytes], str]]


@dataclass(frozen=True)
class Upload:
    """Files that a request sends as a multipart form, keyed by the names of their form fields.

    `on_progress`, if it is set, is called with the number of bytes read so far.
    """

    files: Mapping[str, Path]
    on_progress: ByteProgress | None = None

    @contextmanager
    def open(self) -> Iterator[FormFiles]:
        """Return a context manager that opens all files; its value is what httpx takes as `files`.

        While httpx reads the files, `on_progress` is called with the number of bytes read so far.
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
    """An open file that calls `count` with the number of bytes of each chunk read from it."""

    def __init__(self, path: Path, count: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._count = count

    def read(self, size: int | None = -1, /) -> bytes:
        if chunk := super().read(size):
            self._count(len(chunk))
        return chunk


class Download:
    """A file to which the body of a response is written, over several connections if necessary.

    The bytes go to a hidden `.part` file, which is renamed when it is complete. If the connection
    breaks, the next request asks only for the missing bytes.
    """

    def __init__(self, path: Path, media_type: str, on_progress: ByteProgress | None = None) -> None:
        """Prepare to write a body of `media_type` to the file `path`.

        The body of a response of another type is not written. `on_progress` is called with the
        number of bytes received so far.
        """
        self.path = path
        self.media_type = media_type
        self.size_bytes = 0
        self.response: httpx.Response | None = None  # the last response that was not an error
        self._part = path.with_name(f".{path.name}.part")
        self._etag = ""
        self._on_progress = on_progress

    def request_headers(self) -> dict[str, str]:
        """Return the headers of the next request for the file.

        If a part of the file was received, the headers ask only for the missing bytes, or for the
        whole file if it has changed meanwhile.
        """
        headers = {"Accept-Encoding": "identity"}
        if self.size_bytes and self._etag:
            headers |= {"Range": f"bytes={self.size_bytes}-", "If-Range": self._etag}
        return headers

    def open(self, response: httpx.Response) -> AbstractContextManager[IO[bytes] | None]:
        """Return a context manager that opens the `.part` file for the body of `response`.

        The body is appended for status 206, and replaces the content for status 200. The value is
        None if the response has another status, or another media type than expected.
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
        """Write the next chunk of the body to the `.part` file, and call `on_progress`."""
        file.write(chunk)
        self.size_bytes += len(chunk)
        if self._on_progress is not None:
            self._on_progress(self.size_bytes)

    def _is_file(self, response: httpx.Response) -> bool:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return response.status_code in {200, 206} and media_type == self.media_type

    def commit(self) -> None:
        """Rename the `.part` file, which is complete, to the path of the download.

        Raises UnexpectedContentError if the last response did not have the expected media type.
        """
        if self.response is None or not self._is_file(self.response):
            raise UnexpectedContentError(self.path, self.media_type, self.response)
        self._part.replace(self.path)

    def discard(self) -> None:
        """Delete the `.part` file, if there is one."""
        self._part.unlink(missing_ok=True)


@dataclass(frozen=True)
class ApiRequest:
    """A request of the client, from which a new `httpx.Request` is built for each attempt.

    `json` is the body, `params` the query parameters, and `upload` files to send instead of a body.
    `download` gets the body of a successful response. `retry_if_lost` says whether to retry if the
    connection breaks after the service may have received the request. `timeout_s` is the longest
    time without data from the service; None means the client's time-out. `deadline`, on the
    monotonic clock, is when the service stops the work; after that nothing is retried.
    """

    method: str
    path: str
    json: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    download: Download | None = None
    retry_if_lost: bool = True
    timeout_s: float | None = None
    deadline: float | None = None

    def open_files(self) -> AbstractContextManager[FormFiles | None]:
        """Return a context manager that opens the files to upload, or has None without files."""
        return self.upload.open() if self.upload else nullcontext()

    def build(self, http: httpx.Client | httpx.AsyncClient, files: FormFiles | None = None) -> httpx.Request:
        """Return the `httpx.Request` for one attempt; `files` are the open files to upload.

        Query parameters that are None are left out.
        """
        headers = dict(self.headers)
        if self.deadline is not None:
            headers["Request-Timeout"] = f"{max(0.001, self.deadline - time.monotonic()):.3f}"
        timeout = http.timeout if self.timeout_s is None else httpx.Timeout(self.timeout_s, connect=CONNECT_TIMEOUT_S)
        return http.build_request(
            self.method,
            self.path,
            params={name: value for name, value in self.params.items() if value is not None} or None,
            json=self.json,
            files=files,
            headers=headers | (self.download.request_headers() if self.download else {}),
            timeout=timeout,
        )

    def may_retry(self, outcome: httpx.TransportError | httpx.Response) -> bool:
        """Return whether to send the request again after `outcome`, an error or a response.

        That is so for the statuses 429 and 503, and if no connection was made; with
        `retry_if_lost`, also for the statuses 502 and 504 and for a broken connection. After the
        `deadline` the request is never sent again.
        """
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return False
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in {429, 503} or (self.retry_if_lost and outcome.status_code in {502, 504})
        if isinstance(outcome, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return True
        lost = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
        return self.retry_if_lost and isinstance(outcome, lost)


@dataclass(frozen=True)
class Delay:
    """A time to wait before the next request, in seconds."""

    seconds: float

    @classmethod
    def before_retry(cls, attempt: int, response: httpx.Response | None = None) -> "Delay":
        """Return the delay before the next attempt of a request, at most `MAX_DELAY_S` seconds.

        The header `Retry-After` of the response sets it. Without this header it is an exponential
        backoff with jitter; `attempt` is the number of attempts so far.
        """
        retry_after = response.headers.get("retry-after", "") if response is not None else ""
        if retry_after.isdecimal():
            return cls(min(float(retry_after), MAX_DELAY_S))
        if retry_after.endswith("GMT"):
            moment = email.utils.parsedate_to_datetime(retry_after).timestamp()
            return cls(min(max(0.0, moment - time.time()), MAX_DELAY_S))
        return cls(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, MAX_DELAY_S))


def deadline_after(seconds: float | None) -> float | None:
    """Return the time on the monotonic clock that is `seconds` from now; None if `seconds` is None.

    Raises ValueError if `seconds` is not above 0.
    """
    if seconds is None:
        return None
    if not seconds > 0:
        raise ValueError(f"deadline_s: {seconds:g} is not above 0")
    return time.monotonic() + seconds


def path_of(*segments: str) -> str:
    """Return the URL path of a resource: `/v1` and the percent-encoded `segments`."""
    return "/".join(("/v1", *(quote(segment, safe="@") for segment in segments)))


def printable_url(url: httpx.URL | str) -> str:
    """Return a URL as text for messages: without user name, password, query and fragment.

    These may be secrets, for example the signature in a link to an object store. Of a text that is
    no HTTP address, everything between the scheme and the last `@` is removed.
    """
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL:
        address = httpx.URL()
    if address.scheme in {"http", "https"} and address.host:
        return str(address.copy_with(userinfo=b"", query=None, fragment=None))
    return re.sub(r"^([a-z]+://)?.*@", r"\1", str(url), flags=re.DOTALL | re.IGNORECASE)
