"""Decodes images to be upscaled and encodes the upscaled ones, in threads.

Encoded images are kept in the blob store, from which they are sent as clients read them.
"""

import asyncio
import base64
import errno
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.errors import GONE, FullError, GoneError, NotAcceptableError, OverloadedError, ProblemError
from api.responses.large_responses import LargeResponses
from api.responses.render import JSON, ResultMetadata, choose
from api.responses.result_files import Rendering, ResultFile, ResultFiles, run_once
from core import tracing
from core.blobs import Blobs
from core.broker.codec import Fields
from core.files import unfinished_file
from core.imaging.decode import PictureFile
from core.imaging.encoders import FORMATS, JPEG, MEDIA, Shape, format_size_error, write
from core.imaging.pictures import Pixels
from core.imaging.tiling import Layout, Photograph, decode_photograph, restore_channels
from core.jobs.records import Job

T = TypeVar("T")

JSON_BYTES = 32 << 20  # larger files are not sent as base64 in JSON
_BASE64_BYTES = 768 << 10  # of a file that are encoded at once, a multiple of 3
# At most `_THREADS` pictures of more than `_LARGE_PIXELS` are decoded or encoded at the same time.
_LARGE_PIXELS, _THREADS = 4_000_000, 2


@dataclass(frozen=True)
class UpscaleSpec:
    """How to enlarge an image: its layout in tiles, the scale, and the default file format.

    `kind` is the name of the format, such as "png"; `quality`, 1 to 100, is that of JPEG and WebP.
    """

    layout: Layout
    scale: int
    kind: str
    quality: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the enlarged image in pixels."""
        return self.layout.tiling.height * self.scale, self.layout.tiling.width * self.scale

    @property
    def summary(self) -> dict[str, Any]:
        """The specification as JSON values, as a job's request stores it."""
        height, width = self.size
        result = {"width": width, "height": height, "format": self.kind, "quality": self.quality}
        return {**self.layout.json, **result, "scale": self.scale}

    @classmethod
    def read(cls, summary: Mapping[str, Any]) -> "UpscaleSpec":
        """Return the specification that is stored in a job's request."""
        return cls(Layout.read(summary), summary["scale"], summary["format"], summary["quality"])

    def conversions_to(self, kind: str) -> tuple[str, ...]:
        """Return messages about what the file format `kind` cannot store of the image.

        JPEG has no transparency, so a transparent image is composited over white; other formats
        store all.
        """
        return ("transparency over white",) if self.layout.alpha and kind == JPEG else ()

    def shape(self, kind: str) -> Shape:
        """Return the shape of the enlarged image in the file format `kind`.

        It has a transparency channel if the image has one and the format allows it.
        """
        return Shape(*self.size, self.layout.channels + (self.layout.alpha and kind != JPEG))


@dataclass(frozen=True)
class OutputFormat:
    """The format of a response: the image's file format, and whether the file is inside JSON."""

    kind: str
    json: bool

    @classmethod
    def read(cls, accept: str, kinds: Iterable[str]) -> "OutputFormat":
        """Return the file format that the header `accept` prefers, and whether it is sent in JSON.

        `kinds` are the offered formats, the default first, which is also the one in JSON. Raises
        NotAcceptableError if the header allows neither JSON nor any of the formats.
        """
        offered = {MEDIA[kind]: kind for kind in kinds}
        media = choose(accept, [*offered, JSON])
        return cls(offered.get(media, next(iter(offered.values()))), media == JSON)

    @property
    def media(self) -> str:
        """The media type of the response."""
        return JSON if self.json else MEDIA[self.kind]


@dataclass(frozen=True)
class StoredPicture(ResultFile):
    """An encoded image in the blob store.

    `constants` has the values of the job's result that are not per row, keyed by name; a JSON
    response contains them beside the image.
    """

    constants: Fields = field(default_factory=dict)


def storage_failed(error: OSError) -> ProblemError:
    """Return the error for an image that cannot be stored: 507 if the disk is full, else 503."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FullError("the disk has no room for this picture; delete ended jobs, or send a smaller picture")
    return OverloadedError(f"the picture could not be stored: {error.strerror}", retry_after_s=30)


class UpscaleService:
    """Decodes and encodes images in threads; only a few large ones at the same time."""

    def __init__(
        self,
        folder: Path,
        blobs: Blobs,
        responses: LargeResponses,
        result_chunks: Callable[[Job], Iterator[Fields]],
        presigned_url_s: float = 0.0,
    ) -> None:
        """Set the stores; unfinished files are written to `folder`.

        `result_chunks` returns an iterator over the result of a job in chunks.
        """
        self._folder = folder
        self._blobs = blobs
        self._result_chunks = result_chunks
        self._threads = ThreadPoolExecutor(_THREADS, "upscales")
        self._encoding: dict[str, asyncio.Task[StoredPicture]] = {}
        self._results = ResultFiles(blobs, folder, responses, self._has_input, presigned_url_s)

    async def _run(self, pixels: int, act: Callable[..., T], *args: Any) -> T:
        """Call `act` for an image of `pixels` pixels in a thread; return its result.

        For large images, only a few calls run at the same time, to limit memory; others wait.
        """
        threads = self._threads if pixels > _LARGE_PIXELS else None
        return await asyncio.get_running_loop().run_in_executor(threads, act, *args)

    async def decode(self, file: PictureFile) -> Photograph:
        """Return the pixels of an opened picture file, decoded in a thread.

        Raises UnusableImageError if it cannot be decoded.
        """
        width, height = file.size
        return await self._run(width * height, decode_photograph, file)

    async def _has_input(self, job_id: str) -> bool:
        """Return whether the stored inputs of a job exist."""
        return await asyncio.to_thread(self._blobs.exists, f"jobs/{job_id}/items")

    # --- synchronous requests ---

    async def render(
        self, spec: UpscaleSpec, alpha: Pixels | None, fields: Fields, metadata: ResultMetadata, output: OutputFormat
    ) -> bytes:
        """Return the body of the response for an upscaled image whose tiles are in memory.

        `alpha` is the transparency of the input image, if any; `fields` is the result with its
        tiles.
        """

        def encode() -> bytes:
            file = io.BytesIO()
            with tracing.span("encode", attributes={"reverie.media_type": output.media}):
                _encode(spec, output.kind, alpha, iter(fields["images"]), file)
                return _body(file.getvalue(), spec, metadata, output, _constants(fields))

        return await asyncio.to_thread(encode)

    # --- jobs ---

    async def respond(self, request: Request, job: Job, output: OutputFormat, headers: dict[str, str]) -> Response:
        """Return a succeeded job's image, or the part of it that `Range` asks for.

        The image is encoded and stored when the format `output` is requested for the first time.
        Raises GoneError if the job was deleted, NotAcceptableError if the image is too large for
        the format, and FullError or OverloadedError if the image cannot be stored.
        """
        spec = UpscaleSpec.read(job.request)
        reason = format_size_error(output.kind, *spec.size)
        if reason:
            raise NotAcceptableError(reason)
        conversions = (*job.request.get("conversions", ()), *spec.conversions_to(output.kind))
        metadata = ResultMetadata(job.model, job.version, job.seed, conversions)
        try:
            file = await self._stored_picture(job, spec, output.kind)
        except (LookupError, FileNotFoundError) as error:
            raise GoneError(GONE) from error
        except OSError as error:
            raise storage_failed(error) from error
        headers = {**metadata.headers({}), **headers}
        if not output.json:
            return await self._results.send(request, file, output.media, headers)
        if file.size > JSON_BYTES:
            raise NotAcceptableError(
                f"the picture has {file.size} bytes, more than the {JSON_BYTES} that come inside JSON; ask for "
                f"{MEDIA[output.kind]}"
            )

        async def render() -> Rendering:
            read = partial(self._blobs.get, file.key)

            def write_json(out: BinaryIO) -> None:
                pieces = (read(at, min(at + _BASE64_BYTES, file.size)) for at in range(0, file.size, _BASE64_BYTES))
                _write_json(pieces, spec, metadata, output, file.constants, out)

            return Rendering(write_json, file.size * 4 // 3, metadata.headers({}))

        return await self._results.respond(request, job.id, f"{output.kind}.json", JSON, render, headers)

    async def _stored_picture(self, job: Job, spec: UpscaleSpec, kind: str) -> StoredPicture:
        """Return a job's image in the file format `kind`; encode and store it at the first request.

        Concurrent requests share one encoding.
        """
        key, pixels = f"jobs/{job.id}/answer.{kind}", spec.size[0] * spec.size[1]
        return await run_once(
            self._encoding, key, lambda: self._run(pixels, self._find_or_encode, job, spec, kind, key)
        )

    def _find_or_encode(self, job: Job, spec: UpscaleSpec, kind: str, key: str) -> StoredPicture:
        """Return the image that is stored under `key`; if there is none, encode and store it.

        Raises LookupError if the job's result was deleted.
        """
        about_key = f"{key}.json"
        try:
            return StoredPicture(key, headers={}, **orjson.loads(self._blobs.get(about_key)))
        except FileNotFoundError:
            pass
        read = partial(self._blobs.get, f"jobs/{job.id}/items")
        alpha = spec.layout.transparency(read)
        constants: Fields = {}
        with unfinished_file(self._folder) as file:
            hashed = _HashedFile(file)
            _encode(spec, kind, alpha, _tiles(self._result_chunks(job), constants), hashed)  # type: ignore[arg-type]
            file.flush()
            self._blobs.take(key, Path(file.name), MEDIA[kind])
        about: dict[str, Any] = {"size": hashed.size, "digest": hashed.digest.hexdigest(), "constants": constants}
        self._blobs.put(about_key, orjson.dumps(about))
        if next(self._result_chunks(job), None) is None:  # it was deleted meanwhile
            self._blobs.delete(f"jobs/{job.id}")
            raise LookupError(job.id)
        return StoredPicture(key, headers={}, **about)


class _HashedFile:
    """A file that counts and hashes the bytes that are written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.size = 0
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _tiles(chunks: Iterator[Fields], constants: Fields) -> Iterator[Pixels]:
    """Yield the tiles in a result's chunks, in order.

    The numbers and strings in the chunks, which are not per row, are added to `constants`. Raises
    LookupError if the caller asks for a tile after the last one: a chunk is then missing.
    """
    for chunk in chunks:
        constants |= _constants(chunk)
        yield from chunk["images"]
    raise LookupError("tiles are missing")


def _encode(spec: UpscaleSpec, kind: str, alpha: Pixels | None, tiles: Iterator[Pixels], out: BinaryIO) -> None:
    """Join the tiles to an image and write it to `out` as a file of the format `kind`."""
    bands = spec.layout.tiling.bands(tiles, spec.scale)
    picture = restore_channels(bands, spec.layout.channels, alpha, spec.scale, opaque=kind == JPEG)
    write(kind, picture, spec.shape(kind), spec.quality, out)


def _body(file: bytes, spec: UpscaleSpec, metadata: ResultMetadata, output: OutputFormat, constants: Fields) -> bytes:
    """Return the body of a response for an image file: the file, or JSON that contains it as
    base64.
    """
    if not output.json:
        return file
    body = io.BytesIO()
    _write_json([file], spec, metadata, output, constants, body)
    return body.getvalue()


def _write_json(
    pieces: Iterable[bytes],
    spec: UpscaleSpec,
    metadata: ResultMetadata,
    output: OutputFormat,
    constants: Fields,
    out: BinaryIO,
) -> None:
    """Write JSON that contains an image file as base64 to `out`, piece by piece.

    `pieces` are the bytes of the file. The sizes of all pieces but the last must be multiples of 3,
    so that base64 needs no padding between them. `constants` are further fields of the JSON.
    """
    height, width = spec.size
    body = {
        "model": metadata.model,
        "version": metadata.version,
        "seed": metadata.seed,
        "scale": spec.scale,
        **constants,
    }
    body |= {"width": width, "height": height, "format": output.kind}
    out.write(orjson.dumps(body)[:-1] + b',"image":"')
    out.writelines(base64.b64encode(piece) for piece in pieces)
    out.write(b'"')
    if metadata.conversions:
        out.write(b',"conversions":' + orjson.dumps(list(metadata.conversions)))
    out.write(b"}")


def _constants(fields: Fields) -> Fields:
    """Return the values of a result that are not per row: its numbers and strings."""
    return {name: value for name, value in fields.items() if isinstance(value, str | int | float)}


def kinds_of(first: str) -> list[str]:
    """Return the names of all file formats of upscaled images, `first` before the others."""
    return [first, *(kind for kind in FORMATS if kind != first)]
