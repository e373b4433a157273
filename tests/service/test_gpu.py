"""A service on a machine with a GPU: inference and training on it, and workers of both kinds.

All tests are skipped where there is no GPU.
"""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from core.imaging.pictures import png
from core.settings import HEARTBEAT_S
from tests.api.helpers import decode_image, finished_job
from tests.datasets import add_digits
from tests.stack import ROOT, Stack
from tests.waiting import wait_until
from workers.training.worker import GPU_DEVICE_FILES

HAS_GPU = any(Path(file).exists() for file in GPU_DEVICE_FILES)
pytestmark = [
    pytest.mark.skipif(not HAS_GPU, reason="this machine has no GPU"),
    pytest.mark.timeout(600),
]

NPZ = {"Accept": "application/x-npz, image/png;q=0.5"}
TOLERANCES = {"images": 1.0, "image": 1.0}
"""Of pictures, in levels of 256; other results may differ by a thousandth of their largest value."""


def start(stack: Stack, name: str, device: str, **settings: str) -> None:
    """Start an inference worker on a device, and wait until it serves."""
    stack.start("inference", name, device=device, **settings)
    wait_until(lambda: stack.serves(name), f"the worker on {device} is ready", 120)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with all shipped models, a dataset and a training worker, but no inference worker."""
    settings = {"device_wait_s": "2", "sync_timeout_s": "120", "max_count": "300000"}
    running = Stack(tmp_path_factory.mktemp("gpu"), workers=("training",), **settings)
    for folder in (ROOT / "checkpoints").iterdir():
        if not (copy := running.state / "checkpoints" / folder.name).exists():
            shutil.copytree(folder, copy)
    add_digits(running)
    try:
        for part in ("queue", "api", "training"):
            running.start(part)
        start(running, "gpu", "cuda")
        running.wait_ready()
        yield running
    finally:
        running.down()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the service."""
    with httpx.Client(base_url=stack.url, timeout=180) as opened:
        yield opened


def device_kind(client: httpx.Client) -> str:
    """Return the device kind of a small request."""
    response = client.post("/v1/samples", json={"model": "tiny"}, headers={"Prefer": "wait=30"})
    return str(response.headers.get("reverie-device-kind", ""))


def requests(client: httpx.Client) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield name, path and body of a request for each operation of each shipped model."""
    shipped = {folder.name for folder in (ROOT / "checkpoints").iterdir()}
    for card in client.get("/v1/models").json()["data"]:
        if card["name"] not in shipped:
            continue
        shape = card["image"]
        pixels = np.zeros((shape["channels"], shape["height"], shape["width"]), np.uint8)
        pixels[:, :, shape["width"] // 3 : shape["width"] // 2] = 255
        image, mask = (base64.b64encode(png(one)).decode() for one in (pixels, 255 - pixels))
        bodies: dict[str, dict[str, Any]] = {
            "samples": {"count": 3},
            "manifold": {"size": 3},
            "encodings": {"images": [image] * 2},
            "reconstructions": {"images": [image] * 2},
            "interpolations": {"images": [image, mask], "steps": 3},
            "inpaintings": {"images": [image], "mask": mask, "count": 2},
            "energies": {"images": [image] * 2},
            "likelihoods": {"images": [image] * 2, "k": 100},
            "upscales": {"image": image, "scale": 2},
        }
        if "decodings" in card["operations"]:
            size = card["operations"]["decodings"]["codes"]["sizes"][-1]
            bodies["decodings"] = {"codes": [[0.25] * size] * 2}
        for operation in card["operations"]:
            body = {"model": card["name"], "seed": 1, **bodies[operation]}
            yield f"{card['name']} {operation}", f"/v1/{operation}", body


def numbers(response: httpx.Response) -> dict[str, np.ndarray[Any, Any]]:
    """Return the numeric arrays of a response, or the pixels of a picture."""
    if response.headers["content-type"] == "image/png":
        return {"image": decode_image(response.content).astype(float)}
    with np.load(io.BytesIO(response.content)) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return {name: array.astype(float) for name, array in found.items() if array.dtype.kind in "fiu"}


def test_every_operation_gives_on_a_gpu_what_it_gives_on_a_cpu(stack: Stack, client: httpx.Client) -> None:
    """Every operation of every shipped model runs on the GPU, with a device kind that says so, and
    its result is that of a CPU but for rounding.
    """
    on_gpu = {}
    for name, path, body in requests(client):
        response = client.post(path, json=body, headers=NPZ)
        assert response.status_code == 200, f"{name}: {response.text[:500]}"
        assert response.headers["reverie-device-kind"].startswith("cuda-"), name
        on_gpu[name] = numbers(response)
    assert len(on_gpu) > 30
    stack.kill("gpu")
    start(stack, "cpu", "cpu")
    for name, path, body in requests(client):
        response = client.post(path, json=body, headers=NPZ)
        assert response.status_code == 200, f"{name}: {response.text[:500]}"
        assert response.headers["reverie-device-kind"].startswith("cpu-"), name
        on_cpu = numbers(response)
        assert on_cpu.keys() == on_gpu[name].keys()
        for field, values in on_cpu.items():
            tolerance = TOLERANCES.get(field, 1e-3 * float(np.abs(values).max(initial=1e-3)))
            differs = np.abs(values - on_gpu[name][field]).max(initial=0.0)
            assert differs <= tolerance, f"{name}: {field} differs by {differs}"
    stack.kill("cpu")
    start(stack, "gpu", "cuda")
    wait_until(lambda: device_kind(client).startswith("cuda-"), "requests go to the GPU again")


def test_a_request_whose_gpu_is_gone_begins_again_on_a_cpu(stack: Stack, client: httpx.Client) -> None:
    """A job that began on the GPU, whose worker is killed, is done by a worker without one from its
    first row on, and says so.
    """
    body = {"model": "tiny", "seed": 3, "steps": 60, "seconds": 0.1}
    job = client.post("/v1/samples", json=body, headers={"Prefer": "respond-async"})
    path = job.headers["location"]
    assert client.get(path).json()["device_kind"].startswith("cuda-")
    wait_until(lambda: client.get(path).json()["progress"] > 0, "the job has begun")
    start(stack, "cpu", "cpu", models="tiny")
    stack.kill("gpu")
    ended = finished_job(client, path.rpartition("/")[2], 120)
    assert (ended["status"], ended["device_kind"][:4]) == ("succeeded", "cpu-"), ended
    assert "row 0" in client.get(f"{path}/events", headers={"Accept": "text/event-stream"}).text
    stack.kill("cpu")
    start(stack, "gpu", "cuda")
    wait_until(lambda: device_kind(client).startswith("cuda-"), "requests go to the GPU again")


def test_a_large_job_is_spread_over_the_workers_of_a_gpu(stack: Stack, client: httpx.Client) -> None:
    """Two workers on one GPU are of one device kind: both run batches of one job, whose rows are
    those of a small request.
    """
    start(stack, "second", "cuda", models="faulty")
    body = {"model": "faulty", "seed": 5, "options": {"seconds": 0.01}}
    client.post("/v1/samples", json=body).raise_for_status()
    for name in ("gpu", "second"):
        wait_until(lambda name=name: "faulty@1" in stack.heartbeat(name)[1]["capacity"], f"{name} has the model")  # type: ignore[misc]
    time.sleep(3 * HEARTBEAT_S)  # until the API process knows it too
    before = {name: batches(stack, name) for name in ("gpu", "second")}
    job = client.post("/v1/samples", json={**body, "count": 260_000}, headers={"Prefer": "respond-async"})
    assert finished_job(client, job.json()["id"], 180)["status"] == "succeeded"
    few = numbers(client.post("/v1/samples", json={**body, "count": 5}, headers=NPZ))["images"]
    kept = numbers(client.get(f"{job.headers['location']}/result", headers=NPZ))["images"]
    assert np.array_equal(kept[:5], few)
    wait_until(lambda: all(batches(stack, name) > before[name] + 1 for name in before), "both ran it")
    stack.kill("second")


def batches(stack: Stack, name: str) -> int:
    """Return the number of batches that a worker has run."""
    return sum(line.get("event") == "batch" for line in stack.log(name))


def test_a_training_on_the_gpu_makes_a_version_that_serves(client: httpx.Client) -> None:
    """A training over HTTP runs on the GPU, as the card of its version says, and the version is
    served from the GPU.
    """
    recipe = {"config": {"hidden": [48], "latents": 4}, "training": {"epochs": 20, "batch_size": 20}, "seed": 5}
    body = {"family": "vae", "dataset": "digits", "name": "on-gpu", "recipe": recipe}
    job = client.post("/v1/trainings", json={**body, "evaluation": {"count": 40, "k": 10}})
    assert job.status_code == 202, job.text
    ended = finished_job(client, job.json()["id"], 300)
    assert ended["status"] == "succeeded", ended
    assert "1 GPU (" in str(client.get("/v1/models/on-gpu").json()["provenance"])
    response = client.post("/v1/samples", json={"model": "on-gpu", "count": 4, "seed": 1}, headers=NPZ)
    assert (response.status_code, response.headers["reverie-device-kind"][:5]) == (200, "cuda-")
    assert numbers(response)["images"].shape == (4, 1, 14, 14)


def test_a_worker_survives_a_full_gpu(stack: Stack, client: httpx.Client) -> None:
    """While another process has the GPU's memory, a large request succeeds or fails with a problem,
    and a small one succeeds; the worker goes on.
    """
    import torch

    body = {"model": "superres-photos", "scale": 4, "image": base64.b64encode(png(picture(1024))).decode()}
    client.post("/v1/samples", json={"model": "vae-mnist", "count": 1}).raise_for_status()
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda")
    try:
        response = client.post("/v1/upscales", json=body, headers=NPZ)
        assert response.status_code in {200, 500, 503}, response.text[:500]
        small = client.post("/v1/samples", json={"model": "vae-mnist", "count": 1})
        assert small.status_code == 200, small.text
    finally:
        del held
        torch.cuda.empty_cache()
    assert client.post("/v1/upscales", json=body, headers=NPZ).status_code == 200
    assert stack.parts["gpu"].poll() is None


def picture(size: int) -> np.ndarray[Any, Any]:
    """Return a colour picture of noise, uint8 (3, size, size)."""
    return np.random.default_rng(1).integers(0, 256, (3, size, size), np.uint8)
