"""What goes over the wire, apart from who sends it: requests, files both ways, and a job's stream of events."""

from __future__ import annotations

import email.utils
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import httpx

from reverie.errors import ProblemError, UnexpectedContentError, UnreachableError
from reverie.records import TERMINAL, Event

CHUNK_BYTES = 256 << 10
CONNECT_S = 5.0
LONGEST_PAUSE_S = 30.0
LIFE_S = 45.0
"""A stream of events that says nothing for so long is broken: the service sends a comment every 15 s."""

PATIENCE = 20
"""So often in a row a stream of events may fail: a service that is restarted is back by then."""

Watch = Callable[[int], object]


@dataclass(frozen=True)
class Ask:
    """One request. `again`: it may be sent again although it may have arrived. `into` takes a good answer's body."""

    method: str
    path: str
    json: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    upload: Upload | None = None
    into: Download | None = None
    again: bool = True
    timeout_s: float | None = None

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """It as a request of this client's."""
        headers = {**self.headers, **(self.into.headers() if self.into else {})}
        query = {name: value for name, value in self.query.items() if value is not None}
        timeout = http.timeout if self.timeout_s is None else httpx.Timeout(self.timeout_s, connect=CONNECT_S)
        request = http.build_request(
            self.method, self.path, params=query or None, json=self.json, headers=headers, timeout=timeout
        )
        if self.upload is not None:
            request.stream = self.upload
            request.headers["Content-Length"] = str(self.upload.size_bytes)
            request.headers["Content-Type"] = self.upload.media
        return request

    def repeatable(self, error: httpx.TransportError | httpx.Response) -> bool:
        """Whether it may be sent again after this: for certain where nothing was done."""
        if isinstance(error, httpx.Response):
            return error.status_code in {429, 503} or (self.again and error.status_code in {502, 504})
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return True
        lost = (httpx.NetworkError, httpx.TimeoutException, httpx.RemoteProtocolError)
        return self.again and isinstance(error, lost)


@dataclass(frozen=True)
class Pause:
    """Time that passes before the next request."""

    seconds: float

    @classmethod
    def before(cls, attempt: int, response: httpx.Response | None = None) -> Pause:
        """What `Retry-After` says; else a random time that doubles with each attempt, so that callers spread."""
        said = response.headers.get("retry-after", "") if response is not None else ""
        if said.isdecimal():
            return cls(min(float(said), LONGEST_PAUSE_S))
        moment = email.utils.parsedate_to_datetime(said).timestamp() if said.endswith("GMT") else None
        if moment is not None:
            return cls(min(max(0.0, moment - time.time()), LONGEST_PAUSE_S))
        return cls(random.uniform(0.5, 1.0) * min(0.1 * 2**attempt, LONGEST_PAUSE_S))


class Upload(httpx.SyncByteStream, httpx.AsyncByteStream):
    """Files on their way out, read piece by piece: one as it is, several as a form by the names of their fields.

    `watch` hears how many bytes have gone.
    """

    def __init__(self, files: Mapping[str, Path], watch: Watch | None = None) -> None:
        """Raises OSError where there is no such file."""
        self._pieces: list[Path | bytes] = list(files.values())
        self.media = "application/octet-stream"
        if len(files) > 1:
            boundary = uuid4().hex
            self._pieces = [piece for name, path in files.items() for piece in (_head(boundary, name, path), path)]
            self._pieces.append(f"\r\n--{boundary}--\r\n".encode())
            self.media = f"multipart/form-data; boundary={boundary}"
        self.size_bytes = sum(one.stat().st_size if isinstance(one, Path) else len(one) for one in self._pieces)
        self._watch = watch or (lambda _gone: None)

    def __iter__(self) -> Iterator[bytes]:
        gone = 0
        for chunk in itertools.chain.from_iterable(map(_chunks, self._pieces)):
            yield chunk
            gone += len(chunk)
            self._watch(gone)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


def _head(boundary: str, name: str, path: Path) -> bytes:
    """What stands before a file in a form."""
    file = path.name.replace('"', "%22")
    said = f'Content-Disposition: form-data; name="{name}"; filename="{file}"'
    return f"\r\n--{boundary}\r\n{said}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()


def _chunks(piece: Path | bytes) -> Iterator[bytes]:
    if isinstance(piece, bytes):
        yield piece
        return
    with piece.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class Download:
    """A file on its way in: at its place when it is whole; one that breaks off goes on from there."""

    def __init__(self, path: Path, media: str, watch: Watch | None = None) -> None:
        """Nothing is written yet; `media` is the only content type that may be."""
        self.path = path
        self.media = media
        self.part = path.with_name(f".{path.name}.part")
        self.size_bytes = 0
        self.response: httpx.Response | None = None
        """The last response that was no error."""
        self._etag = ""
        self._watch = watch or (lambda _come: None)

    def headers(self) -> dict[str, str]:
        """Ask for the rest, if what has come is known to be a part of the same."""
        plain = {"Accept-Encoding": "identity"}
        if not self.size_bytes or not self._etag:
            return plain
        return {**plain, "Range": f"bytes={self.size_bytes}-", "If-Range": self._etag}

    def opened(self, response: httpx.Response) -> AbstractContextManager[IO[bytes] | None]:
        """Where the answer's body goes; nowhere if it is no file."""
        if not response.is_error:
            self.response = response
        if not self._is_file(response):
            return nullcontext(None)
        if response.status_code == 200:
            self.size_bytes = 0
        self._etag = response.headers.get("etag", "")
        return self.part.open("ab" if self.size_bytes else "wb")

    def write(self, file: IO[bytes], chunk: bytes) -> None:
        """One more piece."""
        file.write(chunk)
        self.size_bytes += len(chunk)
        self._watch(self.size_bytes)

    def _is_file(self, response: httpx.Response) -> bool:
        media = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return response.status_code in {200, 206} and media == self.media

    def keep(self) -> None:
        """All of it has come. Raises UnexpectedContentError where something else came than was asked for."""
        if self.response is None or not self._is_file(self.response):
            raise UnexpectedContentError(self.path, self.media, self.response)
        self.part.replace(self.path)

    def drop(self) -> None:
        """Leave nothing half done behind."""
        self.part.unlink(missing_ok=True)


class Following:
    """A job's events across broken connections: what to ask, what came, and whether there can be more."""

    def __init__(self, job_id: str, after: int) -> None:
        """After event number `after`."""
        self.over = False
        self._path = f"/v1/jobs/{job_id}/events"
        self._seen, self._failed = after, 0
        self._retry_s = 2.0
        self._text = b""

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """Ask for what comes after the last event."""
        self._text = b""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(self._seen)}
        return Ask("GET", self._path, headers=headers, timeout_s=LIFE_S).request(http)

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that are complete with this piece of the stream."""
        self._text += chunk
        while not self.over and b"\n\n" in self._text:
            block, _, self._text = self._text.partition(b"\n\n")
            event = self._event(block.decode())
            if event is not None:
                self._failed = 0
                self._seen = event.id or self._seen
                self.over = event.kind == "status" and event.data.get("status") in TERMINAL
                yield event

    def _event(self, block: str) -> Event | None:
        lines = [line.partition(":") for line in block.split("\n")]
        fields = {name: value.removeprefix(" ") for name, _, value in lines}
        if fields.get("retry", "").isdecimal():
            self._retry_s = int(fields["retry"]) / 1000
        if "data" not in fields:
            return None
        number = fields.get("id", "")
        return Event(fields.get("event", "message"), json.loads(fields["data"]), int(number) if number else None)

    def ended(self, how: httpx.Response | httpx.TransportError) -> Pause:
        """The connection is at its end; how long to wait before the next one. Raises what makes that useless."""
        answer = how if isinstance(how, httpx.Response) else None
        self.over = self.over or (answer is not None and answer.status_code == 204)
        if self.over:
            return Pause(0.0)
        self._failed += 1
        early = answer is not None and not answer.is_error
        if self._failed <= PATIENCE and (early or Ask("GET", self._path).repeatable(how)):
            return Pause(self._retry_s if early else min(self._retry_s, Pause.before(self._failed, answer).seconds))
        if answer is not None and answer.is_error:
            raise ProblemError.of(answer)
        raise UnreachableError(f"{self._path} broke off {self._failed} times without an event")
