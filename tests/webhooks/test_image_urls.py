"""Images by URL on a real service give the results of files, and clear errors."""

from __future__ import annotations

import io
import time
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import png
from tests.api.helpers import ENLARGE, MODEL, TINY, b64, encode_image, finished_job, problem
from tests.waiting import wait_until
from tests.webhooks.pictures import FileServer, endless, redirect
from tests.webhooks.receiver import Receiver
from tests.webhooks.test_jobs import ended


def post(service: httpx.Client, path: str, wait: str = "wait=60", /, **fields: Any) -> httpx.Response:
    """Return the response to a JSON request."""
    return service.post(f"/v1/{path}", json={"model": MODEL, "seed": 1, **fields}, headers={"Prefer": wait})


def failed(service: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Create a job of encodings that fails; return its problem."""
    response = post(service, "encodings", "respond-async", **fields)
    assert response.status_code == 202, response.text
    job = finished_job(service, response.json()["id"])
    assert job["status"] == "failed"
    found: dict[str, Any] = job["problem"]
    return found


def test_an_image_by_url_is_as_good_as_its_file(service: httpx.Client, files: FileServer, digit: bytes) -> None:
    """Images by URL give the bytes of files, in JSON and forms, alone and beside files."""
    other = png(np.full((1, 28, 28), 100, np.uint8))
    files.files = {"/digit.png": digit, "/other.png": other}
    first, second = f"{files.url}/digit.png", f"{files.url}/other.png"
    one = post(service, "encodings", images=[b64(digit)]).content
    assert post(service, "encodings", image_url=first).content == one
    two = post(service, "encodings", images=[b64(digit), b64(other)]).content
    assert post(service, "encodings", image_url=[first, second]).content == two
    assert post(service, "encodings", images=[b64(digit)], image_url=second).content == two
    form = {"model": MODEL, "seed": "1", "image_url": second}
    assert service.post("/v1/encodings", data=form, files={"images": digit}).content == two


def test_a_mask_and_a_picture_to_upscale_may_be_urls(service: httpx.Client, files: FileServer) -> None:
    """`mask_url`, and `image_url` of an upscale, give the response of files."""
    picture, half = png(np.full((1, 8, 8), 100, np.uint8)), np.zeros((1, 8, 8), np.uint8)
    half[:, 4:] = 255
    files.files = {"/picture.png": picture, "/mask.png": png(half)}
    fields = {"model": TINY, "images": [b64(picture)], "count": 2}
    by_file = post(service, "inpaintings", **fields, mask=b64(png(half)))
    assert by_file.status_code == 200
    assert post(service, "inpaintings", **fields, mask_url=f"{files.url}/mask.png").content == by_file.content
    large = encode_image(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)))
    files.files["/large.png"] = large
    fields = {"model": ENLARGE, "scale": 2, "format": "png"}
    by_file = post(service, "upscales", **fields, image=b64(large))
    by_url = post(service, "upscales", **fields, image_url=f"{files.url}/large.png")
    assert by_url.status_code == by_file.status_code == 200
    assert by_url.headers["content-type"] == "image/png"
    pixels = [np.asarray(Image.open(io.BytesIO(response.content))) for response in (by_file, by_url)]
    assert (pixels[0] == pixels[1]).all()


def test_a_job_by_url_shows_its_progress_and_sends_its_webhook(
    service: httpx.Client, files: FileServer, receiver: Receiver, digit: bytes
) -> None:
    """A job by URL has the URL in its request, reports what it fetches, and sends its webhook."""
    files.files = {"/digit.png": digit}
    url = f"{files.url}/digit.png"
    response = service.post("/v1/encodings", json={"model": MODEL, "image_url": url, "webhook": {"url": receiver.url}})
    assert response.status_code == 202
    assert response.json()["request"]["image_url"] == [url]
    job = finished_job(service, response.json()["id"])
    assert (job["status"], job["request"]["image_url"], job["request"]["images"]) == ("succeeded", [url], 1)
    assert ended(service, job["id"])[0]["status"] == "delivered"
    assert "fetching image 1 of 1 from 127.0.0.1" in service.get(f"/v1/jobs/{job['id']}/events").text
    assert service.get(f"/v1/jobs/{job['id']}/result").json()["seed"] == job["seed"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "https://"),
        ("ftp://example.com/a.png", "https://"),
        ("/etc/passwd", "https://"),
        ("http://ann:secret@example.com/a.png", "user name"),
        ("http://10.0.0.1/a.png", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://[::1]/a.png", "not a public address"),
        ("http://[::ffff:10.0.0.1]/a.png", "not a public address"),
        ("http://0x0a000001/a.png", "not a public address"),
        ("http://" + "a" * 3000, "2000 characters"),
        ("http://a b/", "spaces"),
    ],
)
def test_a_url_that_may_not_be_fetched_is_rejected(service: httpx.Client, url: str, words: str) -> None:
    """A URL that may not be fetched is 422 at once, for an image, a mask, an upscale and a
    webhook.
    """
    assert problem(post(service, "encodings", image_url=url), 422, words)["errors"][0]["field"] == "image_url"
    problem(post(service, "upscales", model=ENLARGE, image_url=url), 422, words)
    problem(post(service, "inpaintings", model=TINY, image_url=url, mask_url=url), 422, words)
    body = problem(post(service, "samples", webhook={"url": url}), 422)
    assert body["errors"][0]["field"] == "webhook.url"


def test_a_file_that_cannot_be_used_fails_the_job(service: httpx.Client, files: FileServer, digit: bytes) -> None:
    """A job fails with the reason if its file is missing, redirected, not an image, of another size
    or too large.
    """
    files.files = {
        "/text": b"no picture",
        "/large.png": png(np.zeros((1, 30, 30), np.uint8)),
        "/elsewhere": redirect("http://169.254.169.254/"),
        "/endless": endless,
        "/huge": partial(endless, announced=10 << 30),
    }
    for path, words in [
        ("/missing", "responded 404"),
        ("/text", "images[0]"),
        ("/large.png", "28×28"),
        ("/elsewhere", "redirects"),
        ("/endless", "larger than"),
        ("/huge", "larger than"),
    ]:
        found = failed(service, image_url=files.url + path)
        assert found["status"] == 422
        assert words in found["detail"], found
    assert "cannot be fetched" in failed(service, image_url="http://127.0.0.1:9/a.png")["detail"]


def test_a_number_of_images_that_does_not_fit_is_rejected_at_once(service: httpx.Client, files: FileServer) -> None:
    """A wrong number of images is 422 before any of them is fetched."""
    url = f"{files.url}/a.png"
    problem(post(service, "samples", image_url=url), 422, "no images")
    problem(post(service, "interpolations", image_url=url), 422, "exactly two")
    problem(post(service, "encodings", image_url=[url] * 2000), 422, "1024")
    problem(post(service, "inpaintings", model=TINY, image_url=url), 422, "mask")
    problem(post(service, "upscales", model=ENLARGE, image_url=url, image="AAAA"), 422, "either")
    assert files.requests == []


def test_a_job_that_is_cancelled_while_it_fetches_stops(service: httpx.Client, files: FileServer) -> None:
    """Cancelling a job that fetches a file closes the connection."""
    closed: list[float] = []

    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 19))
                time.sleep(0.2)
        except OSError:
            closed.append(time.monotonic())

    files.files = {"/slow": slow}
    job = post(service, "encodings", "respond-async", image_url=f"{files.url}/slow").json()
    wait_until(lambda: files.requests, "the file is being fetched", 30)
    assert service.post(f"/v1/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
    wait_until(lambda: closed, "the connection is closed", 30)
