"""Workers that differ: in the models that they may load, in what they have loaded, and in their
kind of device.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import redis

from core.broker.keys import drain_key
from core.imaging.pictures import png
from tests.stack import Stack
from tests.waiting import wait_until

NPZ = {"Accept": "application/x-npz"}
FIRST, SECOND = "vae-mnist-2d*, faulty", "tiny,faulty"
BODY = {"model": "tiny", "seed": 3}


def start(stack: Stack, name: str, models: str, threads: str = "1") -> None:
    """Start a worker on the CPU for some models and with so many threads."""
    stack.start("inference", name, models=models, threads=threads, device="cpu")


def second_worker(stack: Stack, threads: str | None = "1") -> None:
    """Let the second worker run with so many threads, or not at all; wait until the service knows
    of it.
    """
    process = stack.parts.get("second")
    running = None
    if process is not None and process.poll() is None:
        found = re.search(r"(\d+)threads?", stack.heartbeat("second")[1]["device_kind"])
        running = found and found[1]
    if running == threads:
        return
    if running is not None:
        stack.kill("second")
    if threads is not None:
        start(stack, "second", SECOND, threads)
        wait_until(lambda: stack.serves("second"), "the second worker is ready")
        kind = stack.heartbeat("second")[1]["device_kind"]
        wait_until(lambda: _device_kind(stack.url) == kind, "requests for its models go to the second worker")


def _device_kind(url: str) -> str:
    return str(httpx.post(f"{url}/v1/samples", json=BODY, timeout=180).headers.get("reverie-device-kind", ""))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with a worker for some models; tests start a second one. Both may load `faulty`."""
    settings = {"device_wait_s": "2", "sync_timeout_s": "60", "rollout_timeout_s": "2", "max_count": "300000"}
    settings |= {"allowed_networks": "127.0.0.0/8"}
    running = Stack(tmp_path_factory.mktemp("fleet"), workers=(), **settings)
    faulty = running.state / "checkpoints" / "faulty"
    shutil.copytree(faulty / "1", faulty / "2")
    try:
        running.start("queue")
        running.wait_queue()
        running.start("api")
        start(running, "inference", FIRST)
        running.wait_ready()
        yield running
    finally:
        running.down()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the service."""
    with httpx.Client(base_url=stack.url, timeout=180) as opened:
        yield opened


def batches(stack: Stack) -> tuple[int, int]:
    """Return the number of batches that each of the two workers has run."""
    first, second = (sum(line.get("event") == "batch" for line in stack.log(name)) for name in ("inference", "second"))
    return first, second


def requests_of(stack: Stack, name: str) -> set[str]:
    """Return the ids of the requests of which a worker has run batches, from its log."""
    lists = (line["request_ids"] for line in stack.log(name) if line.get("event") == "batch")
    return {str(request_id) for ids in lists if isinstance(ids, list) for request_id in ids}


def test_a_batch_goes_to_a_worker_that_may_load_its_model(stack: Stack, client: httpx.Client) -> None:
    """Each of two restricted workers loads and runs its own models only, and a request for a model
    of either succeeds.
    """
    second_worker(stack)
    wait_until(lambda: set(stack.heartbeat("second")[1]["capacity"]) >= {"tiny@1"}, "tiny is loaded")
    assert all(ref.startswith(("tiny", "faulty")) for ref in stack.heartbeat("second")[1]["capacity"])
    ids: dict[str, set[str]] = {"tiny": set(), "vae-mnist-2d": set()}
    for model, own in ids.items():
        for seed in range(3):
            response = client.post("/v1/samples", json={"model": model, "seed": seed})
            assert response.status_code == 200
            own.add(response.headers["x-request-id"])
    wait_until(lambda: requests_of(stack, "second") >= ids["tiny"], "the second worker has run its batches")
    wait_until(lambda: requests_of(stack, "inference") >= ids["vae-mnist-2d"], "the first worker has run its batches")
    assert not requests_of(stack, "second") & ids["vae-mnist-2d"]
    assert not requests_of(stack, "inference") & ids["tiny"]


def test_a_large_job_is_spread_over_all_workers(stack: Stack, client: httpx.Client) -> None:
    """Both workers that may load a model run batches of one job, its rows are those of a request
    that one worker has run, and its webhook gets its events.
    """
    second_worker(stack)
    # 250 times as many rows as a time slice has, at most 1024
    body: dict[str, Any] = {"model": "faulty", "count": 260_000, "seed": 5, "options": {"seconds": 0.01}}
    webhook = {"url": "http://127.0.0.1:9/", "events": ["job.running", "job.succeeded"]}
    wait_until(lambda: all(_has(stack, name, "faulty@2") for name in ("inference", "second")), "both have the model")
    before = batches(stack)
    job = client.post("/v1/samples", json={**body, "webhook": webhook}, headers={"Prefer": "respond-async"})
    ended = wait_until(lambda: _ended(client, job.headers["location"]), "the job ends")
    assert ended["status"] == "succeeded"
    deliveries = client.get(f"{job.headers['location']}/deliveries").json()["data"]
    assert sorted(one["event"] for one in deliveries) == ["job.running", "job.succeeded"]
    wait_until(
        lambda: min(after - first for after, first in zip(batches(stack), before, strict=True)) > 1, "both ran it"
    )
    few = client.post("/v1/samples", json={**body, "count": 5}, headers=NPZ)
    result = client.get(f"{job.headers['location']}/result", headers=NPZ)
    first, second = (np.load(io.BytesIO(one.content))["images"][:5] for one in (few, result))
    assert np.array_equal(first, second)


def _has(stack: Stack, name: str, ref: str) -> bool:
    return ref in stack.heartbeat(name)[1]["capacity"]


def test_a_worker_that_is_asked_to_stop_stops(stack: Stack) -> None:
    """The key that a rollout sets for a slow worker makes it exit with status 0, as SIGTERM does,
    and its log has the reason.
    """
    second_worker(stack)
    worker_id, _ = stack.heartbeat("second")
    with redis.Redis(port=stack.queue_port) as queue:
        queue.set(drain_key(worker_id), "it was too slow")
    assert stack.parts["second"].wait(60) == 0
    assert any(line.get("reason") == "it was too slow" for line in stack.log("second"))


@pytest.mark.slow
def test_a_slow_worker_is_stopped_when_a_version_becomes_active(stack: Stack, client: httpx.Client) -> None:
    """A worker that is too busy to load a version in time stops, the version becomes active on the
    other one, and the audit log names the worker. A job that it ran goes on.
    """
    second_worker(stack)
    worker_id, _ = stack.heartbeat("second")
    body = {"model": "tiny", "seed": 4, "options": {"steps": 30, "seconds": 1.0}}
    path = client.post("/v1/samples", json=body, headers={"Prefer": "respond-async"}).headers["location"]
    wait_until(lambda: client.get(path).json()["progress"] > 0, "the second worker is busy")
    changed = client.patch("/v1/models/faulty", json={"version": "1"})
    assert (changed.status_code, changed.json()["version"]) == (200, "1")
    assert stack.parts["second"].wait(60) == 0
    wait_until(lambda: any(worker_id in str(line.get("rollout")) for line in stack.log("api")), "the reason is logged")
    second_worker(stack)
    ended = wait_until(lambda: _ended(client, path), "the job goes on")
    assert ended["status"] == "succeeded"
    assert client.patch("/v1/models/faulty", json={"version": "2"}).status_code == 200


def test_a_request_that_no_worker_can_run_is_rejected(stack: Stack, client: httpx.Client) -> None:
    """A model that all live workers leave out is 503 with `Retry-After` and what would work; a job
    waits, says why, and runs when a worker comes.
    """
    rejected = client.post("/v1/samples", json={"model": "enlarge", "seed": 1})
    if rejected.status_code == 422:  # it has no samples
        rejected = client.post("/v1/upscales", files={"image": _picture()}, data={"model": "enlarge"})
    assert (rejected.status_code, rejected.headers["retry-after"]) == (503, "5"), rejected.text
    assert "Prefer: respond-async" in rejected.json()["detail"]
    second_worker(stack, None)
    job = client.post("/v1/samples", json=BODY, headers={"Prefer": "respond-async"}).json()
    path = f"/v1/jobs/{job['id']}"
    wait_until(lambda: "has tiny@1" in str(client.get(path).json()["waiting_reason"]), "the job says why it waits")
    response = wait_until(lambda: _rejected(client), "requests for the model are rejected")
    assert "no running inference worker can run tiny@1" in response.json()["detail"]
    second_worker(stack, "2")
    wait_until(lambda: client.get(path).json()["status"] == "succeeded", "the job runs on the new worker")
    assert client.post("/v1/samples", json=BODY).status_code == 200


def _rejected(client: httpx.Client) -> httpx.Response | None:
    response = client.post("/v1/samples", json=BODY, headers={"Prefer": "wait=1"})
    return response if response.status_code == 503 else None


def _picture() -> bytes:
    return png(np.zeros((3, 8, 8), np.uint8))


def test_all_rows_are_of_one_device_kind(stack: Stack, client: httpx.Client) -> None:
    """Responses name the device kind. When the worker of a request's kind is gone for good, the
    request begins again on another kind, with a header that says so; so does a job, with an event.
    """
    second_worker(stack, "2")
    kinds = [stack.heartbeat(name)[1]["device_kind"] for name in ("inference", "second")]
    assert len(set(kinds)) == 2
    image = base64.b64encode(png(np.zeros((1, 8, 8), np.uint8))).decode()
    slow = {"model": "faulty", "options": {"seconds": 0.05, "k": 100}, "images": [image]}
    with ThreadPoolExecutor(2) as pool:
        sent = [pool.submit(client.post, "/v1/likelihoods", json={**slow, "seed": seed}) for seed in range(2)]
        jobs = [
            client.post("/v1/likelihoods", json={**slow, "seed": seed}, headers={"Prefer": "respond-async"})
            for seed in (2, 3)
        ]
        paths = [job.headers["location"] for job in jobs]
        chosen = [job.headers["reverie-device-kind"] for job in jobs]
        assert set(chosen) <= set(kinds)
        wait_until(lambda: all(client.get(path).json()["progress"] > 0 for path in paths), "the jobs have begun")
        stack.kill("second")
        responses = [one.result() for one in sent]
    assert [one.status_code for one in responses] == [200, 200]
    assert {one.headers["reverie-device-kind"] for one in responses} == {kinds[0]}
    restarts = [one.headers.get("reverie-restarts") for one in responses]
    assert "1" in restarts
    for path, kind in zip(paths, chosen, strict=True):
        job = wait_until(lambda path=path: _ended(client, path), "the job ends")  # type: ignore[misc]
        assert (job["status"], job["device_kind"]) == ("succeeded", kinds[0])
        if kind != kinds[0]:
            events = client.get(f"{path}/events", headers={"Accept": "text/event-stream"}).text
            assert "it starts again at row 0" in events or "restarted" in events


def _ended(client: httpx.Client, path: str) -> dict[str, Any] | None:
    job: dict[str, Any] = client.get(path).json()
    return job if job["finished_at"] else None
