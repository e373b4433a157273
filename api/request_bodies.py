"""Enforces limits on request bodies, and decodes them.

The limits are the size by route, the time to arrive, and the memory that all bodies take together.
Bodies with `Content-Encoding: gzip` or `deflate` are decoded as they arrive.
"""

import asyncio
import re
import zlib
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from api import malloc
from api.errors import MalformedError, OverloadedError, StalledError, TooLargeError, UnsupportedMediaError
from api.openai_errors import PREFIX
from core.catalog.operations import OPERATIONS
from core.settings import Settings

# These first bytes of a body are not counted, so that small requests are never rejected.
UNCOUNTED_BYTES = 8 << 10
# After a peak of at least this size, free memory is returned to the system.
TRIMMED_PEAK_BYTES = 16 << 20
_TRIM_DELAY_S = 1.0

ACCEPTED = "gzip, deflate, identity"
_INLINE_BYTES = 16 << 10  # more input, and output after the first block, is decoded in a thread
_BLOCK_BYTES = 256 << 10  # most output of a message
# More than `_FREE_MEMBERS` gzip members must have `_MIN_MEMBER_BYTES` of output each, on average.
_FREE_MEMBERS = 1024
_MIN_MEMBER_BYTES = 1024

_VERSIONS = re.compile(r"/v1/models/[^/]+/versions")


@dataclass(frozen=True)
class BodyRule:
    """Limits of the bodies of a route.

    `limit` is the size in bytes after decoding. `in_memory` is false for uploads, which the route
    writes to the disk as they arrive. A `small` body is read completely before the route runs.
    """

    limit: int
    in_memory: bool
    small: bool = False


class SharedMemory:
    """Counts the bytes of all request bodies that are in memory."""

    def __init__(self, limit: int) -> None:
        """Allow all request bodies of this process together at most `limit` bytes."""
        self._limit = limit
        self._peak = 0
        self.held = 0

    def check(self, size: int) -> None:
        """Raise OverloadedError if `size` bytes more would exceed the limit for all bodies."""
        if self.held + size > self._limit:
            detail = f"{self.held} bytes of request bodies are being read or worked on, of {self._limit} at a time"
            close = {"Connection": "close"}
            raise OverloadedError(f"{detail}; try again in a moment", retry_after_s=2, headers=close)

    def acquire(self, size: int) -> None:
        """Count `size` bytes more. Raises OverloadedError if all bodies then exceed the limit."""
        self.check(size)
        self.held += size
        self._peak = max(self._peak, self.held)

    def release(self, size: int) -> None:
        """Count `size` bytes less.

        After a large peak, when at most a quarter of the peak is still counted, malloc is made to
        return its free memory to the system a little later.
        """
        self.held -= size
        if self._peak >= TRIMMED_PEAK_BYTES and self.held <= self._peak // 4:
            self._peak = self.held
            loop = asyncio.get_running_loop()
            loop.call_later(_TRIM_DELAY_S, loop.run_in_executor, None, malloc.trim)


class RequestBodies:
    """Creates the body reader of each request, with the limits of the request's route."""

    def __init__(self, settings: Settings) -> None:
        """Set the limits for the bodies of each route, from the settings."""
        images = BodyRule(settings.max_body_bytes, in_memory=True)
        dataset = BodyRule(settings.max_dataset_bytes, in_memory=False)
        self._rules = {
            **{("POST", path): dataset for path in ("/v1/datasets", f"{PREFIX}/files")},
            **{("POST", f"/v1/{operation.path}"): images for operation in OPERATIONS},
            ("POST", f"{PREFIX}/images/edits"): images,
        }
        self._control = BodyRule(settings.max_control_body_bytes, in_memory=True, small=True)
        self._version = BodyRule(settings.max_version_bytes, in_memory=False)
        self._timeout_s = settings.body_total_timeout_s
        self.memory = SharedMemory(settings.max_inflight_body_bytes)

    def reader(self, method: str, path: str, headers: list[tuple[bytes, bytes]], receive: Receive) -> "BodyReader":
        """Return the reader for the body of a request.

        Raises TooLargeError if the declared length exceeds the route's limit, OverloadedError if it
        exceeds the memory that is left for all bodies, and UnsupportedMediaError for an unknown
        content encoding.
        """
        rule = self._rules.get((method, path))
        if rule is None:
            rule = self._version if method == "POST" and _VERSIONS.fullmatch(path) else self._control
        encoding, declared = "", 0
        for name, value in headers:
            if name == b"content-encoding":
                encoding = content_encoding(headers)
            elif name == b"content-length" and value.isdigit():
                declared = int(value)
        if declared > rule.limit:
            raise too_large(rule)
        if declared > UNCOUNTED_BYTES and rule.in_memory:
            self.memory.check(declared)
        if encoding:
            receive = DecodedReceive(receive, encoding, rule.limit)
        return BodyReader(receive, rule, self.memory, self._timeout_s, decoded=bool(encoding))


@dataclass(eq=False, slots=True)
class BodyReader:
    """An ASGI `receive` that passes on the messages of another `receive` and enforces body limits.

    It raises TooLargeError over the size limit, OverloadedError if the bodies of all requests in
    memory are too large together, and StalledError after the time-out. `release` must be called
    when the request has ended. `decoded` says that the body had a content encoding, and `unread`
    that the client may still send a part of the body.
    """

    receive: Receive
    rule: BodyRule
    memory: SharedMemory
    timeout_s: float
    decoded: bool
    unread: bool = True
    _deadline: float | None = None
    _read: int = 0
    _held: int = 0

    async def __call__(self) -> Message:
        """Return the next message of the body, and count its bytes.

        Raises TooLargeError over the size limit, OverloadedError if the bodies of all requests in
        memory are too large together, and StalledError after the time-out.
        """
        message = await (self.receive() if self._deadline is None else self._in_time(self._deadline))
        if message["type"] != "http.request":
            return message
        read = self._read = self._read + len(message.get("body", b""))
        unread = self.unread = message.get("more_body", False)
        if read > UNCOUNTED_BYTES or read > self.rule.limit:
            self._count(read)
        if unread and self.rule.in_memory:
            self._deadline = self._deadline or asyncio.get_running_loop().time() + self.timeout_s
        else:
            self._deadline = None
        return message

    def _count(self, read: int) -> None:
        """Count the bytes of the body that are held in memory; `read` bytes of it were read so far.

        Bytes that are written to the disk, and the first `UNCOUNTED_BYTES`, do not count. Raises
        TooLargeError if `read` exceeds the route's limit, and OverloadedError if the memory for all
        bodies is used up.
        """
        if read > self.rule.limit:
            self.unread = True  # of a decoded body, the client may still be sending encoded bytes
            raise too_large(self.rule)
        if not self.rule.in_memory or read <= UNCOUNTED_BYTES:
            return
        try:
            self.memory.acquire(read - UNCOUNTED_BYTES - self._held)
        except OverloadedError:
            self.unread = True
            self.release()  # at once, so that other bodies are not rejected too
            raise
        self._held = read - UNCOUNTED_BYTES

    async def _in_time(self, deadline: float) -> Message:
        """Return the next message of `receive`. Raises StalledError at the deadline."""
        try:
            async with asyncio.timeout_at(deadline):
                return await self.receive()
        except TimeoutError as error:
            detail = f"the body was not complete after {self.timeout_s:g} s; send it faster, or in parts"
            raise StalledError(detail, headers={"Connection": "close"}) from error

    def release(self) -> None:
        """Stop counting the bytes of this body against the limit for all bodies."""
        if self._held:
            self.memory.release(self._held)
            self._held = 0

    async def ahead(self) -> Receive:
        """Read the whole body now if the route's bodies are `small`; return a `receive` with it.

        For other routes, return this reader, from which nothing was read. An error that is raised
        here becomes the response; FastAPI would replace one that is raised while the route runs.
        Raises ClientDisconnect if the client disconnects before the body is complete.
        """
        if not self.rule.small:
            return self
        messages: list[Message] = [{"type": "http.request", "body": await read_body(self), "more_body": False}]

        async def receive() -> Message:
            return messages.pop() if messages else await self()

        return receive


async def read_body(receive: Receive) -> bytes:
    """Return the complete body of a request from its ASGI `receive`.

    Raises ClientDisconnect if the client disconnects before the end of the body. Faster than
    Starlette's `request.body()`: no generator, and no copy.
    """
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnect
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def too_large(rule: BodyRule) -> TooLargeError:
    """Return the error for a body over the size limit of its route."""
    advice = "send fewer images a request, or a smaller file" if rule.in_memory else "send a smaller file"
    advice = "send less" if rule.small else advice
    detail = f"this route takes bodies of at most {rule.limit} bytes; {advice}"
    return TooLargeError(detail, headers={"Connection": "close"})


# --- content encoding ---


def content_encoding(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the content encoding in the headers: "gzip", "deflate", or "" for none.

    Raises UnsupportedMediaError for any other encoding, and for more than one.
    """
    values = [value for name, value in headers if name == b"content-encoding"]
    tokens = [token.strip().lower() for token in b",".join(values).decode("latin-1").split(",")]
    codings = [token for token in tokens if token not in {"", "identity"}]
    if not codings:
        return ""
    if codings in (["gzip"], ["x-gzip"]):
        return "gzip"
    if codings == ["deflate"]:
        return "deflate"
    raise UnsupportedMediaError(
        f"Content-Encoding: {', '.join(codings)[:60]} is not decoded here; send the body as it is, or with one of "
        "gzip and deflate",
        headers={"Accept-Encoding": ACCEPTED, "Connection": "close"},
    )


class DecodedReceive:
    """An ASGI `receive` that decodes the body from another `receive`, and returns it in blocks.

    Raises MalformedError if the body cannot be decoded, ends early, or has very many small gzip
    members.
    """

    def __init__(self, receive: Receive, encoding: str, limit: int) -> None:
        """Read the body from `receive`; `encoding` is "gzip" or "deflate".

        A body of more than `limit` bytes before decoding is rejected; the number of decoded bytes
        is not limited here.
        """
        self._receive = receive
        self._encoding = encoding
        self._limit = limit
        self._decoder: Any = None
        self._input = b""
        self._read = self._written = self._members = 0
        self._more_input = True
        self._ended = False
        self._ahead = False

    async def __call__(self) -> Message:
        """Return the next message, decoded.

        Raises MalformedError if the body cannot be decoded, and ClientDisconnect if the client
        disconnects before the body is complete.
        """
        while not self._ended:
            if not self._input and self._more_input:
                message = await self._receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                self._input = message.get("body", b"")
                self._more_input = message.get("more_body", False)
                self._read += len(self._input)
                self._ahead = False
                if self._read > self._limit:
                    detail = f"the body has more than the {self._limit} bytes of this route before it is decoded"
                    raise MalformedError(detail, headers={"Connection": "close"})
            if len(self._input) > _INLINE_BYTES or self._ahead:
                block = await asyncio.to_thread(self._next_block)
            else:
                block = self._next_block()
            self._ahead = bool(self._input)
            if not self._input and not self._more_input:
                self._ended = True
                if self._read and not self._complete:
                    raise self._malformed("ends early")
            if block or self._ended:
                return {"type": "http.request", "body": block, "more_body": not self._ended}
        return await self._receive()

    @property
    def _complete(self) -> bool:
        """Return whether the current gzip member, or the deflate body, is decoded to its end."""
        return self._decoder is not None and bool(self._decoder.eof)

    def _next_block(self) -> bytes:
        """Return at most one block of decoded output; empty if all input so far is decoded."""
        if not self._input and self._decoder is None:
            return b""
        if self._decoder is None or self._complete:
            self._decoder = self._new_decoder()
        block = self._decompress(self._input)
        self._input = self._decoder.unconsumed_tail or self._decoder.unused_data
        if not self._input and len(block) == _BLOCK_BYTES and not self._complete:
            block += self._decompress(b"")  # the decoder may hold more output, at most one deflate window
        return block

    def _decompress(self, data: bytes) -> bytes:
        """Decode data and return at most one block. Raises MalformedError if it cannot be decoded."""
        try:
            block = bytes(self._decoder.decompress(data, _BLOCK_BYTES))
        except zlib.error as error:
            raise self._malformed("cannot be decoded") from error
        self._written += len(block)
        return block

    def _new_decoder(self) -> Any:
        """Return a decoder for the next gzip member, or for a deflate body.

        Raises MalformedError if other data follows the body, or if it has very many small members.
        """
        if self._members and (self._encoding != "gzip" or not self._input.startswith(b"\x1f")):
            raise self._malformed("has more bytes after its end")
        self._members += 1
        if self._members > _FREE_MEMBERS and self._written < _MIN_MEMBER_BYTES * self._members:
            raise self._malformed("is made of very many small members")
        if self._encoding == "gzip":
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        zlib_header = len(self._input) < 2 or (
            self._input[0] & 0x0F == 8 and int.from_bytes(self._input[:2], "big") % 31 == 0
        )
        return zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)

    def _malformed(self, fault: str) -> MalformedError:
        """Return the error for a body that cannot be decoded; `fault` says why, after "the body"."""
        detail = f"the body {fault}; its Content-Encoding says {self._encoding}"
        return MalformedError(detail, headers={"Connection": "close"})
