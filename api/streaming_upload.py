"""Reads uploads, and writes their files to the disk as they arrive, in bounded memory."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import IO, TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header
from starlette.requests import Request

from api.errors import InvalidError, MalformedError, StalledError
from api.request_content import FORM, RAW, form_boundary, media_type, unsupported

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

IDLE_S = 60.0  # seconds without data after which an upload is rejected
_BLOCK_BYTES = 1 << 20
_MAX_FIELD_BYTES = 200
_MAX_WEBHOOK_BYTES = 4096
_CHUNK_OVERHEAD_BYTES = 100  # memory overhead of a buffered chunk; a client can send chunks of one byte
_ARCHIVES = ("zip", "x-zip-compressed", "gzip", "x-gzip", "x-npz")
_FILE_TYPES = (RAW, *(f"application/{name}" for name in _ARCHIVES))


# See docs/decisions.md#uploads-are-parsed-with-python-multipart-not-streaming-form-data
class StreamingUpload:
    """Reads the body of an upload; writes each file to a folder, under the name of its field.

    The body is a form, or it is the file of the first field in `files`; the other fields are then
    in the query.
    """

    def __init__(self, folder: Path, files: Collection[str], fields: Collection[str], reserve_bytes: int) -> None:
        """Accept only files and fields with the names in `files` and `fields`.

        Files are written to `folder` as long as `reserve_bytes` bytes of the disk stay free.
        """
        self._folder = folder
        self.files = tuple(files)
        self._known = tuple(fields)
        self._reserve_bytes = reserve_bytes
        self._open: dict[str, IO[bytes]] = {}
        self._buffer: list[tuple[str, bytes]] = []
        self._buffered_bytes = 0
        self.fields: dict[str, str] = {}
        self.filenames: dict[str, str] = {}  # the client's names of the files, keyed by field

    async def read(self, request: Request) -> dict[str, str]:
        """Read the body, write its files to the folder, and return its other fields, keyed by name.

        Raises UnsupportedMediaError, MalformedError, InvalidError or StalledError for a body that
        is not a valid upload, ClientDisconnect if the client disconnects, and OSError (ENOSPC) if
        the disk is full.
        """
        content_type = request.headers.get("content-type", "")
        media = media_type(content_type)
        if media != FORM and media not in _FILE_TYPES:
            form = f"multipart/form-data with a file `{self.files[0]}`"
            raise unsupported(media, f"send {form}, or the file itself as {RAW} with the other fields in the query")
        for name, value in request.query_params.multi_items():
            self.add_field(name, value)
        boundary = form_boundary(content_type) if media == FORM else None
        try:
            await self._read_body(request, boundary)
            await self._flush()
        finally:
            for file in self._open.values():
                file.close()
        if self.files[0] not in self._open:
            raise InvalidError.in_field(self.files[0], "missing; send the file under this name")
        return self.fields

    async def _read_body(self, request: Request, boundary: bytes | None) -> None:
        """Read a body: a form, or a single file if `boundary` is None.

        `boundary` separates the parts of the form.
        """
        try:
            parser = None if boundary is None else MultipartParser(boundary, _FormCallbacks(self).callbacks)
            if parser is None:
                self.open_file(self.files[0])
            async for chunk in _chunks(request):
                if parser is None:
                    self.add_data(self.files[0], chunk)
                else:
                    parser.write(chunk)
                if self._buffered_bytes >= _BLOCK_BYTES:
                    await self._flush()
        except FormParserError as error:
            raise MalformedError(f"the body is not multipart/form-data: {error}") from error
        if parser is not None and parser.state != MultipartState.END:
            raise MalformedError("the body ends before its last boundary; send it whole")

    def open_file(self, name: str) -> None:
        """Open the file for the form part `name`.

        Raises InvalidError if the form has two parts with this name.
        """
        if name in self._open:
            raise InvalidError.in_field(name, "sent twice; send one file")
        self._open[name] = (self._folder / name).open("wb")

    def add_field(self, name: str, value: str) -> None:
        """Add a field; an empty one is ignored.

        Raises InvalidError for an unknown field, and for one that is given twice.
        """
        if name not in self._known:
            detail = f"no such field: {name[:60]!r}; there are {', '.join((*self.files, *self._known))}"
            raise InvalidError.in_fields([name[:60]], detail)
        if not value.strip():
            return
        if name in self.fields:
            raise InvalidError.in_field(name, "given more than once; send it once")
        self.fields[name] = value

    def add_data(self, name: str, data: bytes) -> None:
        """Add data of the file `name` to a buffer in memory, which is later written to the disk."""
        self._buffer.append((name, data))
        self._buffered_bytes += len(data) + _CHUNK_OVERHEAD_BYTES

    async def _flush(self) -> None:
        """Write the buffered data to its files, in a thread, so that other requests do not wait.

        Raises OSError (ENOSPC) if fewer than `reserve_bytes` bytes of the disk are free.
        """
        chunks, self._buffer, self._buffered_bytes = self._buffer, [], 0
        await asyncio.to_thread(self._write, chunks)

    def _write(self, chunks: list[tuple[str, bytes]]) -> None:
        """Write chunks of data to their files. Raises OSError (ENOSPC) if the disk is too full."""
        if shutil.disk_usage(self._folder).free < self._reserve_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, data in chunks:
            self._open[name].write(data)
        for file in self._open.values():
            file.flush()


class _FormCallbacks:
    """The callbacks of a form's parser, which collect the headers and data of each part in turn."""

    def __init__(self, upload: StreamingUpload) -> None:
        self._upload = upload
        self._header = self._value = self._disposition = b""
        self._name, self._is_file, self._opened, self._text = "", False, False, b""
        self.callbacks: "MultipartCallbacks" = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
        }

    def _begin_part(self) -> None:
        self._header = self._value = self._disposition = self._text = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _end_headers(self) -> None:
        """Read the name of a form part from its headers; open its file if it is a file field.

        Raises MalformedError for a part without a name, and InvalidError for an unknown file field.
        """
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise MalformedError("a part of the form has no name; give each one in its Content-Disposition")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._is_file = self._name in self._upload.files
        # for a file field without a file, browsers send an empty part with an empty file name: no
        # file is opened
        self._opened = self._is_file and bool(options.get(b"filename"))
        if self._opened:
            self._upload.open_file(self._name)
            self._upload.filenames[self._name] = options[b"filename"].decode("utf-8", "replace")[:_MAX_FIELD_BYTES]
        if not self._is_file and b"filename" in options:
            detail = f"no file field {self._name[:60]!r}; the files' fields are `file` and `labels`"
            raise InvalidError.in_fields([self._name[:60]], detail)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        """Add data to the part's file or text. Raises InvalidError if the text is too long."""
        if self._is_file:
            if not self._opened:
                self._upload.open_file(self._name)
                self._opened = True
            self._upload.add_data(self._name, data[start:end])
            return
        self._text += data[start:end]
        limit = _MAX_WEBHOOK_BYTES if self._name == "webhook" else _MAX_FIELD_BYTES
        if len(self._text) > limit:
            detail = f"longer than {limit} bytes; only `file` and `labels` are files"
            raise InvalidError.in_field(self._name[:60], detail)

    def _end_part(self) -> None:
        if not self._is_file:
            self._upload.add_field(self._name, self._text.decode("utf-8", "replace"))


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the chunks of a request's body.

    Raises ClientDisconnect if the client disconnects, and StalledError if no chunk arrives for
    `IDLE_S` seconds.
    """
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
