"""Results of upscale jobs are written to a file once, completely, and in the requested format."""

import asyncio
import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from api.errors import FullError, GoneError, NotAcceptableError, OverloadedError
from api.responses import upscaled as photographs
from api.responses.large_responses import LargeResponses
from api.responses.upscaled import OutputFormat, UpscaleService, UpscaleSpec, storage_failed
from core.blobs import open_blobs
from core.broker.codec import Fields
from core.imaging.encoders import FORMATS
from core.imaging.tiling import Layout, Photograph, Tiling, photograph_bytes
from core.jobs.records import Job

SIZE, SCALE = (50, 70), 2
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
ORDER = UpscaleSpec(Layout(Tiling(*SIZE, (32, 32), (4, 4)), 3, alpha=False), SCALE, "png", 90)


class Bench:
    """An upscale service with one finished job; `reads` counts how often its tiles were read."""

    def __init__(self, folder: Path) -> None:
        self.blobs = open_blobs(f"file://{folder / 'blobs'}")
        self.unfinished = folder / "unfinished"
        self.reads = 0
        self.gone = False
        self.room = UpscaleService(self.unfinished, self.blobs, LargeResponses(64 << 20, self.unfinished), self.pieces)
        self.blobs.put("jobs/job_1/items", photograph_bytes(Photograph(PIXELS)))
        self.job = Job(
            id="job_1",
            kind="upscales",
            model="m",
            version="1",
            method="upscale",
            seed=3,
            request=orjson.loads(orjson.dumps(ORDER.summary)),
        )

    def pieces(self, _job: Job) -> Iterator[Fields]:
        """Yield the job's enlarged tiles, two at a time; none once the job is `gone`."""
        tiling = ORDER.layout.tiling
        self.reads += 1
        tiles = tiling.cut(lambda begin, end: PIXELS[begin:end], 0, tiling.count)[:, :, 4:-4, 4:-4]
        for at in range(0, tiling.count, 2):
            if self.gone:
                return
            yield {"images": tiles[at : at + 2].repeat(SCALE, 2).repeat(SCALE, 3), "unit": "levels", "each": np.ones(2)}

    def inference_request(self, accept: str = "", **headers: str) -> Response:
        """Return the response to one request for the result."""
        return asyncio.run(self.respond(accept, **headers))

    async def respond(self, accept: str = "", **headers: str) -> Response:
        """Return the response to one request for the result, inside an event loop."""
        listed = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        request = Request({"type": "http", "method": "GET", "path": "/", "headers": listed})
        return await self.room.respond(request, self.job, OutputFormat.read(accept, FORMATS), {})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A new bench."""
    return Bench(tmp_path)


async def _bytes(response: Any) -> bytes:
    if hasattr(response, "body_iterator"):
        return b"".join([piece async for piece in response.body_iterator])
    return bytes(response.body)


def test_an_order_survives_its_job() -> None:
    """An `UpscaleSpec` is restored from the summary that its job stores."""
    assert UpscaleSpec.read(orjson.loads(orjson.dumps(ORDER.summary))) == ORDER
    assert ORDER.size == (100, 140)
    clear = UpscaleSpec(Layout(Tiling(*SIZE, (32, 32), (4, 4)), 1, alpha=True), 3, "webp", 50)
    assert [clear.shape(kind).channels for kind in FORMATS] == [2, 1, 2]


def test_concurrent_requests_for_a_file_share_one_write(bench: Bench) -> None:
    """Five concurrent requests share one write, later ones get the same file, and no unfinished
    file is left.
    """

    async def all_at_once() -> list[bytes]:
        answers = await asyncio.gather(*(bench.respond() for _ in range(5)))
        return [await _bytes(answer) for answer in answers]

    files = asyncio.run(all_at_once())
    assert bench.reads == 2  # the second looks whether the job is still there
    assert len(set(files)) == 1
    assert (np.asarray(Image.open(io.BytesIO(files[0]))) == PIXELS.repeat(SCALE, 0).repeat(SCALE, 1)).all()
    again = bench.inference_request()
    assert bench.reads == 2
    assert again.headers["content-length"] == str(len(files[0]))
    assert not list(bench.unfinished.iterdir())


def test_json_has_the_fields_of_the_model(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has the picture and the model's per-request fields; one too large for JSON is rejected
    with a media type that works.
    """
    answer = bench.inference_request("application/json")
    body = orjson.loads(answer.body)
    assert (body["unit"], body["format"], body["width"], body["height"]) == ("levels", "png", 140, 100)
    assert "each" not in body
    tag = answer.headers["etag"]
    assert bench.inference_request("application/json", if_none_match=tag).status_code == 304
    assert bench.inference_request("application/json", range="bytes=0-9").body == answer.body[:10]
    monkeypatch.setattr(photographs, "JSON_BYTES", 1000)
    with pytest.raises(NotAcceptableError, match="image/png"):
        bench.inference_request("application/json")


def test_a_deleted_job_leaves_no_file(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is deleted before or while its file is written raises GoneError and leaves no
    file.
    """
    bench.gone = True
    with pytest.raises(GoneError):
        bench.inference_request()
    bench.gone = False
    real = bench.blobs.put

    def put(key: str, data: bytes) -> None:
        bench.gone = True
        real(key, data)

    monkeypatch.setattr(bench.blobs, "put", put)
    with pytest.raises(GoneError):
        bench.inference_request()
    with pytest.raises(FileNotFoundError):
        bench.blobs.get("jobs/job_1/answer.png")


def test_a_full_disk_is_reported(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is 507 with advice; another storage error is 503."""
    assert isinstance(storage_failed(OSError(errno.ENOSPC, "No space left on device")), FullError)
    assert isinstance(storage_failed(OSError(errno.EIO, "Input/output error")), OverloadedError)

    def take(_key: str, _file: Path, _media: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bench.blobs, "take", take)
    with pytest.raises(FullError, match="smaller"):
        bench.inference_request()
    assert not list(bench.unfinished.iterdir())
