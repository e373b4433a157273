"""Request bodies sent with `Content-Encoding: gzip` or `deflate`, decoded as they arrive."""

import asyncio
import zlib
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from api.errors import MalformedError, UnsupportedMediaError

ACCEPTED = "gzip, deflate, identity"
_GZIP, _DEFLATE = "gzip", "deflate"
_INLINE_BYTES = 16 << 10  # more input, and output after the first block, is decoded in a thread
_BLOCK_BYTES = 256 << 10  # of output
# A gzip body with more members than `_FREE_MEMBERS` must have `_MIN_MEMBER_BYTES` of output per
# member.
_FREE_MEMBERS = 1024
_MIN_MEMBER_BYTES = 1024


def content_encoding(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the encoding of a body: `gzip`, `deflate`, or "" for none.

    Raises UnsupportedMediaError for another.
    """
    values = [value for name, value in headers if name == b"content-encoding"]
    if not values:
        return ""
    tokens = [token.strip().lower() for token in b",".join(values).decode("latin-1").split(",")]
    codings = [token for token in tokens if token not in {"", "identity"}]
    if not codings:
        return ""
    if codings in (["gzip"], ["x-gzip"]):
        return _GZIP
    if codings == ["deflate"]:
        return _DEFLATE
    raise UnsupportedMediaError(
        f"Content-Encoding: {', '.join(codings)[:60]} is not decoded here; send the body as it is, or with one of "
        "gzip and deflate",
        headers={"Accept-Encoding": ACCEPTED, "Connection": "close"},
    )


class DecodedReceive:
    """An ASGI `receive` whose messages hold the decoded body, at most one block each.

    Raises MalformedError for a body that is not of the encoding, ends early, or has very many small
    gzip members.
    """

    def __init__(self, receive: Receive, encoding: str, limit: int) -> None:
        """`limit` is for the encoded bytes; the caller counts the decoded ones."""
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
        """Return the next block.

        Raises ClientDisconnect if the client disconnects before the end.
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
                    raise MalformedError(
                        f"the body has more than the {self._limit} bytes of this route before it is decoded",
                        headers={"Connection": "close"},
                    )
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
        return self._decoder is not None and bool(self._decoder.eof)

    def _next_block(self) -> bytes:
        """Decode at most one block of the input."""
        if not self._input and self._decoder is None:
            return b""
        if self._decoder is None or self._complete:
            self._decoder = self._new_decoder()
        try:
            block = bytes(self._decoder.decompress(self._input, _BLOCK_BYTES))
        except zlib.error as error:
            raise self._malformed("cannot be decoded") from error
        self._input = self._decoder.unconsumed_tail or self._decoder.unused_data
        self._written += len(block)
        if not self._input and len(block) == _BLOCK_BYTES and not self._complete:
            # the decoder may hold more output than it was allowed to give
            block += self._rest()
        return block

    def _rest(self) -> bytes:
        """Return the output that the decoder still holds, at most one deflate window."""
        try:
            rest = bytes(self._decoder.decompress(b"", _BLOCK_BYTES))
        except zlib.error as error:
            raise self._malformed("cannot be decoded") from error
        self._written += len(rest)
        return rest

    def _new_decoder(self) -> Any:
        if self._members and (self._encoding != _GZIP or not self._input.startswith(b"\x1f")):
            raise self._malformed("has more bytes after its end")
        self._members += 1
        if self._members > _FREE_MEMBERS and self._written < _MIN_MEMBER_BYTES * self._members:
            raise self._malformed("is made of very many small members")
        if self._encoding == _GZIP:
            return zlib.decompressobj(16 + zlib.MAX_WBITS)
        zlib_header = len(self._input) < 2 or (
            self._input[0] & 0x0F == 8 and int.from_bytes(self._input[:2], "big") % 31 == 0
        )
        return zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)

    def _malformed(self, fault: str) -> MalformedError:
        return MalformedError(
            f"the body {fault}; its Content-Encoding says {self._encoding}", headers={"Connection": "close"}
        )
