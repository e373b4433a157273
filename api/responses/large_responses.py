"""Large responses, whose bodies wait in memory or in a temporary file until clients read them."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LARGE_BYTES = 1 << 20
_CHUNK_BYTES = 256 << 10


class ResponseMemory:
    """Counts the bytes of large response bodies in memory, and moves bodies to files at a limit."""

    def __init__(self, limit: int, folder: Path) -> None:
        """Keep at most `limit` bytes in memory. Further bodies are written to `folder`."""
        self._limit = limit
        self._folder = folder
        self.held = 0

    def response(self, body: bytes, headers: dict[str, str], media: str) -> Response:
        """Return a response with this body and media type; a large body is sent by `chunks`."""
        if len(body) <= LARGE_BYTES:
            return Response(body, 200, headers, media)
        return _LargeResponse(self, body, headers, media)

    async def chunks(self, bodies: list[bytes]) -> AsyncIterator[bytes]:
        """Yield the only body in the list `bodies` in chunks, from memory or from a temporary file.

        The body is removed from the list, so that its memory is freed when it has been written to a
        file.
        """
        size = len(bodies[0])
        if self.held + size > self._limit:
            try:
                file = await asyncio.to_thread(self._write_file, bodies)
            except OSError:
                pass  # the disk is full: the body stays in memory
            else:
                with file:
                    while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                        yield chunk
                return
        body = bodies.pop()
        self.held += size
        try:
            for at in range(0, size, _CHUNK_BYTES):
                yield body[at : at + _CHUNK_BYTES]
        finally:
            self.held -= size

    def _write_file(self, bodies: list[bytes]) -> IO[bytes]:
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
    """A response that sends its body in chunks."""

    def __init__(self, memory: ResponseMemory, body: bytes, headers: dict[str, str], media: str) -> None:
        super().__init__(None, 200, {**headers, "Content-Length": str(len(body))}, media)
        self._memory = memory
        self._bodies = [body]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._memory.chunks(self._bodies):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
