"""Disks that become full to the last byte and have room again later."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from core.broker.codec import unpack
from core.broker.keys import WORKERS
from core.imaging.pictures import png
from tests.full_disk import SmallDisk, small_disk
from tests.service.jobs import create_job, finished_jobs, held, report, wait_for_running
from tests.stack import ON_ONE_HOST, Stack
from tests.waiting import wait_until
from workers.inference.context import INLINE_BYTES

SIZES = [
    pytest.param(40, 2, 1, (4, 0.4), id="small"),
    pytest.param(400, 10, 10, (4, 1.6), id="full", marks=pytest.mark.slow),
]
"""Jobs, how often the disk fills up, the least number of jobs running then, and (jobs per pass, its
duration in s).
"""

REFUSED = {503, 507}

TILE_BYTES = 3 * (4 * 24) ** 2
"""Result of a tile of the family `enlarge`: 24 pixels without its margin, four times as wide."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, SmallDisk]]:
    """A service whose whole state is on one small disk, including the queue server's."""
    yield from _stack(tmp_path_factory.mktemp("whole"), "state")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, SmallDisk]]:
    """A service with only its blob store on a small disk."""
    yield from _stack(tmp_path_factory.mktemp("store"), "state/blobs", storage_wait_s="8")


@pytest.fixture(autouse=True)
def _room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Empty the disk after each test, because a test may fail while it is full."""
    yield
    for name in {"whole", "store"} & set(request.fixturenames):
        request.getfixturevalue(name)[1].empty()


def _stack(folder: Path, where: str, **settings: str) -> Iterator[tuple[Stack, SmallDisk]]:
    settings = {"max_sync_timeout_s": "280", "log_level": "warning", "sweep_s": "1", **ON_ONE_HOST, **settings}
    with small_disk(folder / where, 64 << 20) as disk, Stack(folder, **settings) as running:
        try:
            yield running, disk
        finally:
            disk.empty()


def upscale(client: httpx.Client, prefer: str, size: int = 96, **fields: Any) -> httpx.Response:
    """Return the response to an upscale of a noise image; the tiles of a job are stored in the blob
    store.
    """
    pixels = np.random.default_rng(size).integers(0, 256, (3, size, size), dtype=np.uint8)
    body = {"model": "enlarge", "seed": "7", "scale": "2", **{name: str(value) for name, value in fields.items()}}
    headers = {"Prefer": prefer}
    return client.post("/v1/upscales", files={"image": ("picture", png(pixels))}, data=body, headers=headers)


def create_jobs(client: httpx.Client, jobs: int, together: int, pass_s: float) -> tuple[dict[int, str], list[str]]:
    """Create sample jobs, of which `together` share a pass, and an upscale for every tenth; return
    the ids by seed and those of the upscales.
    """
    ids, pictures = {}, []
    for seed in range(1000, 1000 + jobs):
        ids[seed] = create_job(client, seed, seconds=pass_s + 0.0001 * (seed // together % 100))
        if seed % 10 == 0:
            pictures.append(upscale(client, "respond-async", seconds=0.02).json()["id"])
    return ids, pictures


def go_on(stack: Stack, interrupted: set[str]) -> None:
    """Wait until the interrupted jobs have run, so that the next full disk meets others."""
    wait_until(lambda: not interrupted & held(stack, None), "the interrupted jobs have finished")


@pytest.mark.parametrize(("jobs", "times", "least", "passes"), SIZES)
def test_a_full_disk_costs_no_job(
    whole: tuple[Stack, SmallDisk], jobs: int, times: int, least: int, passes: tuple[int, float]
) -> None:
    """While the disk is full, new requests get 503 or 507; every accepted job succeeds without a
    charged attempt.
    """
    stack, disk = whole
    interrupted: set[str] = set()
    codes: Counter[int] = Counter()
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        right = upscale(client, "wait=60").content
        ids, pictures = create_jobs(client, jobs, *passes)
        for number in range(times):
            interrupted |= wait_for_running(stack, None)
            disk.fill()
            interrupted |= held(stack, None)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                disk.fill()
                response = upscale(client, "respond-async", seconds=0.02)
                codes[response.status_code] += 1
                assert response.status_code in {202, *REFUSED}, response.text
                if response.status_code == 202:
                    pictures.append(response.json()["id"])
                seed = 5000 + number
                body = {"model": "faulty", "seed": seed, "seconds": 0.05}
                response = client.post("/v1/samples", json=body, headers={"Prefer": "respond-async"})
                codes[response.status_code] += 1
                if response.status_code == 202:
                    ids[seed] = response.json()["id"]
                else:
                    assert response.status_code in REFUSED, response.text
                response = client.post("/v1/samples", json=body, headers={"Prefer": "wait=1"})
                codes[response.status_code] += 1
                assert response.status_code in {200, 202, *REFUSED}, response.text
                time.sleep(0.1)
            disk.empty()
            go_on(stack, interrupted)
        bodies = finished_jobs(stack, {**ids, **dict(enumerate(pictures))})
        lost = {key: body["problem"] for key, body in bodies.items() if body["status"] != "succeeded"}
        charged = {key: body["attempts"] for key, body in bodies.items() if body["attempts"]}
        struck = len(interrupted & {*ids.values(), *pictures})
        report("jobs over a full disk", jobs=len(bodies), interrupted=struck, refused=codes[507] + codes[503])
        assert lost == {}
        assert charged == {}
        assert struck >= least
        assert codes[507] > 0
        for seed, job_id in ids.items():
            got = client.get(f"/v1/jobs/{job_id}/result").json()["images"]
            assert got == client.post("/v1/samples", json={"model": "faulty", "seed": seed}).json()["images"]
        for job_id in pictures:
            assert client.get(f"/v1/jobs/{job_id}/result").content == right
    assert all(part.poll() is None for part in stack.parts.values())  # no process has exited


@pytest.mark.slow
def test_a_job_waits_for_room_in_the_blob_store(store: tuple[Stack, SmallDisk]) -> None:
    """A job that cannot store its result waits with the reason, delays no other job, and finishes
    once there is room.
    """
    stack, disk = store
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        right = upscale(client, "wait=60").content
        job_id = upscale(client, "respond-async", seconds=1).json()["id"]
        disk.fill()
        wait_until(lambda: "no room" in client.get(f"/v1/jobs/{job_id}").text, "the job waits for room")
        other = create_job(client, 1)  # its result is small enough for the database
        assert finished_jobs(stack, {1: other})[1]["status"] == "succeeded"
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "queued"
        disk.empty()
        body = finished_jobs(stack, {0: job_id})[0]
        assert (body["status"], body["attempts"], body["waiting_reason"]) == ("succeeded", 0, None)
        assert client.get(f"/v1/jobs/{job_id}/result").content == right


@pytest.mark.slow
def test_a_job_that_finds_no_room_ends_with_the_reason(store: tuple[Stack, SmallDisk]) -> None:
    """A job that finds no room within `storage_wait_s` fails with 507 and without a charged
    attempt.
    """
    stack, disk = store
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        job_id = upscale(client, "respond-async", seconds=1).json()["id"]
        disk.fill()
        started = time.monotonic()
        body = finished_jobs(stack, {0: job_id})[0]
        disk.empty()
    assert body["status"] == "failed"
    assert body["attempts"] == 0
    assert "No space left on device" in json.dumps(body["problem"])
    assert body["problem"]["status"] == 507
    assert 5 < time.monotonic() - started < 40


@pytest.mark.slow
def test_a_waiting_request_is_computed_at_most_twice(store: tuple[Stack, SmallDisk]) -> None:
    """A synchronous request whose result can be neither sent nor stored gets 507 within seconds."""
    stack, disk = store
    with redis.Redis(port=stack.queue_port) as queue:
        (heartbeat,) = map(unpack, queue.hgetall(WORKERS).values())
    if heartbeat["capacity"]["enlarge@1"]["upscale"][1] * TILE_BYTES <= INLINE_BYTES:
        pytest.skip("on a machine as slow as this one is now, the result of a slice fits into a message")
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        right = upscale(client, "wait=60", 160, scale=4).content
        before = tiles(client)
        disk.fill()
        started = time.monotonic()
        response = upscale(client, "wait=30", 160, scale=4)
        took_s = time.monotonic() - started
        time.sleep(4)
        computed = tiles(client) - before
        disk.empty()
        assert response.status_code == 507
        assert "No space left on device" in response.json()["detail"]
        assert took_s < 10
        assert 0 < computed <= 2 * 49
        assert (upscale(client, "wait=60", 160, scale=4).content == right) is True


def tiles(client: httpx.Client) -> int:
    """Return the number of tiles that the workers have enlarged."""
    lines = client.get("/metrics").text.splitlines()
    done = [line for line in lines if line.startswith("reverie_worker_rows") and 'operation="upscale"' in line]
    return sum(int(float(line.split()[-1])) for line in done)


def test_jobs_that_cannot_be_stored_are_rejected(store: tuple[Stack, SmallDisk]) -> None:
    """Concurrent upscale jobs whose images cannot be stored get 507, and no job is listed."""
    stack, disk = store
    with httpx.Client(base_url=stack.url, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        listed = len(client.get("/v1/jobs", params={"limit": 100}).json()["data"])
        disk.fill()
        responses = list(pool.map(lambda n: upscale(client, "respond-async", 128 + n), range(8)))
        disk.empty()
        assert {response.status_code for response in responses} == {507}
        assert "No space left on device" in responses[0].json()["detail"]
        assert len(client.get("/v1/jobs", params={"limit": 100}).json()["data"]) == listed
