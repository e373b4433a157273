"""Renders results of jobs. A large result is rendered once and then kept in the blob store."""

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from api.errors import GONE, GoneError
from api.responses.large_responses import PIECE_BYTES, LargeResponses, Write, written_bytes
from api.responses.render import evaluate_range_headers
from core.blobs import Blobs
from core.files import unfinished_file

STORED_BYTES = 256 << 10  # smaller results are rendered for each request, in a few milliseconds
LINKED_BYTES = 1 << 20  # of results that a link to the object store is returned for
_CACHE_SIZE = 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Rendering:
    """How to make a response's body: `write` writes the body to a seekable file.

    `size_bytes` is an estimate of the body's size; a large body is written to the disk, not to
    memory. `headers` are those of the response.
    """

    write: Write
    size_bytes: int
    headers: dict[str, str]


Render = Callable[[], Awaitable[Rendering]]


async def run_once(running: dict[str, asyncio.Task[T]], key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Call `work` once for all concurrent callers with the same key; return its result to each.

    `running` has the tasks that run at present, keyed by key. A caller that is cancelled does not
    cancel the task.
    """
    task = running.get(key)
    if task is None:
        task = running[key] = asyncio.create_task(work())
        task.add_done_callback(lambda _task: running.pop(key, None))
    return await asyncio.shield(task)


@dataclass(frozen=True)
class ResultFile:
    """A rendered result with its SHA-256 in hex and its response headers.

    It is in the blob store under `key`, or in `data` if it is small or could not be stored.
    """

    key: str
    size: int
    digest: str
    headers: dict[str, str]
    data: bytes | None = None


class ResultFiles:
    """Renders results of jobs, stores them, and returns them as responses."""

    def __init__(
        self,
        blobs: Blobs,
        folder: Path,
        responses: LargeResponses,
        exists: Callable[[str], Awaitable[bool]],
        presigned_url_s: float = 0.0,
    ) -> None:
        """Set the stores. Unfinished files are in `folder`; `exists` returns whether a job exists.

        If a job is deleted while its result is rendered, the rendered file is deleted at the end.
        If `presigned_url_s` is not 0, a request for a large stored result is redirected to a link
        to the object store that is valid for so many seconds.
        """
        self._presigned_url_s = presigned_url_s
        self._blobs = blobs
        self._folder = folder
        self._responses = responses
        self._exists = exists
        self._rendering: dict[str, asyncio.Task[ResultFile]] = {}
        self._cache: OrderedDict[str, ResultFile] = OrderedDict()

    async def respond(
        self,
        request: Request,
        job_id: str,
        name: str,
        media: str,
        render: Render,
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Response:
        """Return the rendered result of a job, the requested range of it, or 304.

        `name` stands for the format of the result, which is stored under this name in the blob
        store; `render` makes it if it is not stored. `more_headers` are added to those of the
        rendering. Raises GoneError if the job or its stored result was deleted, and RangeError if
        the requested range lies outside the result.
        """
        return await self.send(request, await self.file(job_id, name, render, media), media, more_headers)

    async def send(self, request: Request, file: ResultFile, media: str, more_headers: Mapping[str, str]) -> Response:
        """Return a rendered result as a response, a byte range of it, or 304 if the client has it.

        If the settings allow it, a large result is a redirect (307) to the object store. Raises
        GoneError if the result's file was deleted, and RangeError if the requested range lies
        outside the result.
        """
        status, begin, end, headers = evaluate_range_headers(
            request, file.size, file.digest, {**file.headers, **more_headers}
        )
        if status == 304:
            return Response(status_code=304, headers=headers)
        if self._presigned_url_s and file.data is None and file.size >= LINKED_BYTES and request.method == "GET":
            link = await asyncio.to_thread(self._blobs.signed_url, file.key, self._presigned_url_s)
            if link is not None:  # the client sends its header `Range` there
                return RedirectResponse(link, 307, {**file.headers, **more_headers, "Cache-Control": "no-store"})
        return await self._response(file, begin, end, status, headers, media)

    async def whole(self, job_id: str, name: str, media: str, render: Render, headers: dict[str, str]) -> Response:
        """Return a 200 response with the complete result, whatever range the request asks for.

        `name` stands for the format of the result, which is stored under this name in the blob
        store; `render` makes it if it is not stored. `headers` are added to those of the rendering.
        Raises GoneError if the job or its stored result was deleted meanwhile.
        """
        file = await self.file(job_id, name, render, media)
        return await self._response(file, 0, file.size, 200, {**file.headers, **headers}, media)

    async def file(self, job_id: str, name: str, render: Render, media: str) -> ResultFile:
        """Return a job's result in one format; `name` stands for the format in the blob store.

        If the result is not stored in this format, `render` makes it. Concurrent calls for the same
        job and format share one rendering. Raises GoneError if the job was deleted meanwhile.
        """
        key = f"jobs/{job_id}/rendered.{name}"
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        return await run_once(self._rendering, key, lambda: self._find_or_render(job_id, key, render, media))

    async def _find_or_render(self, job_id: str, key: str, render: Render, media: str) -> ResultFile:
        """Return the result that is stored under `key`; if there is none, render and store it.

        Raises GoneError if the job was deleted meanwhile.
        """
        file = await asyncio.to_thread(self._find, key)
        if file is None:
            rendering = await render()
            try:
                run = self._responses.run if rendering.size_bytes >= STORED_BYTES else asyncio.to_thread
                file = await run(self._store, key, rendering, media)
            except FileNotFoundError as error:  # deleted meanwhile
                raise GoneError(GONE) from error
            if file.data is None and not await self._exists(job_id):
                await asyncio.to_thread(self._blobs.delete, f"jobs/{job_id}")
                raise GoneError(GONE)
        if file.data is None:
            self._cache[key] = file
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return file

    def _find(self, key: str) -> ResultFile | None:
        """Return the result that is stored under `key`; None if there is none or it cannot be read."""
        try:
            return ResultFile(key, **orjson.loads(self._blobs.get(f"{key}.about")))
        except (OSError, ValueError, TypeError):
            return None

    def _store(self, key: str, rendering: Rendering, media: str) -> ResultFile:
        """Make the body of a rendering and store it in the blob store under `key`. Blocks.

        A small body, or one that the full disk has no room for, is kept in memory. Raises
        FileNotFoundError if the job's result was deleted.
        """
        if rendering.size_bytes < STORED_BYTES:
            return self._store_bytes(key, written_bytes(rendering.write), rendering.headers)
        try:
            with unfinished_file(self._folder) as file:
                rendering.write(file)
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                if size < STORED_BYTES:
                    return self._in_memory(key, file.read(), rendering.headers)
                stored = ResultFile(key, size, hashlib.file_digest(file, "sha256").hexdigest(), rendering.headers)
                file.flush()
                self._blobs.take(key, Path(file.name), media)
                self._describe(stored)
                return stored
        except OSError:  # disk full: it is rendered for each request
            return self._in_memory(key, written_bytes(rendering.write), rendering.headers)

    def _store_bytes(self, key: str, body: bytes, headers: dict[str, str]) -> ResultFile:
        """Store a body under `key`; keep it in memory if it is small or cannot be stored."""
        file = self._in_memory(key, body, headers)
        if file.size >= STORED_BYTES:
            try:
                self._blobs.put(key, body)
                self._describe(file)
            except OSError:
                pass
            else:
                return replace(file, data=None)
        return file

    def _describe(self, file: ResultFile) -> None:
        """Store the size, SHA-256 and headers of a result beside its file."""
        about = {"size": file.size, "digest": file.digest, "headers": file.headers}
        self._blobs.put(f"{file.key}.about", orjson.dumps(about))

    @staticmethod
    def _in_memory(key: str, body: bytes, headers: dict[str, str]) -> ResultFile:
        """Return a result whose body is kept in memory."""
        return ResultFile(key, len(body), hashlib.sha256(body).hexdigest(), headers, body)

    async def _response(
        self, file: ResultFile, begin: int, end: int, status: int, headers: dict[str, str], media: str
    ) -> Response:
        """Return the bytes `begin` … `end` − 1 of a result as a response.

        Raises GoneError if the result's file was deleted.
        """
        if file.data is not None:
            return self._responses.of_body(file.data[begin:end], status, headers, media)
        step = self._blobs.read_bytes
        try:
            first = await asyncio.to_thread(self._blobs.get, file.key, begin, min(begin + step, end))
        except FileNotFoundError as error:  # deleted meanwhile
            self._cache.pop(file.key, None)
            raise GoneError(GONE) from error
        if end - begin <= PIECE_BYTES:
            return Response(first, status, headers, media)
        read = partial(self._blobs.get, file.key)
        return self._responses.of_pieces(read, begin, end, status, headers, media, first=first, read_bytes=step)
