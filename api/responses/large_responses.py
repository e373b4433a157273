"""Responses with large bodies: sent in pieces, and from a temporary file where many are in memory already.

A client that reads slowly keeps the body of its response for as long as it reads.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LARGE_BYTES = 1 << 20
_PIECE_BYTES = 256 << 10


class ResponseMemory:
    """Bytes of large bodies that are held in memory now."""

    def __init__(self, limit: int, folder: Path) -> None:
        """At most `limit` bytes; further bodies go to files in `folder` that have no name."""
        self._limit = limit
        self._folder = folder
        self.held = 0

    def response(self, body: bytes, headers: dict[str, str], media: str) -> Response:
        """A response with this body."""
        if len(body) <= LARGE_BYTES:
            return Response(body, 200, headers, media)
        return _LargeResponse(self, body, headers, media)

    async def pieces(self, bodies: list[bytes]) -> AsyncIterator[bytes]:
        """The one body of a list in pieces; it is taken from the list, so that nobody else holds it."""
        size = len(bodies[0])
        if self.held + size > self._limit:
            try:
                file = await asyncio.to_thread(self._spilled, bodies)
            except OSError:
                pass  # no room on the disk: it stays in memory
            else:
                with file:
                    while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                        yield piece
                return
        body = bodies.pop()
        self.held += size
        try:
            for at in range(0, size, _PIECE_BYTES):
                yield body[at : at + _PIECE_BYTES]
        finally:
            self.held -= size

    def _spilled(self, bodies: list[bytes]) -> IO[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - the caller closes it
        try:
            file.write(bodies[0])
            file.seek(0)
        except BaseException:
            file.close()
            raise
        bodies.clear()
        return file


class _LargeResponse(Response):
    """A response that gives its body away as it sends it."""

    def __init__(self, memory: ResponseMemory, body: bytes, headers: dict[str, str], media: str) -> None:
        super().__init__(None, 200, {**headers, "Content-Length": str(len(body))}, media)
        self._memory = memory
        self._bodies = [body]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._memory.pieces(self._bodies):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
