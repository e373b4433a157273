"""Requests of all kinds that become jobs, and a client that retries them."""

from __future__ import annotations

import base64
import json
import random
import time
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np

from tests.cluster.members import APIS, Cluster
from tests.uploads import png

TERMINAL = {"succeeded", "failed", "cancelled", "expired"}
NPZ = "application/x-npz"
LONGEST_S = 900.0
"""The longest time that a client retries a request or waits for a job."""


@dataclass(frozen=True)
class Request:
    """A request that becomes a job: its path, its fields, a file, and the form of its result."""

    path: str
    body: dict[str, Any]
    accept: str = "application/json"
    prefer: str = "respond-async"
    file: bytes | None = None

    def send(self, client: Client, headers: dict[str, str]) -> httpx.Response:
        """Send the request; return the first response that is no failure of a server."""
        if self.file is None:
            return client.send("POST", self.path, json=self.body, headers=headers)
        fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in self.body.items()}
        return client.send("POST", self.path, data=fields, files={"image": self.file}, headers=headers)


def picture(number: int) -> str:
    """Return an image of 8×8 pixels as base64 of a PNG."""
    return _base64(np.random.default_rng(number).integers(0, 2, (8, 8), np.uint8) * 255)


def _base64(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def requests(of_a_kind: int, large: int, webhook: str) -> list[Request]:
    """Return requests for eight operations and large ones, each with its own seed, in a random order.

    Energies are sent to `webhook`. Large requests are spread over the inference workers.
    """
    mask = _base64(np.repeat(np.array([[0] * 8, [255] * 8], np.uint8), 4, 0))
    hook = {"url": webhook, "events": ["job.succeeded", "job.failed"]}
    made = []
    for number in range(of_a_kind):
        one = {"seed": 1000 + number, "images": [picture(number)]}
        codes = np.random.default_rng(number).uniform(-2, 2, (3, 2)).round(3).tolist()
        digit = _base64(np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8))
        photograph = png(np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8))
        inpainting = {**one, "mask": mask, "count": 3, "steps": 20, "seconds": 0.02}
        made += [
            Request("/v1/samples", {"model": "vae-mnist-2d", "seed": number, "count": 200}, "image/png"),
            Request("/v1/samples", {"model": "faulty", "seed": 10_000 + number, "seconds": 0.2}, prefer="wait=1"),
            Request("/v1/inpaintings", {"model": "tiny", **inpainting}),
            Request("/v1/likelihoods", {"model": "tiny", **one, "k": 50}),
            Request("/v1/likelihoods", {"model": "faulty", **one, "k": 10, "seconds": 0.05}),
            Request("/v1/encodings", {"model": "tiny", **one}),
            Request("/v1/energies", {"model": "tiny", **one, "webhook": hook}),
            Request("/v1/decodings", {"model": "vae-mnist-2d", "seed": number, "codes": codes}),
            Request("/v1/reconstructions", {"model": "vae-mnist-2d", "seed": number, "images": [digit]}),
            Request("/v1/upscales", {"model": "enlarge", "seed": number}, "image/png", file=photograph),
        ]
    body = {"model": "faulty", "count": 260_000, "options": {"seconds": 0.01}}
    made += [Request("/v1/samples", {**body, "seed": 20_000 + number}, NPZ) for number in range(large)]
    random.Random(0).shuffle(made)
    return made


class Client:
    """A client of API processes that retries a request until one of them responds to it."""

    def __init__(self, cluster: Cluster, *apis: str) -> None:
        """Use these API processes in turn, by default all."""
        self._clients = [
            httpx.Client(base_url=cluster.urls[name], timeout=httpx.Timeout(30, connect=2)) for name in apis or APIS
        ]
        self._turn = 0
        self.retries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Return the first response that is no failure of a server."""
        until, last = time.monotonic() + LONGEST_S, ""
        while time.monotonic() < until:
            self._turn += 1
            try:
                response = self._clients[self._turn % len(self._clients)].request(method, path, **arguments)
            except httpx.TransportError as error:
                last = repr(error)
            else:
                if response.status_code < 500 and response.status_code != 429:
                    return response
                last = response.text
            self.retries += 1
            time.sleep(0.2)
        raise TimeoutError(f"{method} {path}: {last}")

    def create(self, request: Request, key: str) -> str:
        """Create a job, at most one for a key, and return its id."""
        response = request.send(self, {"Prefer": request.prefer, "Idempotency-Key": key, "Accept": request.accept})
        # 200: the job has ended already
        assert response.status_code in {200, 202}, response.text
        path = response.headers.get("location") or response.headers["content-location"]
        return str(path.split("/")[3])

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended, and return it."""
        until = time.monotonic() + LONGEST_S
        while time.monotonic() < until:
            response = self.send("GET", f"/v1/jobs/{job_id}")
            assert response.status_code == 200, response.text
            job: dict[str, Any] = response.json()
            if job["status"] in TERMINAL:
                return job
            time.sleep(0.2)
        raise TimeoutError(f"{job_id} has not ended: {job}")

    def check_result(self, request: Request, job_id: str) -> None:
        """Check that a job's result has the bytes of the same request without disturbance."""
        got = self.send("GET", f"/v1/jobs/{job_id}/result", headers={"Accept": request.accept})
        headers = {"Accept": request.accept, "Prefer": "wait=60"}
        if "webhook" in request.body:
            request = Request(request.path, {name: request.body[name] for name in request.body if name != "webhook"})
        undisturbed = request.send(self, headers)
        if undisturbed.status_code == 202:
            again = undisturbed.json()["id"]
            self.ended(again)
            undisturbed = self.send("GET", f"/v1/jobs/{again}/result", headers={"Accept": request.accept})
        assert (got.status_code, undisturbed.status_code) == (200, 200), (got.text[:300], undisturbed.text[:300])
        if request.accept == "application/json":
            assert {**got.json(), "request_id": 0} == {**undisturbed.json(), "request_id": 0}
        else:
            assert got.content == undisturbed.content
