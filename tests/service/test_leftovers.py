"""No file is left of jobs, uploads and trainings that were cancelled, deleted, rejected,
interrupted or killed.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

from core.blobs import PARTIAL
from tests.api.helpers import finished_job, job_when
from tests.datasets import add_digits
from tests.service.test_full_disk import upscale
from tests.stack import Stack
from tests.version_files import SHIPPED, with_card
from tests.waiting import wait_until

GONE_S = 40.0
LOCKS = {"lock", ".lock", ".sweep.lock"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that sweeps every 5 s."""
    running = Stack(tmp_path_factory.mktemp("leftovers"), log_level="warning", result_ttl_s="100000", sweep_s="5")
    add_digits(running)
    with running:
        yield running


def files(stack: Stack) -> set[str]:
    """Return the paths of files and empty folders, and the keys of objects, that the service keeps
    for jobs, uploads, datasets and versions.
    """
    state = stack.state / "state"
    found = set(stack.blobs().keys("")) if stack.is_shared else set()
    for top in ("blobs", "scratch", "runs", "datasets", "checkpoints", "unfinished"):
        for folder, folders, names in os.walk(state / top):  # skips folders that are deleted meanwhile
            found |= {f"{folder}/{name}" for name in names if name not in LOCKS}
            if not folders and not names:
                found.add(folder)
        found -= {str(state / top / kept) for kept in ("", "jobs", "notes")}
    return found


def cancelled_and_deleted(client: httpx.Client, stack: Stack) -> None:
    """Cancel and delete running jobs, whose worker may write its results afterwards."""
    ids = [upscale(client, "respond-async", 256, seconds=0.05).json()["id"] for _ in range(4)]
    job_when(client, ids[0], lambda job: job["progress"] > 0)
    for job_id in ids:
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
        assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


def cancelled(client: httpx.Client, stack: Stack) -> None:
    """Cancel running jobs without deleting them."""
    ids = [upscale(client, "respond-async", 256, seconds=0.05).json()["id"] for _ in range(2)]
    job_when(client, ids[0], lambda job: job["progress"] > 0)
    for job_id in ids:
        assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


def training_deleted(client: httpx.Client, stack: Stack) -> None:
    """Delete a training while its process writes its last checkpoint."""
    recipe = {"config": {"hidden": [512], "latents": 4}, "training": {"epochs": 5000, "batch_size": 20}}
    body = {"family": "vae", "dataset": "digits", "name": "gone", "recipe": recipe}
    job_id = client.post("/v1/trainings", json=body).json()["id"]
    run = stack.state / "state" / "runs" / job_id
    wait_until((run / "progress.json").exists, "the training has started")
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204


def uploads_refused(client: httpx.Client, stack: Stack) -> None:
    """Upload datasets and versions that are invalid."""
    for content in (b"no picture", b"PK\x03\x04" + os.urandom(1000), os.urandom(3 << 20)):
        headers = {"Content-Type": "application/octet-stream"}
        response = client.post("/v1/datasets", params={"name": "bad"}, content=content, headers=headers)
        assert response.status_code == 422
    for content in (b"no tensors", with_card(SHIPPED.read_bytes(), family="nobody"), SHIPPED.read_bytes()[:-5]):
        headers = {"Content-Type": "application/octet-stream"}
        response = client.post("/v1/models/vae-mnist-2d/versions", content=content, headers=headers)
        assert response.status_code == 422, response.text
    wrong = with_card(SHIPPED.read_bytes(), name="wrong", config={"latents": 3})
    response = client.post("/v1/models/wrong/versions", content=wrong, headers=headers, timeout=180)
    assert response.status_code == 422, response.text


def uploads_interrupted(client: httpx.Client, stack: Stack) -> None:
    """Close connections in the middle of an upload."""
    for path in ("/v1/datasets?name=cut", "/v1/models/vae-mnist-2d/versions"):
        with socket.create_connection(("127.0.0.1", stack.port)) as link:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
            link.sendall(f"{head}Content-Length: 9000000\r\n\r\n".encode() + os.urandom(3 << 20))
            time.sleep(0.3)


def api_killed(client: httpx.Client, stack: Stack) -> None:
    """Kill the API process while it receives uploads and converts one."""
    pictures = io.BytesIO()
    np.savez(pictures, np.random.default_rng(0).integers(0, 256, (60_000, 32, 32), dtype=np.uint8))
    links = []
    for path, body in (
        ("/v1/datasets?name=cut", pictures.getvalue()),
        ("/v1/datasets?name=half", pictures.getvalue()[:-100]),
        ("/v1/models/vae-mnist-2d/versions", os.urandom(3 << 20)),
    ):
        link = socket.create_connection(("127.0.0.1", stack.port))
        links.append(link)
        size = len(body) + (0 if path.endswith("cut") else 100)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        link.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode() + body)
    state = stack.state / "state"
    wait_until(lambda: len(list((state / "datasets").glob(".*/file"))) == 2, "two datasets are uploaded")
    wait_until(lambda: list((state / "scratch").glob("*/file")), "a version is uploaded")
    time.sleep(0.2)  # the larger upload is being converted
    stack.kill("api")
    for link in links:
        link.close()
    stack.start("api")
    stack.wait_ready()


def writers_killed(client: httpx.Client, stack: Stack) -> None:
    """Write files as processes leave them that are killed while writing, and folders without an
    owner.
    """
    state = stack.state / "state"
    names = [
        "unfinished/tmpk1ll3d",
        f"runs/job_{'2' * 28}/state.pt",
        f"scratch/job_{'3' * 28}/model.safetensors",
        f"datasets/.{'c' * 32}/made/train.npy",
    ]
    if not stack.is_shared:  # else these folders are not used; tests/core/test_blobs.py has orphans of object stores
        names += [
            f"blobs/jobs/job_{'0' * 28}/1-0.{'a' * 32}{PARTIAL}",
            f"blobs/jobs/job_{'0a' * 14}/1-0",
            f"checkpoints/vae-mnist-2d/7/.{'b' * 32}",
        ]
    for name in names:
        (state / name).parent.mkdir(parents=True, exist_ok=True)
        (state / name).write_bytes(b"half")


@pytest.mark.parametrize(
    "leave",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in (cancelled_and_deleted, cancelled, training_deleted)),
        uploads_refused,
        uploads_interrupted,
        api_killed,
        writers_killed,
    ],
    ids=lambda leave: leave.__name__,
)
def test_nothing_is_left_behind(place: Stack, leave: Callable[[httpx.Client, Stack], None]) -> None:
    """After two sweeps the state folder has no more files than before."""
    with httpx.Client(base_url=place.url, timeout=120) as client:
        kept = upscale(client, "respond-async", 96).json()["id"]
        assert finished_job(client, kept)["status"] == "succeeded"
        result = client.get(f"/v1/jobs/{kept}/result").content
        before = files(place)
        leave(client, place)
        wait_until(lambda: files(place) <= before, "the disk is as it was", GONE_S)
        assert (client.get(f"/v1/jobs/{kept}/result").content == result) is True
