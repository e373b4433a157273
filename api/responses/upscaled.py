"""Photographs on their way in and out of the API: decoded and written in threads, kept in the blob store, streamed."""

import asyncio
import base64
import errno
import fcntl
import hashlib
import io
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.errors import GONE, FullError, GoneError, NotAcceptableError, OverloadedError, ProblemError
from api.responses.render import JSON, About, choose, window
from api.responses.result_files import ResultFiles
from core.blobs import Blobs
from core.broker.codec import Fields
from core.imaging.decode import PictureFile
from core.imaging.encoders import FORMATS, JPEG, MEDIA, Shape, fault, write
from core.imaging.pictures import Pixels
from core.imaging.tiling import Layout, Photograph, decoded, finished
from core.jobs.records import Job

T = TypeVar("T")

JSON_BYTES = 32 << 20
"""Larger files are not given as base64 inside JSON."""

_AT_ONCE, _LARGE_PIXELS = 2, 4_000_000
"""Pictures of more pixels than that are decoded and written so many at a time, since they take time and memory."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class UpscaleSpec:
    """What is to become of a picture: how much larger, and in which format it is answered unless asked otherwise."""

    layout: Layout
    scale: int
    kind: str
    quality: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the answer."""
        return self.layout.tiling.height * self.scale, self.layout.tiling.width * self.scale

    @property
    def said(self) -> dict[str, Any]:
        """The same as a job's request says it."""
        height, width = self.size
        answer = {"width": width, "height": height, "format": self.kind, "quality": self.quality}
        return {**self.layout.said, **answer, "scale": self.scale}

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> "UpscaleSpec":
        """The order that a job's request says."""
        return cls(Layout.read(said), said["scale"], said["format"], said["quality"])

    def lost(self, kind: str) -> tuple[str, ...]:
        """What a format cannot keep, as a conversion."""
        return ("transparency over white",) if self.layout.alpha and kind == JPEG else ()

    def shape(self, kind: str) -> Shape:
        """Of the answer in a format."""
        return Shape(*self.size, self.layout.channels + (self.layout.alpha and kind != JPEG))


@dataclass(frozen=True)
class Wish:
    """The form a client wants a picture in: the format of the file, and whether inside JSON."""

    kind: str
    json: bool

    @classmethod
    def read(cls, accept: str, kinds: Iterable[str]) -> "Wish":
        """What `Accept` wishes of these formats, the first where it does not care. Raises NotAcceptableError."""
        offered = {MEDIA[kind]: kind for kind in kinds}
        media = choose(accept, [*offered, JSON])
        return cls(offered.get(media, next(iter(offered.values()))), media == JSON)

    @property
    def media(self) -> str:
        """The answer's media type."""
        return JSON if self.json else MEDIA[self.kind]


@dataclass(frozen=True)
class File:
    """A written picture in the blob store, and what is said of it beside."""

    key: str
    size: int
    digest: str
    constants: Fields


def unwritten(error: OSError) -> ProblemError:
    """What a client is told where a picture could not be stored."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return FullError("the disk has no room for this picture; delete ended jobs, or send a smaller picture")
    return OverloadedError(f"the picture could not be stored: {error.strerror}", headers={"Retry-After": "30"})


class UpscaleService:
    """Decodes what comes in and writes what goes out, in threads of its own, a few pictures at a time."""

    def __init__(self, folder: Path, blobs: Blobs, pieces: Callable[[Job], Iterator[Fields]]) -> None:
        """`folder` is for unfinished files, `pieces` gives what a job has computed."""
        self._folder = folder
        self._blobs = blobs
        self._pieces = pieces
        self._threads = ThreadPoolExecutor(_AT_ONCE, "darkroom")
        self._making: dict[str, asyncio.Task[File]] = {}
        self._results = ResultFiles(blobs, self._is_there)

    async def _run(self, pixels: int, act: Callable[..., T], *args: Any) -> T:
        """Something with so many pixels, in a thread: large pictures a few at a time, small ones at once."""
        threads = self._threads if pixels > _LARGE_PIXELS else None
        return await asyncio.get_running_loop().run_in_executor(threads, act, *args)

    async def decode(self, file: PictureFile) -> Photograph:
        """The pixels of an opened picture. Raises UnusableImageError."""
        return await self._run(file.width * file.height, decoded, file)

    async def _is_there(self, job_id: str) -> bool:
        return await asyncio.to_thread(self._blobs.exists, f"jobs/{job_id}/items")

    # --- a picture that a client waits for ---

    async def answer(self, order: UpscaleSpec, alpha: Pixels | None, fields: Fields, about: About, wish: Wish) -> bytes:
        """The body for a picture whose tiles are at hand."""

        def make() -> bytes:
            out = io.BytesIO()
            _write(order, wish.kind, alpha, iter(fields["images"]), out)
            return _body(out.getvalue(), order, about, wish, _constants(fields))

        return await asyncio.to_thread(make)

    # --- a job's picture ---

    async def respond(self, request: Request, job: Job, wish: Wish, headers: dict[str, str]) -> Response:
        """A succeeded job's picture, or the part of it that `Range` asks for. Raises GoneError."""
        asked = job.request
        order = UpscaleSpec.read(asked)
        wrong = fault(wish.kind, *order.size)
        if wrong:
            raise NotAcceptableError(wrong)
        notes = (*asked.get("conversions", ()), *order.lost(wish.kind))
        about = About(job.model, job.version, job.seed, notes)
        try:
            file = await self._file(job, order, wish.kind)
        except (LookupError, FileNotFoundError) as error:
            raise GoneError(GONE) from error
        except OSError as error:
            raise unwritten(error) from error
        headers = {**about.headers({}), **headers}
        if not wish.json:
            return self._streamed(request, file, wish.media, headers)
        if file.size > JSON_BYTES:
            raise NotAcceptableError(
                f"the picture has {file.size} bytes, more than the {JSON_BYTES} that come inside JSON; ask for "
                f"{MEDIA[wish.kind]}"
            )

        async def render() -> tuple[bytes, dict[str, str]]:
            make = partial(_body, order=order, about=about, wish=wish, constants=file.constants)
            return await asyncio.to_thread(lambda: make(self._blobs.get(file.key))), about.headers({})

        return await self._results.respond(request, job.id, f"{wish.kind}.json", JSON, render, headers)

    def _streamed(self, request: Request, file: File, media: str, headers: dict[str, str]) -> Response:
        status, begin, end, headers = window(request, file.size, file.digest, headers)
        if status == 304:
            return Response(status_code=304, headers=headers)

        async def read() -> AsyncIterator[bytes]:
            for at in range(begin, end, _CHUNK):
                yield await asyncio.to_thread(self._blobs.get, file.key, at, min(at + _CHUNK, end))

        return StreamingResponse(read(), status, {**headers, "Content-Length": str(end - begin)}, media)

    async def _file(self, job: Job, order: UpscaleSpec, kind: str) -> File:
        """The picture in this format, written once however many ask for it."""
        key = f"jobs/{job.id}/answer.{kind}"
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._run(order.size[0] * order.size[1], self._made, job, order, kind, key))
            self._making[key] = task
            task.add_done_callback(lambda _task: self._making.pop(key, None))
        return await asyncio.shield(task)

    def _made(self, job: Job, order: UpscaleSpec, kind: str, key: str) -> File:
        """The file as it was written before, or now."""
        note = f"{key}.json"
        try:
            return File(key, **orjson.loads(self._blobs.get(note)))
        except FileNotFoundError:
            pass
        read = partial(self._blobs.get, f"jobs/{job.id}/items")
        alpha = order.layout.transparency(read)
        constants: Fields = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
            path = Path(file.name)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # a sweep removes what nobody is writing
                hashed = _Hashed(file)
                _write(order, kind, alpha, _tiles(self._pieces(job), constants), hashed)  # type: ignore[arg-type]
                file.flush()
                self._blobs.take(key, path)
            finally:
                path.unlink(missing_ok=True)
        said: dict[str, Any] = {"size": hashed.size, "digest": hashed.digest.hexdigest(), "constants": constants}
        self._blobs.put(note, orjson.dumps(said))
        if next(self._pieces(job), None) is None:  # it was deleted meanwhile
            self._blobs.delete(f"jobs/{job.id}")
            raise LookupError(job.id)
        return File(key, **said)


class _Hashed:
    """A file that knows how much was written to it, and the hash of that."""

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


def _tiles(pieces: Iterator[Fields], constants: Fields) -> Iterator[Pixels]:
    """All tiles, one after the other; into `constants` what else the pieces say."""
    for piece in pieces:
        constants |= _constants(piece)
        yield from piece["images"]
    raise LookupError("tiles are missing")


def _write(order: UpscaleSpec, kind: str, alpha: Pixels | None, tiles: Iterator[Pixels], out: BinaryIO) -> None:
    bands = order.layout.tiling.bands(tiles, order.scale)
    whole = finished(bands, order.layout.channels, alpha, order.scale, opaque=kind == JPEG)
    write(kind, whole, order.shape(kind), order.quality, out)


def _body(file: bytes, order: UpscaleSpec, about: About, wish: Wish, constants: Fields) -> bytes:
    if not wish.json:
        return file
    height, width = order.size
    body = {"model": about.model, "version": about.version, "seed": about.seed, "scale": order.scale, **constants}
    body |= {"width": width, "height": height, "format": wish.kind, "image": base64.b64encode(file).decode()}
    if about.notes:
        body["conversions"] = list(about.notes)
    return orjson.dumps(body)


def _constants(fields: Fields) -> Fields:
    """What is said of the whole picture and not of a tile."""
    return {name: value for name, value in fields.items() if isinstance(value, str | int | float)}


def kinds_of(first: str) -> list[str]:
    """All formats, this one first."""
    return [first, *(kind for kind in FORMATS if kind != first)]
