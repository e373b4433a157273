"""Requests, responses and images for tests of the HTTP interface."""

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tests.waiting import TIMEOUT_S, wait_until

MODEL = "vae-mnist-2d"
ENLARGE = "enlarge"
FAULTY = "faulty"
TINY = "tiny"


def b64(data: bytes) -> str:
    """Return the data in base64, as a JSON body has it."""
    return base64.b64encode(data).decode()


def encode_image(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image as a file of the format `kind`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """Return the pixels of an image file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def decode_image_base64(text: str) -> np.ndarray:
    """Return the pixels of an image in a JSON response."""
    return decode_image(base64.b64decode(text))


def problem(response: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """Check that a response is a problem of this status whose detail contains the words; return its
    body.
    """
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert 10 < len(body["detail"]) < 2000
    for word in words:
        assert word in body["detail"]
    return body


def post_samples(client: httpx.Client, /, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Return the response to POST /v1/samples."""
    return client.post("/v1/samples", json={"model": MODEL, **fields}, headers=headers)


def create_job(client: httpx.Client, path: str, **fields: Any) -> str:
    """Send a request that must become a job; return the job's id."""
    response = client.post(path, json=fields, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def finished_job(client: httpx.Client, job_id: str, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Wait until a job has ended, and return it."""
    return job_when(client, job_id, lambda job: job["status"] in {"succeeded", "failed", "cancelled"}, timeout_s)


def job_when(
    client: httpx.Client, job_id: str, good: Callable[[dict[str, Any]], bool], timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """Wait until a condition holds for a job, and return the job."""

    def job() -> dict[str, Any] | None:
        body: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        return body if good(body) else None

    return wait_until(job, f"job {job_id} is as expected", timeout_s)
