"""Makes large responses, and sends them in small pieces as clients read them.

Large bodies are written to temporary files, or kept in memory while there is room for them.
"""

import asyncio
import contextlib
import io
import os
import tempfile
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from starlette.responses import FileResponse, Response
from starlette.types import Receive, Scope, Send

from api.errors import OverloadedError, ProblemError, storage_error

LARGE_BYTES = 128 << 10  # larger bodies are sent in pieces
PIECE_BYTES = 64 << 10
SENDING_BYTES = 3 * PIECE_BYTES  # a response holds a piece, and another one and 64 KiB in the server's write buffer

_THREADS = 2  # large bodies that are made at the same time

T = TypeVar("T")
Write = Callable[[BinaryIO], object]
Read = Callable[[int, int], bytes]


class LargeResponses:
    """Makes large responses, and limits the memory that all of them hold while they are sent.

    `held` is the number of bytes that all large responses hold now. A response that would exceed
    the limit raises OverloadedError before anything of it is sent.
    """

    def __init__(self, limit: int, folder: Path) -> None:
        """Let responses hold at most `limit` bytes of memory together.

        Bodies are written to unnamed files in `folder`.
        """
        self._limit = limit
        self._folder = folder
        self._threads = ThreadPoolExecutor(_THREADS, "responses")
        self.held = 0

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Call a function that makes a large body, in one of two threads; return its result.

        Further calls wait for a free thread, because each such function takes memory.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    @contextlib.contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """Count `size_bytes` as held by a response while the block runs.

        Raises OverloadedError if all responses together would hold more than the limit.
        """
        if self.held + size_bytes > self._limit:
            detail = f"large responses hold {self.held} bytes of {self._limit} until their clients read them"
            raise OverloadedError(f"{detail}; try again in a moment", retry_after_s=2)
        self.held += size_bytes
        try:
            yield
        finally:
            self.held -= size_bytes

    def fits(self, size_bytes: int) -> bool:
        """Return whether responses with `size_bytes` more would hold at most half of the limit."""
        return self.held + size_bytes <= self._limit // 2

    # --- responses ---

    def of_body(self, body: bytes, status: int, headers: Mapping[str, str], media: str) -> Response:
        """Return a response with a body that is in memory.

        If, when a large body is to be sent, all responses would hold more than half of the limit,
        the body is moved to a file first.
        """
        if len(body) <= LARGE_BYTES:
            return Response(body, status, headers, media)
        return _BodyResponse(self, body, status, headers, media)

    async def written(self, write: Write, headers: Mapping[str, str], media: str) -> Response:
        """Return a response whose body `write` writes, in a thread, to a temporary file.

        If the disk is full, the body is made in memory.
        """
        try:
            made = await self.run(self.write_file, write)
        except OSError:
            made = await self.run(written_bytes, write)
        if isinstance(made, bytes):
            return self.of_body(made, 200, headers, media)
        return self.of_pieces(made.read, 0, made.size, 200, headers, media)

    def of_pieces(
        self,
        read: Read,
        begin: int,
        end: int,
        status: int,
        headers: Mapping[str, str],
        media: str,
        *,
        first: bytes = b"",
        read_bytes: int = PIECE_BYTES,
    ) -> Response:
        """Return a response with the bytes `begin` … `end` − 1 of a stored body.

        `read(a, b)` returns the bytes `a` … `b` − 1 of the body, at most `read_bytes`. It runs in a
        thread, and is called again only when the client has read the bytes of the last call.
        `first` has the first bytes of the response, if they were already read.
        """
        pieces = _pieces(read, begin, end, [first] if first else [], read_bytes)
        held = SENDING_BYTES + max(0, read_bytes - PIECE_BYTES)
        return _PiecesResponse(self, pieces, held, end - begin, status, headers, media)

    def write_file(self, write: Write) -> "bytes | BodyFile":
        """Call `write` with a temporary file; return the written body. Blocks.

        A small body is returned as bytes, a large one as a BodyFile. Raises OSError if the disk is
        full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            write(file)
            size = file.seek(0, os.SEEK_END)
            if size > LARGE_BYTES:
                file.flush()
                return BodyFile(os.dup(file.fileno()), size)
            file.seek(0)
            return file.read()


def written_bytes(write: Write) -> bytes:
    """Call `write` with a file in memory; return the bytes that it has written."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


class BodyFile:
    """A body in a file without a name; the file is closed when this object is garbage-collected."""

    def __init__(self, file: int, size: int) -> None:
        """Keep `file`, the descriptor of an open file with `size` bytes, which this object closes."""
        self._file = file
        self.size = size
        weakref.finalize(self, os.close, file)

    def read(self, begin: int, end: int) -> bytes:
        """Return the bytes `begin` … `end` − 1."""
        return os.pread(self._file, end - begin, begin)


async def _pieces(read: Read, begin: int, end: int, first: list[bytes], read_bytes: int) -> AsyncGenerator[bytes]:
    """Yield the bytes `begin` … `end` − 1 in pieces, reading at most `read_bytes` at a time.

    `first` is a list with the first of these bytes if they were already read, otherwise empty.
    """
    at = begin
    while at < end:
        data = first.pop() if first else await asyncio.to_thread(read, at, min(at + read_bytes, end))
        if not data:
            raise OSError("the file of a response is shorter than it was")
        at += len(data)
        for offset in range(0, len(data), PIECE_BYTES):
            yield data[offset : offset + PIECE_BYTES]


class _PiecesResponse(Response):
    """A response that sends pieces; it ends when the client disconnects.

    Starlette's StreamingResponse would keep its last piece in memory after a disconnect, in a
    reference cycle.
    """

    def __init__(
        self,
        memory: LargeResponses,
        pieces: AsyncGenerator[bytes],
        held_bytes: int,
        size: int,
        status: int,
        headers: Mapping[str, str],
        media: str,
    ) -> None:
        super().__init__(None, status, {**headers, "Content-Length": str(size)}, media)
        self._memory = memory
        self._pieces = pieces
        self._held_bytes = held_bytes

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._memory.reserve(self._held_bytes):
                await self._send(receive, send)
        finally:
            await self._pieces.aclose()

    async def _send(self, receive: Receive, send: Send) -> None:
        """Send the response piece by piece; stop when the client disconnects."""
        disconnected = asyncio.create_task(_wait_for_disconnect(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in self._pieces:
                if disconnected.done():
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects; the caller cancels this when the response is sent.

    If reading the rest of the request's body raises ProblemError, a disconnect can no longer be
    noticed, and the wait does not end by itself.
    """
    with contextlib.suppress(ProblemError):  # of a body that nobody reads
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    await asyncio.get_running_loop().create_future()


class _BodyResponse(_PiecesResponse):
    """A response with a large body in memory.

    If, when it is to be sent, all large responses would hold too much memory, the body is moved to
    a file first.
    """

    def __init__(
        self, memory: LargeResponses, body: bytes, status: int, headers: Mapping[str, str], media: str
    ) -> None:
        self._bodies = [body]
        super().__init__(memory, _body_pieces(self._bodies), len(body), len(body), status, headers, media)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, from a file if its body does not fit into the memory of large responses.

        Raises OverloadedError, before anything is sent, if large responses would hold more bytes
        than the limit even then, and FullError if the disk is full.
        """
        size = len(self._bodies[0])
        if not self._memory.fits(size):
            try:
                file = await self._memory.run(self._memory.write_file, self._write)
            except OSError as error:
                raise storage_error(error) from error
            self._bodies.clear()
            assert isinstance(file, BodyFile)  # noqa: S101 - the body is large
            self._pieces = _pieces(file.read, 0, size, [], PIECE_BYTES)
            self._held_bytes = SENDING_BYTES
        await super().__call__(scope, receive, send)

    def _write(self, file: BinaryIO) -> None:
        """Write the body to a file."""
        file.write(self._bodies[0])


async def _body_pieces(bodies: list[bytes]) -> AsyncGenerator[bytes]:
    """Yield a body in pieces. `bodies` is a list with the body as its only item, and is emptied.

    The caller keeps no other reference, so the memory of the body is freed once it is sent.
    """
    for at in range(0, len(bodies[0]), PIECE_BYTES):
        yield bodies[0][at : at + PIECE_BYTES]
    bodies.clear()


class LimitedFileResponse(FileResponse):
    """A response with a file; its read buffer counts against the limit of all large responses."""

    chunk_size = PIECE_BYTES

    def __init__(
        self, memory: LargeResponses, path: Path, headers: Mapping[str, str], media: str, filename: str
    ) -> None:
        """Send the file at `path`, or the parts of it that `Range` asks for, as `filename`.

        `memory` counts the bytes that all large responses hold, and limits them.
        """
        super().__init__(path, headers=headers, media_type=media, filename=filename)
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the requested part of it.

        Raises OverloadedError if all large responses together would hold more bytes than the limit.
        """
        with self._memory.reserve(SENDING_BYTES):
            await super().__call__(scope, receive, send)
