"""Uploads, multipart or raw, streamed to files in bounded memory."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from api.errors import InvalidError, MalformedError, StalledError, UnsupportedMediaError
from api.multipart import FORM, form_boundary

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IDLE_S = 60.0
_BLOCK_BYTES = 1 << 20
_MAX_FIELD_BYTES = 200
_CHUNK_OVERHEAD_BYTES = 100
"""Bytes of overhead of a buffered chunk; a client can send a form in chunks of one byte."""

_RAW = (
    "application/octet-stream",
    "application/zip",
    "application/x-zip-compressed",
    "application/gzip",
    "application/x-gzip",
    "application/x-npz",
)


class StreamingUpload:
    """The upload of one body: its files are written to a folder under the names of their fields.

    A body that is not a form is the first of `files`; its fields are in the query.
    """

    def __init__(self, folder: Path, files: Collection[str], fields: Collection[str], reserve_bytes: int) -> None:
        self._folder = folder
        self._files = tuple(files)
        self._known = tuple(fields)
        self._reserve_bytes = reserve_bytes
        self._open: dict[str, IO[bytes]] = {}
        self._buffer: list[tuple[str, bytes]] = []
        self._buffered_bytes = 0
        self.fields: dict[str, str] = {}

    async def read(self, request: Request) -> dict[str, str]:
        """Read the body and return its fields.

        Raises the ProblemError that says what is wrong with it, and OSError if the disk is full.
        """
        content_type = request.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind != FORM and kind not in _RAW:
            raise UnsupportedMediaError(
                f"{kind[:60] or 'a body without a Content-Type'} is not read here; send "
                f"multipart/form-data with a file `{self._files[0]}`, or the file itself as {_RAW[0]} with the other "
                "fields in the query"
            )
        for name, value in request.query_params.multi_items():
            self._add_field(name, value)
        try:
            await (self._form(request, form_boundary(content_type)) if kind == FORM else self._raw(request))
            await self._flush()
        finally:
            for file in self._open.values():
                file.close()
        if self._files[0] not in self._open:
            raise _field_error(self._files[0], "missing; send the file under this name")
        return self.fields

    async def _raw(self, request: Request) -> None:
        self._open_file(self._files[0])
        async for chunk in _chunks(request):
            await self._add_chunk(self._files[0], chunk)

    async def _form(self, request: Request, boundary: bytes) -> None:
        form = _Form(self._files, self._open_file, self._add_field, self._buffer_chunk)
        try:
            parser = MultipartParser(boundary, form.callbacks)
            async for chunk in _chunks(request):
                parser.write(chunk)
                if self._buffered_bytes >= _BLOCK_BYTES:
                    await self._flush()
        except FormParserError as error:
            raise MalformedError(f"the body is not multipart/form-data: {error}") from error
        if parser.state != MultipartState.END:
            raise MalformedError("the body ends before its last boundary; send it whole")

    def _open_file(self, name: str) -> None:
        """Open the file of a part. Raises InvalidError for a second one."""
        if name in self._open:
            raise _field_error(name, "sent twice; send one file")
        self._open[name] = (self._folder / name).open("wb")

    def _add_field(self, name: str, value: str) -> None:
        if name not in self._known:
            raise InvalidError(f"no such field: {name[:60]!r}; there are {', '.join((*self._files, *self._known))}")
        if not value.strip():
            return  # an empty field counts as left out
        if name in self.fields:
            raise _field_error(name, "given more than once; send it once")
        self.fields[name] = value

    def _buffer_chunk(self, name: str, data: bytes) -> None:
        self._buffer.append((name, data))
        self._buffered_bytes += len(data) + _CHUNK_OVERHEAD_BYTES

    async def _add_chunk(self, name: str, data: bytes) -> None:
        self._buffer_chunk(name, data)
        if self._buffered_bytes >= _BLOCK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Write the buffer in a thread, so that a busy disk does not block other requests."""
        chunks, self._buffer, self._buffered_bytes = self._buffer, [], 0
        await asyncio.to_thread(self._write, chunks)

    def _write(self, chunks: list[tuple[str, bytes]]) -> None:
        if shutil.disk_usage(self._folder).free < self._reserve_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, data in chunks:
            self._open[name].write(data)
        for file in self._open.values():
            file.flush()


class _Form:
    """The parser callbacks of one form."""

    def __init__(
        self,
        files: Collection[str],
        open_file: Callable[[str], None],
        put: Callable[[str, str], None],
        buffer_chunk: Callable[[str, bytes], None],
    ) -> None:
        self._files, self._open_file, self._put, self._buffer_chunk = files, open_file, put, buffer_chunk
        self._header = self._value = self._disposition = b""
        self._name, self._file, self._opened, self._text = "", False, False, b""
        self.callbacks: "MultipartCallbacks" = {
            "on_part_begin": self._part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
        }

    def _part(self) -> None:
        self._header = self._value = self._disposition = self._text = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedError("a part of the form has no name; give each one in its Content-Disposition")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._file = self._name in self._files
        # a browser sends a file field without a file as an empty part with an empty file name: no file is opened
        self._opened = self._file and bool(options.get(b"filename"))
        if self._opened:
            self._open_file(self._name)
        if not self._file and b"filename" in options:
            raise InvalidError(f"no file field {self._name[:60]!r}; the files' fields are `file` and `labels`")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            if not self._opened:
                self._open_file(self._name)
                self._opened = True
            self._buffer_chunk(self._name, data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise _field_error(
                self._name[:60], f"longer than {_MAX_FIELD_BYTES} bytes; only `file` and `labels` are files"
            )

    def _end(self) -> None:
        if not self._file:
            self._put(self._name, self._text.decode("utf-8", "replace"))


def _field_error(name: str, detail: str) -> InvalidError:
    return InvalidError(f"{name}: {detail}", errors=[{"field": name, "detail": detail}])


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the chunks of the body. Raises ClientDisconnect, and StalledError if none arrives for too long."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(IDLE_S):
                chunk = await anext(stream, None)
        except TimeoutError as error:
            detail = f"nothing of the body came for {IDLE_S:.0f} s before its end; send it again, whole"
            raise StalledError(detail, headers={"Connection": "close"}) from error
        if chunk is None:
            return
        yield chunk
