"""What tests of the HTTP interface look at again and again."""

import base64
import io
import time
from typing import Any

import httpx
import numpy as np
from PIL import Image

MODEL = "vae-mnist-2d"
ENLARGE = "enlarge"
FAULTY = "faulty"
TINY = "tiny"


def b64(data: bytes) -> str:
    """Base64 as JSON bodies carry it."""
    return base64.b64encode(data).decode()


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> np.ndarray:
    """The pixels of a picture file."""
    return np.asarray(Image.open(io.BytesIO(data)))


def opened_text(text: str) -> np.ndarray:
    """The pixels of a picture in a JSON answer."""
    return opened(base64.b64decode(text))


def problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """The answer's body, once it is a problem of this status whose detail has these words."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert 10 < len(body["detail"]) < 2000
    for word in words:
        assert word in body["detail"]
    return body


def samples(client: httpx.Client, /, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Answer of POST /v1/samples."""
    return client.post("/v1/samples", json={"model": MODEL, **fields}, headers=headers)


def promised(client: httpx.Client, path: str, **fields: Any) -> str:
    """The id of a job that a request was answered with."""
    answer = client.post(path, json=fields, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """The job, once it has ended."""
    return reached(client, job_id, lambda job: job["status"] in {"succeeded", "failed", "cancelled"})


def reached(client: httpx.Client, job_id: str, good: Any) -> dict[str, Any]:
    """The job, once it is as wanted."""
    until = time.monotonic() + 180  # the machine may be busy with other tests
    while time.monotonic() < until:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
        if good(job):
            return job
        time.sleep(0.03)
    raise TimeoutError(str(job))
