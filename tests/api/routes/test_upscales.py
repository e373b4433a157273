"""Upscales over HTTP: results, formats, jobs, cancellation, rejections and crashes."""

import contextlib
import io
import re
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from api.routes.upscales import MAX_SYNC_TILES
from tests.api.helpers import (
    ENLARGE,
    MODEL,
    b64,
    decode_image,
    decode_image_base64,
    encode_image,
    finished_job,
    job_when,
    post_samples,
    problem,
)
from tests.stack import Stack
from tests.waiting import wait_until

PATH = "/v1/upscales"
ASYNC = {"Prefer": "respond-async"}
CORE = 24
RADIUS = 3  # of the family `enlarge`; importing it here would precede the shape checks


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return random pixels."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Return the pixels as a PNG file."""
    return encode_image(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def enlarged(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Return the result of the family `enlarge`, method `nearest`, for a whole image."""
    return pixels.repeat(scale, 0).repeat(scale, 1)


def smoothed(pixels: np.ndarray, scale: int) -> np.ndarray:
    """Return the result of the family `enlarge`, method `smooth`: each pixel is the mean of its
    neighbourhood, mirrored at the edges.
    """
    height, width, _ = pixels.shape
    around = np.pad(pixels, ((RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)), "symmetric").astype(int)
    side = 2 * RADIUS + 1
    sums = sum(around[y : y + height, x : x + width] for y in range(side) for x in range(side))
    return enlarged(np.rint(sums / side**2).astype(np.uint8), scale)


def upscaled(
    client: httpx.Client, file: bytes, /, headers: dict[str, str] | None = None, **fields: Any
) -> httpx.Response:
    """Return the response to one image as a multipart file."""
    data = {name: str(value) for name, value in fields.items()}
    return client.post(PATH, files={"image": ("picture", file)}, data=data, headers=headers)


def create_upscale_job(client: httpx.Client, file: bytes, **fields: Any) -> str:
    """Send an image that must become a job; return the job's id."""
    response = upscaled(client, file, ASYNC, **fields)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


# --- results ---


@pytest.mark.parametrize("size", [(1, 1), (1, 60), (24, 24), (25, 49), (70, 50)])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_make_the_whole_picture(client: httpx.Client, size: tuple[int, int], scale: int) -> None:
    """An image upscaled in tiles equals, bit for bit, the whole image upscaled in one piece, for
    any size.
    """
    pixels = noise(*size)
    response = upscaled(client, png(pixels), scale=scale, method="smooth")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["reverie-model"] == f"{ENLARGE}@1"
    assert (decode_image(response.content) == smoothed(pixels, scale)).all()


def test_a_large_picture_is_a_job_and_looks_the_same(client: httpx.Client) -> None:
    """An image of more than `MAX_SYNC_TILES` tiles is run as a job; a waiting client gets the image
    and the URL of the result.
    """
    pixels = noise(9 * CORE, 8 * CORE)
    response = upscaled(client, png(pixels), scale=2, method="smooth")
    assert response.status_code == 200
    assert (decode_image(response.content) == smoothed(pixels, 2)).all()
    again = client.get(response.headers["content-location"])
    assert again.content == response.content
    job = client.get(response.headers["content-location"].removesuffix("/result")).json()
    assert (job["kind"], job["status"], job["request"]["tiles"]["count"]) == ("upscales", "succeeded", 72)
    assert MAX_SYNC_TILES < 72


def test_every_way_to_send_one_means_the_same(client: httpx.Client) -> None:
    """A multipart file, a raw body, base64 and a data URL give the same bytes, as does a job."""
    file = png(noise(30, 40))
    whole: dict[str, Any] = {"scale": 2, "seed": 7}
    responses = [
        upscaled(client, file, **whole),
        upscaled(client, file, **whole, model=ENLARGE, options='{"method": "nearest"}'),
        client.post(PATH, params={**whole, "method": "nearest"}, content=file, headers={"Content-Type": "image/png"}),
        client.post(PATH, params=whole, content=file, headers={"Content-Type": "application/octet-stream"}),
        client.post(PATH, json={"image": b64(file), **whole}),
        client.post(PATH, json={"image": f"data:image/png;base64,{b64(file)}", "options": {"scale": 2}, "seed": 7}),
        client.post(PATH, data={**whole, "image": b64(file)}),
    ]
    job_id = create_upscale_job(client, file, **whole)
    finished_job(client, job_id)
    responses.append(client.get(f"/v1/jobs/{job_id}/result"))
    good = [response for response in responses if response.status_code == 200]
    assert len(good) == len(responses) - 1, [
        response.text[:200] for response in responses if response.status_code != 200
    ]
    problem(responses[6], 415, "multipart/form-data", "`image`")
    assert len({response.content for response in good}) == 1


@pytest.mark.parametrize(
    ("accept", "fields", "media"),
    [
        (None, {}, "image/png"),
        ("*/*", {}, "image/png"),
        ("image/*", {}, "image/png"),
        ("image/jpeg", {}, "image/jpeg"),
        ("image/webp, image/png;q=0.5", {}, "image/webp"),
        (None, {"format": "jpeg"}, "image/jpeg"),
        ("image/*", {"format": "webp"}, "image/webp"),
        ("application/json", {}, "application/json"),
        ("application/json", {"format": "jpeg"}, "application/json"),
    ],
)
def test_the_client_chooses_the_form(client: httpx.Client, accept: str | None, fields: Any, media: str) -> None:
    """`Accept` and `format` select the file format, also of a job's result."""
    pixels = smoothed(noise(40, 30), 1)
    headers = {"Accept": accept} if accept else {}
    response = upscaled(client, png(pixels), headers, scale=2, seed=1, **fields)
    assert (response.status_code, response.headers["content-type"]) == (200, media), response.text[:300]
    assert "Accept" in response.headers["vary"]
    file = response.content
    if media == "application/json":
        body = response.json()
        assert set(body) == {"model", "version", "seed", "scale", "image", "format", "width", "height"}
        assert (body["width"], body["height"], body["format"]) == (60, 80, fields.get("format", "png"))
        assert np.abs(decode_image_base64(body["image"]).astype(int) - enlarged(pixels, 2)).mean() < 8
    else:
        image = Image.open(io.BytesIO(file))
        assert (image.format or "").lower() == media.removeprefix("image/")
        assert np.abs(np.asarray(image).astype(int) - enlarged(pixels, 2)).mean() < 8
    job = upscaled(client, png(pixels), {**headers, **ASYNC}, scale=2, seed=1, **fields).json()
    finished_job(client, job["id"])
    assert client.get(job["links"]["result"], headers=headers).content == file


def test_the_client_chooses_the_quality(client: httpx.Client) -> None:
    """A higher `quality` makes a larger JPEG or WebP file."""
    file = png(noise(40, 40))
    for kind in ("jpeg", "webp"):
        low, high = (upscaled(client, file, format=kind, quality=one, seed=1).content for one in (20, 95))
        assert len(low) < len(high)


def test_grey_and_transparency_are_kept(client: httpx.Client) -> None:
    """Grey stays grey, and transparency is enlarged separately; JPEG has none, which `conversions`
    lists.
    """
    grey = noise(30, 30, 1)
    assert (decode_image(upscaled(client, png(grey), scale=2).content) == enlarged(grey, 2)[:, :, 0]).all()
    clear = noise(30, 30, 4) | np.array([0, 0, 0, 1], np.uint8)
    smooth = np.asarray(Image.fromarray(clear[:, :, 3]).resize((60, 60), Image.Resampling.BICUBIC))
    job_id = create_upscale_job(client, png(clear), scale=2)
    finished_job(client, job_id)
    for response in (upscaled(client, png(clear), scale=2), client.get(f"/v1/jobs/{job_id}/result")):
        made = decode_image(response.content)
        assert (made[:, :, :3] == enlarged(clear[:, :, :3], 2)).all()
        assert (made[:, :, 3] == smooth).all()
    flat = upscaled(client, png(clear), scale=2, format="jpeg")
    assert Image.open(io.BytesIO(flat.content)).mode == "RGB"
    assert flat.headers["reverie-conversions"] == "transparency over white"
    later = client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "image/jpeg", "Range": "bytes=0-9"})
    assert (later.status_code, later.headers["reverie-conversions"]) == (206, "transparency over white")


def test_location_and_camera_are_not_returned(client: httpx.Client) -> None:
    """The EXIF orientation is applied, other metadata is dropped, and the response lists the
    conversions.
    """
    image = Image.fromarray(noise(20, 30))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera of a certain kind"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    file = encode_image(image, exif=exif)
    for kind in ("png", "jpeg", "webp"):
        response = upscaled(client, file, scale=2, format=kind, quality=100)
        made = Image.open(io.BytesIO(response.content))
        assert made.size == (40, 60)
        assert not made.getexif()
        assert b"camera" not in response.content
        assert response.headers["reverie-conversions"] == "turned upright"
    body = upscaled(client, file, {"Accept": "application/json"}, scale=2).json()
    assert body["conversions"] == ["turned upright"]
    assert (decode_image_base64(body["image"]) == enlarged(np.rot90(noise(20, 30), -1), 2)).all()


# --- synchronous and asynchronous requests ---


def test_a_picture_is_made_once_under_its_key(client: httpx.Client) -> None:
    """The same file under the same Idempotency-Key returns the same job; another file is
    rejected.
    """
    file, key = png(noise(30, 31)), {"Idempotency-Key": "picture"}
    first = upscaled(client, file, key, scale=2)
    assert first.status_code == 200, first.text
    again = upscaled(client, file, key, scale=2)
    assert again.content == first.content
    assert again.headers["content-location"] == first.headers["content-location"]
    problem(upscaled(client, png(noise(31, 30)), key, scale=2), 422, "another key")


def test_progress_goes_by_tile(client: httpx.Client) -> None:
    """Progress is reported by tile; the result has an ETag and supports 304, 206 and 416."""
    job_id = create_upscale_job(client, png(noise(12 * CORE, 12 * CORE)), scale=2, seconds=0.03)
    stream = client.get(f"/v1/jobs/{job_id}/events").text
    reached_ = [float(one) for one in re.findall(r'"progress":([\d.]+)', stream)]
    assert len(reached_) >= 4
    assert reached_ == sorted(reached_)
    assert stream.rstrip().endswith('{"status":"succeeded"}')
    path = f"/v1/jobs/{job_id}/result"
    whole = client.get(path)
    tag, size = whole.headers["etag"], len(whole.content)
    assert int(whole.headers["content-length"]) == size
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    part = client.get(path, headers={"Range": "bytes=100-299", "If-Range": tag})
    assert (part.status_code, part.headers["content-range"]) == (206, f"bytes 100-299/{size}")
    assert part.content == whole.content[100:300]
    problem(client.get(path, headers={"Range": f"bytes={size}-"}), 416, str(size))
    assert client.head(path).headers["etag"] == tag
    jpeg = client.get(path, headers={"Accept": "image/jpeg"})
    assert jpeg.headers["content-type"] == "image/jpeg"
    assert jpeg.headers["etag"] != tag


def test_a_request_that_waits_too_long_becomes_a_job(client: httpx.Client) -> None:
    """A request that exceeds its wait becomes a job and is completed, whether its tiles are in
    memory or in the blob store.
    """
    for tiles, seconds in ((3, 0.4), (9, 0.02)):
        pixels = noise(tiles * CORE, tiles * CORE)
        response = upscaled(client, png(pixels), {"Prefer": "wait=1"}, scale=2, seconds=seconds)
        assert response.status_code == 202, tiles
        problem(client.get(response.json()["links"]["result"]), 409, "wait")
        job = finished_job(client, response.json()["id"])
        assert job["status"] == "succeeded"
        assert (decode_image(client.get(job["links"]["result"]).content) == enlarged(pixels, 2)).all()


def test_cancel_stops_mid_picture(client: httpx.Client) -> None:
    """After cancellation the remaining tiles are not computed, and there is no result."""
    job_id = create_upscale_job(client, png(noise(12 * CORE, 12 * CORE)), scale=2, seconds=0.05)
    job_when(client, job_id, lambda job: 0 < job["progress"] < 1)
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert _settled(client) < 144
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["status"] == "cancelled"
    assert job["progress"] < 1
    problem(client.get(job["links"]["result"]), 409, "cancelled")


def _rows(client: httpx.Client) -> int:
    """Return the number of tiles that the workers have computed so far."""
    page = client.get("/metrics").text
    found = re.findall(r'^reverie_worker_rows_total\{[^}]*"upscale"[^}]*\} ([\d.e+]+)$', page, re.MULTILINE)
    return int(sum(map(float, found)))


def _batches(client: httpx.Client) -> int:
    page = client.get("/metrics").text
    return int(sum(map(float, re.findall(r"^reverie_worker_batches_total\{[^}]*\} ([\d.e+]+)$", page, re.MULTILINE))))


def _settled(client: httpx.Client) -> int:
    """Wait until no more tiles are computed; return how many were computed meanwhile."""
    started = before = _rows(client)
    while True:
        time.sleep(2.6)  # longer than a pass of these tests
        now = _rows(client)
        if now == before:
            return now - started
        before = now


@pytest.mark.parametrize("tiles", [8, 12], ids=["in memory", "in the store"])
def test_work_stops_when_the_client_disconnects(client: httpx.Client, stack: Stack, tiles: int) -> None:
    """If the client disconnects, the remaining tiles are not computed, and no job is left."""
    _settled(client)
    before = _rows(client)
    body = png(noise(tiles * CORE, tiles * CORE))
    head = f"POST {PATH}?scale=2&seconds=0.15 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: _rows(client) != before, "a row was computed")
    _settled(client)
    assert _rows(client) - before < tiles**2 * 0.8
    unfinished = [job for job in client.get("/v1/jobs").json()["data"] if job["status"] in {"queued", "running"}]
    assert not unfinished


def test_tiles_of_several_requests_share_passes(client: httpx.Client) -> None:
    """Tiles of concurrent requests share batches, and each request gets its own image."""
    _settled(client)
    before = _batches(client)
    pictures = [noise(CORE, CORE * 2) + np.uint8(one) for one in range(24)]
    with ThreadPoolExecutor(24) as threads:
        responses = list(threads.map(lambda one: upscaled(client, png(one), scale=2, seconds=0.01), pictures))
    for one, response in zip(pictures, responses, strict=True):
        assert (decode_image(response.content) == enlarged(one, 2)).all()
    _settled(client)
    assert 1 <= _batches(client) - before <= 16


def test_a_single_sample_does_not_wait_for_a_picture(client: httpx.Client) -> None:
    """A sample is computed between two slices of a running upscale."""
    job_id = create_upscale_job(client, png(noise(24 * CORE, 24 * CORE)), scale=2, seconds=0.02)
    job_when(client, job_id, lambda job: 0 < job["progress"] < 1)
    waits = []
    for _ in range(6):
        started = time.monotonic()
        assert post_samples(client).status_code == 200
        waits.append(time.monotonic() - started)
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "running"
    assert sorted(waits)[3] < 1.5
    client.post(f"/v1/jobs/{job_id}/cancel")


# --- rejections ---


def _bomb(width: int, height: int) -> bytes:
    """Return a small PNG file whose header claims this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(9), 9)) + chunk(b"IEND", b"")


def _animated(kind: str) -> bytes:
    first, second = (Image.fromarray(noise(9, 9 + one)).resize((9, 9)) for one in (0, 1))
    return encode_image(first, kind, save_all=True, append_images=[second], duration=50)


GOOD = png(noise(20, 20))


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        (b"", {}, ["image: ", "empty", "PNG"]),
        (b"not a picture", {}, ["image: ", "PNG, JPEG, WEBP"]),
        (encode_image(Image.fromarray(noise(9, 9)), "GIF"), {}, ["PNG, JPEG, WEBP"]),
        (GOOD[:-100], {}, ["truncated", "PNG"]),
        (encode_image(Image.fromarray(noise(99, 99)), "JPEG")[:-300], {}, ["truncated"]),
        (_animated("PNG"), {}, ["animated", "single frame"]),
        (_animated("WEBP"), {}, ["animated", "single frame"]),
        (_bomb(50_000, 50_000), {}, ["50000×50000", "40000.0 megapixels", "180", "11.25 megapixels"]),
        (_bomb(0, 5), {}, ["PNG"]),
        (_bomb(3354, 3355), {}, ["180", "at most 11.25"]),
        (_bomb(30_000, 1), {}, ["120000×4", "100000", "parts"]),
        (_bomb(16_500, 100), {"format": "jpeg"}, ["66000×400", "65500", "ask for PNG"]),
        (_bomb(4_100, 100), {"format": "webp"}, ["16400×400", "16383", "ask for PNG"]),
        (_bomb(3_300, 3_300), {"format": "webp"}, ["64 megapixels", "ask for PNG"]),
        (GOOD, {"scale": 5}, ["options.scale", "4"]),
        (GOOD, {"scale": 1}, ["options.scale", "2"]),
        (GOOD, {"scale": "large"}, ["options.scale", "integer"]),
        (GOOD, {"method": "magic"}, ["options.method", "nearest", "smooth"]),
        (GOOD, {"format": "gif"}, ["format", "png", "jpeg", "webp"]),
        (GOOD, {"quality": 0}, ["quality", "1"]),
        (GOOD, {"quality": 101}, ["quality", "100"]),
        (GOOD, {"fidelity": 0.5}, ["no such field: fidelity", "method", "scale"]),
        (GOOD, {"count": 2}, ["no such field: count"]),
        (GOOD, {"model": MODEL}, [MODEL, "cannot enlarge", ENLARGE]),
        (GOOD, {"image": b64(GOOD)}, ["image: 2 were sent", "one"]),
    ],
)
def test_impossible_upscales_are_rejected(client: httpx.Client, file: bytes, fields: Any, words: list[str]) -> None:
    """An invalid upscale is 422, which says what would work, before any tile is computed."""
    problem(upscaled(client, file, **fields), 422, *words)
    assert upscaled(client, GOOD).status_code == 200


def test_other_bad_requests_are_rejected(client: httpx.Client) -> None:
    """A missing or second image, an unknown field, model or media type, and an unreadable body are
    rejected.
    """
    problem(client.post(PATH, json={}), 422, "image: missing", "PNG, JPEG or WebP")
    problem(client.post(PATH, json={"image": "%%%"}), 422, "image", "base64")
    problem(client.post(PATH, json={"image": 7}), 422, "image")
    problem(client.post(PATH, json=[1]), 400, "object")
    problem(client.post(PATH, content=GOOD, headers={"Content-Type": "text/plain"}), 415, "`image`")
    problem(client.post(PATH, files=[("image", ("a", GOOD))] * 2), 422, "2 were sent")
    problem(client.post(PATH, files={"images": ("a", GOOD)}), 422, "'images'", "`image`")
    problem(upscaled(client, GOOD, model="gan"), 404, "gan", ENLARGE)
    problem(upscaled(client, GOOD, {"Accept": "image/gif"}), 406, "image/png, image/jpeg, image/webp")
    problem(upscaled(client, GOOD, {"Accept": "image/png"}, format="jpeg"), 406, "image/jpeg")
    problem(client.post("/v1/samples", json={"model": ENLARGE}), 422, ENLARGE, PATH)
    assert client.get(PATH).status_code == 405


def test_a_result_that_a_format_cannot_hold_names_png(client: httpx.Client) -> None:
    """A finished result that is too large for WebP is 406 in that format, and the problem
    recommends PNG.
    """
    job_id = create_upscale_job(client, png(noise(2, 4200)), scale=4)
    finished_job(client, job_id)
    path = f"/v1/jobs/{job_id}/result"
    assert decode_image(client.get(path).content).shape == (8, 16800, 3)
    problem(client.get(path, headers={"Accept": "image/webp"}), 406, "16383", "ask for PNG")


def test_long_thin_pictures_work(client: httpx.Client) -> None:
    """Images of 1 × 5000 and 5000 × 1 pixels are upscaled."""
    for size in ((1, 5000), (5000, 1)):
        response = upscaled(client, png(noise(*size)), scale=4)
        assert (decode_image(response.content) == enlarged(noise(*size), 4)).all()


# --- crashes ---


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that tests may crash, with a low limit of `max_upscaled_pixels`."""
    settings = {"max_upscaled_pixels": "2000000", "max_sync_timeout_s": "60"}
    with Stack(tmp_path_factory.mktemp("mortal"), workers=["inference"], **settings) as running:
        yield running


def test_an_accepted_upscale_survives_api_and_worker(mortal: Stack) -> None:
    """Accepted upscales are completed although the API and the worker are killed."""
    pixels = noise(10 * CORE, 10 * CORE)
    with httpx.Client(base_url=mortal.url, timeout=60) as client:
        stored = create_upscale_job(client, png(pixels), scale=2, seconds=0.15)
        adopted = upscaled(client, png(pixels[: 7 * CORE, : 7 * CORE]), {"Prefer": "wait=1"}, scale=2, seconds=0.15)
        assert adopted.status_code == 202
        job_when(client, stored, lambda job: 0 < job["progress"] < 1)
    mortal.kill("api", signal.SIGKILL)
    mortal.kill("inference", signal.SIGKILL)
    mortal.start("inference")
    mortal.start("api")
    mortal.wait_ready()
    with httpx.Client(base_url=mortal.url, timeout=60) as client:
        for job_id, side in ((stored, 10 * CORE), (adopted.json()["id"], 7 * CORE)):
            assert finished_job(client, job_id)["status"] == "succeeded"
            made = decode_image(client.get(f"/v1/jobs/{job_id}/result").content)
            assert (made == enlarged(pixels[:side, :side], 2)).all()


def test_the_limit_is_a_setting(mortal: Stack) -> None:
    """The problem states the configured limit of pixels."""
    with httpx.Client(base_url=mortal.url, timeout=60) as client:
        problem(upscaled(client, png(noise(400, 400))), 422, "2.6 megapixels", "more than the 2 ", "0.125 megapixels")
        assert upscaled(client, png(noise(350, 350))).status_code == 200


def test_no_file_is_left_unfinished(mortal: Stack) -> None:
    """A job's result leaves no unfinished file, and its files are removed with the job."""
    with httpx.Client(base_url=mortal.url, timeout=60) as client:
        job_id = create_upscale_job(client, png(noise(100, 100)), scale=2)
        finished_job(client, job_id)
        client.get(f"/v1/jobs/{job_id}/result")
        blobs = mortal.blobs()
        kept = blobs.names(f"jobs/{job_id}").keys()
        assert {"items", "answer.png", "answer.png.json"} < kept
        assert not _files(mortal.state / "state" / "unfinished")
        client.delete(f"/v1/jobs/{job_id}")
        assert not blobs.keys(f"jobs/{job_id}")


def _files(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []
