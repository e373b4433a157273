"""Accepted jobs and synchronous requests survive crashes: a small run here, a full one in `make
test-slow`.
"""

from __future__ import annotations

import base64
import json
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from core.imaging.pictures import png
from tests.families.faulty import KILLS, RAISES
from tests.service.jobs import create_job, finished_jobs, have_ended, in_a_pass, report
from tests.stack import Stack

SIZES = [pytest.param(60, 2, 1, id="small"), pytest.param(500, 10, 20, id="full", marks=pytest.mark.slow)]
"""Jobs, kills, and the least number of jobs that must have been running at a kill."""


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose processes tests kill; each test leaves all of them running."""
    settings = {"max_waiting": "4096", "max_sync_timeout_s": "280", "log_level": "warning"}
    with Stack(tmp_path_factory.mktemp("chaos"), workers=["inference"], **settings) as running:
        yield running


def check_kept(stack: Stack, ids: dict[int, str], interrupted: set[str], least: int) -> None:
    """Check that every job ended once, with the bytes of an undisturbed run; at most 1 % may
    fail.
    """
    bodies = finished_jobs(stack, ids)
    lost = {seed: body["problem"] for seed, body in bodies.items() if body["status"] != "succeeded"}
    assert len(lost) <= len(ids) // 100, lost
    struck = len(interrupted & set(ids.values()))
    report("accepted jobs", jobs=len(ids), interrupted=struck, succeeded=len(ids) - len(lost))
    assert struck >= least
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        for seed, job_id in ids.items():
            if seed in lost:
                continue
            got = client.get(f"/v1/jobs/{job_id}/result").json()["images"]
            undisturbed = client.post("/v1/samples", json={"model": "faulty", "seed": seed}).json()["images"]
            assert got == undisturbed
            stream = client.get(f"/v1/jobs/{job_id}/events").text
            ends = [line for line in stream.splitlines() if '"succeeded"' in line or '"failed"' in line]
            assert len(ends) == 1


def post_all(stack: Stack, seeds: range) -> dict[int, str]:
    """Create a job with each of these seeds; return their ids by seed."""
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        return {seed: create_job(client, seed) for seed in seeds}


def strike(
    stack: Stack, jobs: range, blows: int, blow: Callable[[], None], part: str | None = None
) -> tuple[dict[int, str], set[str]]:
    """Create the jobs with these seeds in as many waves as there are blows, and call `blow` once in
    each, while jobs run (on `part`).

    Small jobs share passes, so that all at once would have ended before the second blow. A wave
    whose jobs have ended, or run elsewhere, before they were seen is created again with seeds from
    the end of `jobs` on. Return the ids by seed, and the jobs that ran at a blow.
    """
    ids: dict[int, str] = {}
    interrupted: set[str] = set()
    size = len(jobs) // blows
    further = jobs.stop
    for wave in range(blows):
        ids |= post_all(stack, jobs[wave * size : (wave + 1) * size if wave < blows - 1 else None])
        until = time.monotonic() + 60
        while not (running := in_a_pass(stack, part)):
            assert time.monotonic() < until, "no job has run where it should be interrupted"
            if have_ended(stack, ids.values()):
                ids |= post_all(stack, range(further, further + size))
                further += size
            time.sleep(0.02)
        interrupted |= running
        blow()
    return ids, interrupted


@pytest.mark.parametrize(("jobs", "blows", "least"), SIZES)
def test_worker_killed(chaos: Stack, jobs: int, blows: int, least: int) -> None:
    """No job is lost if a worker is killed in the middle of a batch."""

    def blow() -> None:
        chaos.kill("inference")
        chaos.start("inference")

    check_kept(chaos, *strike(chaos, range(1000, 1000 + jobs), blows, blow, "inference"), least)


@pytest.mark.parametrize(("jobs", "blows", "least"), SIZES)
def test_worker_frozen_past_its_lease(chaos: Stack, jobs: int, blows: int, least: int) -> None:
    """A worker that is frozen until its lease has expired can no longer write; another worker runs
    its jobs.
    """
    chaos.start("inference", "second")

    def blow() -> None:
        chaos.freeze("inference")
        time.sleep(5)
        chaos.kill("inference", signal.SIGCONT)

    seeds = range(1000, 1000 + jobs)
    ids, interrupted = strike(chaos, seeds, max(1, blows // 3), blow, "inference")
    chaos.kill("second", signal.SIGTERM)
    del chaos.parts["second"]
    check_kept(chaos, ids, interrupted, least)


@pytest.mark.parametrize(("jobs", "blows", "least"), SIZES)
def test_api_killed(chaos: Stack, jobs: int, blows: int, least: int) -> None:
    """Jobs survive the API process that accepted them, as do synchronous requests that it had
    turned into jobs.
    """
    with httpx.Client(base_url=chaos.url, timeout=60) as client, ThreadPoolExecutor(16) as pool:
        half = range(1000, 1000 + jobs // 2)
        waited = dict(zip(half, pool.map(lambda seed: create_job(client, seed, "wait=1", 2.0), half), strict=True))

    def blow() -> None:
        chaos.kill("api")
        chaos.start("api")
        chaos.wait_ready()

    seeds = range(1000 + jobs // 2, 1000 + jobs)
    ids, interrupted = strike(chaos, seeds, max(1, blows // 3), blow)
    check_kept(chaos, waited | ids, interrupted, least)


@pytest.mark.parametrize(("jobs", "blows", "least"), SIZES)
def test_queue_server_killed(chaos: Stack, jobs: int, blows: int, least: int) -> None:
    """Messages that are lost with the queue server are sent again."""

    def blow() -> None:
        chaos.kill("queue")
        time.sleep(0.5)
        chaos.start("queue")
        chaos.wait_queue()

    check_kept(chaos, *strike(chaos, range(1000, 1000 + jobs), max(1, blows // 3), blow), least)


@pytest.mark.parametrize(
    ("requests", "kills", "limit_s"),
    [
        pytest.param(40, 1, 30.0, id="small"),
        pytest.param(500, 4, 20.0, id="full", marks=[pytest.mark.slow, pytest.mark.timing]),
    ],
)
def test_waiting_requests_survive_workers(chaos: Stack, requests: int, kills: int, limit_s: float) -> None:
    """Synchronous requests get the right response in time although workers are killed; the full
    size needs an idle machine.
    """
    with httpx.Client(base_url=chaos.url, timeout=60) as client:
        right = {
            seed: client.post("/v1/samples", json={"model": "faulty", "seed": seed}).json() for seed in range(100, 150)
        }
    done = threading.Event()

    def assassin() -> None:
        for _ in range(kills):
            time.sleep(0.5)
            chaos.kill("inference")
            chaos.start("inference")
            while not chaos.serves("inference"):  # otherwise the next kill hits a worker that is not ready
                if done.wait(0.05):
                    return
            if done.wait(1.5):
                return

    def inference_request(number: int) -> tuple[float, int, bool]:
        time.sleep(number / requests * (1 + 5 * (kills - 1)))
        started = time.monotonic()
        body = {"model": "faulty", "seed": 100 + number % 50, "seconds": 0.05}
        response = shared.post("/v1/samples", json=body, headers={"Prefer": "wait=30"}, timeout=40)
        same = response.status_code == 200 and response.json()["images"] == right[100 + number % 50]["images"]
        return time.monotonic() - started, response.status_code, same

    killer = threading.Thread(target=assassin)
    killer.start()
    # one client: to create one for each request takes seconds of CPU time, in which connections are
    # open and unused
    limits = httpx.Limits(max_connections=requests)
    with httpx.Client(base_url=chaos.url, limits=limits) as shared, ThreadPoolExecutor(requests) as pool:
        responses = list(pool.map(inference_request, range(requests)))
    done.set()
    killer.join()
    assert {status for _, status, _ in responses} == {200}
    assert all(same for _, _, same in responses)
    report("waiting requests under kills", slowest_s=max(seconds for seconds, _, _ in responses))
    assert max(seconds for seconds, _, _ in responses) < limit_s


def test_a_long_run_resumes_after_its_worker_died(chaos: Stack) -> None:
    """A job of many slices resumes from its last slice and ends with the bytes of an undisturbed
    run.
    """
    half = np.zeros((1, 8, 8), np.uint8)
    half[:, 4:] = 255
    picture = base64.b64encode(png(half)).decode()
    body = {"model": "tiny", "seed": 7, "images": [picture], "mask": picture, "count": 3, "steps": 80}
    with httpx.Client(base_url=chaos.url, timeout=60) as client:
        undisturbed = client.post("/v1/inpaintings", json=body)
        job = client.post("/v1/inpaintings", json={**body, "seconds": 0.06}, headers={"Prefer": "respond-async"}).json()
        here = job["links"]["self"]
        while client.get(here).json()["progress"] < 0.3:
            time.sleep(0.05)
        chaos.kill("inference")
        reached = client.get(here).json()["progress"]
        assert reached < 1
        chaos.start("inference")
        assert finished_jobs(chaos, {0: job["id"]})[0]["status"] == "succeeded"
        assert client.get(job["links"]["result"]).content == undisturbed.content
        events = client.get(f"{here}/events").text.splitlines()
    progress = [json.loads(line.removeprefix("data: "))["progress"] for line in events if '"progress"' in line]
    assert progress == sorted(progress)  # the job was not started again from its beginning


@pytest.mark.parametrize(
    ("bad", "as_job"),
    [
        pytest.param(RAISES, False, id="synchronous-raises"),
        pytest.param(KILLS, False, id="synchronous-kills the process"),
        pytest.param(RAISES, True, id="job-raises"),
        pytest.param(KILLS, True, id="job-kills the process", marks=pytest.mark.slow),
    ],
)
def test_one_bad_row_fails_alone(chaos: Stack, *, bad: int, as_job: bool) -> None:
    """In a batch of 32, only the row that raises or kills its worker fails, with the reason."""
    seeds = [*range(2000, 2031), bad]
    random.Random(0).shuffle(seeds)
    with (
        chaos.restarting("inference"),
        httpx.Client(base_url=chaos.url, timeout=290) as client,
        ThreadPoolExecutor(33) as pool,
    ):
        # a slow pass first, so that the 32 requests share the next batch
        pool.submit(client.post, "/v1/samples", json={"model": "faulty", "seed": 1, "seconds": 1.0})
        time.sleep(0.3)
        if as_job:
            bodies = finished_jobs(chaos, {seed: create_job(client, seed) for seed in seeds})
            good = {seed for seed, body in bodies.items() if body["status"] == "succeeded"}
            problem = bodies[bad]["problem"]
        else:
            body = {"model": "faulty", "seconds": 0.0}
            wait = {"Prefer": "wait=280"}

            def post(seed: int) -> httpx.Response:
                return client.post("/v1/samples", json={**body, "seed": seed}, headers=wait)

            responses = dict(zip(seeds, pool.map(post, seeds), strict=True))
            good = {seed for seed, response in responses.items() if response.status_code == 200}
            problem = responses[bad].json()
    assert good == set(seeds) - {bad}
    reason = {RAISES: "bad luck", KILLS: "died or sent no heartbeat 3 times"}[bad]
    assert reason in json.dumps(problem)
