"""Decodes request bodies with `Content-Encoding: gzip` or `deflate` as they arrive."""

import asyncio
import zlib
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from api.errors import MalformedError, UnsupportedMediaError

ACCEPTED = "gzip, deflate, identity"
_INLINE_BYTES = 16 << 10  # more input, and output after the first block, is decoded in a thread
_BLOCK_BYTES = 256 << 10  # most output of a message
# More than `_FREE_MEMBERS` gzip members must have `_MIN_MEMBER_BYTES` of output each, on average.
_FREE_MEMBERS = 1024
_MIN_MEMBER_BYTES = 1024


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
    """An ASGI `receive` that decodes the body; its messages have at most one block of output.

    Raises MalformedError if the body cannot be decoded, ends early, or has very many small gzip
    members.
    """

    def __init__(self, receive: Receive, encoding: str, limit: int) -> None:
        """Allow `limit` encoded bytes. The number of decoded bytes is not limited here."""
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

        Raises MalformedError (see the class), and ClientDisconnect if the client disconnects before
        the body is complete.
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
        return self._decoder is not None and bool(self._decoder.eof)

    def _next_block(self) -> bytes:
        """Decode the input to at most one block of output."""
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
        detail = f"the body {fault}; its Content-Encoding says {self._encoding}"
        return MalformedError(detail, headers={"Connection": "close"})
