"""Wait estimates of jobs, with a real job store and no worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from api.wait_estimates import WaitEstimate, WaitEstimator
from core.jobs.records import TRAINING, Event, Job
from core.jobs.store import JobStore
from tests.api.helpers import TINY, create_job, finished_job, job_when
from tests.core.jobs.test_store import LEASE_S, job


class Setting:
    """A job store and its wait estimator; `reads` lists the queries."""

    def __init__(self, folder: Path, inference: int = 1, training: int = 1) -> None:
        self.job_store = JobStore(f"sqlite:///{folder / 'jobs.sqlite3'}")
        self.reads: list[str] = []

        async def read(function: Callable[..., Any], *args: object) -> Any:
            self.reads.append(function.__name__)
            return await asyncio.to_thread(function, *args)

        missing = "" if inference else "no inference worker is running"

        async def trainers() -> int:
            return training

        self.wait_estimates = WaitEstimator(self.job_store.engine, read, lambda _ref, _kind: missing, trainers)

    async def of(self, *jobs: Job) -> list[WaitEstimate]:
        """Return the estimates of jobs in their current state."""
        now = [self.job_store.get(one.id) for one in jobs]
        return await self.wait_estimates.of([one for one in now if one is not None])


async def _check_queued(folder: Path) -> None:
    setting = Setting(folder)
    first, second, third = (job(queued_at=time.time() - 10 + number) for number in range(3))
    setting.job_store.insert(first, second, third)
    estimates = await setting.of(first, second, third)
    assert [one.position for one in estimates] == [1, 2, 3]
    assert [one.reason for one in estimates] == [
        "it is next, when a worker is free",
        "1 other job will be started first",
        "2 other jobs will be started first",
    ]
    assert all(one.start_s is None and one.remaining_s is None for one in estimates)  # no pace is known yet
    now = time.time()
    ended = [job(status="succeeded", started_at=now - 20, finished_at=now - number) for number in range(10)]
    setting.job_store.insert(*ended)
    await asyncio.sleep(1.1)
    (last,) = await setting.of(third)
    assert last.start_s is not None
    assert 1.5 < last.start_s < 4.5  # third in the queue at one job per second


def test_queued_jobs_have_position_reason_and_start(tmp_path: Path) -> None:
    """A queued job has a position and a reason; its start is estimated from the pace of recent
    jobs, if known.
    """
    asyncio.run(_check_queued(tmp_path))


def test_without_workers_nothing_is_promised(tmp_path: Path) -> None:
    """Without workers the reason says so, and there is no estimated start."""

    async def check() -> None:
        setting = Setting(tmp_path, inference=0, training=0)
        samples, training = job(), job(kind=TRAINING)
        setting.job_store.insert(samples, training)
        setting.job_store.insert(*(job(status="succeeded", finished_at=time.time()) for _ in range(10)))
        estimates = await setting.of(samples, training)
        assert [one.reason for one in estimates] == ["no inference worker is running", "no training worker is running"]
        assert [one.start_s for one in estimates] == [None, None]

    asyncio.run(check())


def test_other_states_have_their_reason(tmp_path: Path) -> None:
    """Paused, blocked, running and ended jobs, and those with images to fetch, have a reason or a
    remaining time without a position.
    """

    async def check() -> None:
        setting = Setting(tmp_path)
        now = time.time()
        paused, blocked = (
            job(kind=TRAINING, status="paused"),
            job(blocked_reason="the disk is full", not_before=now + 9),
        )
        running = job(status="running", started_at=now - 10, progress=0.25, lease_holder="w", lease_until=now + 60)
        begun = job(status="running", started_at=now - 10, progress=0.001, lease_holder="w", lease_until=now + 60)
        ended = job(status="failed", finished_at=now)
        fetched = job(input_urls={"image_url": ["http://x/y.png"]})
        setting.job_store.insert(paused, blocked, running, begun, ended, fetched)
        estimates = await setting.of(paused, blocked, running, begun, ended)
        assert (estimates[0].position, estimates[0].reason) == (None, "it is paused; resume it to go on")
        assert (estimates[1].position, estimates[1].reason) == (None, "the disk is full")
        assert estimates[2].remaining_s is not None
        assert abs(estimates[2].remaining_s - 30) < 2
        assert estimates[3:] == [WaitEstimate(), WaitEstimate()]
        assert setting.reads == []  # none of them needs the queue
        (estimate,) = await setting.of(fetched)
        assert (estimate.position, estimate.reason) == (None, "its images are to be fetched by URL")

    asyncio.run(check())


def test_the_next_training_starts_when_one_ends(tmp_path: Path) -> None:
    """With one busy worker, the next training is estimated to start when the running one ends;
    other starts are unknown.
    """

    async def check() -> None:
        setting, free = Setting(tmp_path, training=1), Setting(tmp_path, training=2)
        running, following, later = (
            job(kind=TRAINING, model=f"m{number}", queued_at=time.time() + number) for number in range(3)
        )
        setting.job_store.insert(running)
        (claimed,) = setting.job_store.claim("t", LEASE_S, kinds=(TRAINING,))
        setting.job_store.insert(following, later)
        assert [one.start_s for one in await setting.of(following, later)] == [None, None]
        setting.job_store.append_events(claimed.claim, [Event("progress", {"progress": 0.2})], 0.2)
        await asyncio.sleep(1.2)
        setting.job_store.append_events(claimed.claim, [Event("progress", {"progress": 0.4})], 0.4)
        estimates = await setting.of(running, following, later)
        assert estimates[0].remaining_s is not None
        assert 2 < estimates[0].remaining_s < 6  # a fifth took 1.2 s
        assert estimates[1].start_s is not None
        assert abs(estimates[1].start_s - estimates[0].remaining_s) < 0.5
        assert (estimates[2].position, estimates[2].start_s) == (2, None)
        assert [one.start_s for one in await free.of(following)] == [None]

    asyncio.run(check())


def test_jobs_asked_for_together_share_a_read(tmp_path: Path) -> None:
    """A hundred clients that poll cause one query of positions per second."""

    async def check() -> None:
        setting = Setting(tmp_path)
        jobs = [job(queued_at=time.time() + number) for number in range(100)]
        setting.job_store.insert(*jobs)
        for _ in range(3):
            estimates = await asyncio.gather(*(setting.of(one) for one in jobs))
            assert [one.position for (one,) in estimates] == list(range(1, 101))
        assert setting.reads.count("queue_positions") <= 3

    asyncio.run(check())


def test_jobs_and_lists_say_how_long_it_takes(client: httpx.Client) -> None:
    """Jobs and trainings, alone and in lists, have the fields of estimates; they are null once the
    job has ended.
    """
    fields = {"position", "waiting_reason", "estimated_start_s", "estimated_remaining_s", "deadline_at"}
    slow = create_job(client, "/v1/samples", model=TINY, steps=30, seconds=0.1, count=20, seed=1)
    running = job_when(client, slow, lambda body: body["estimated_remaining_s"] is not None)
    assert 0 <= running["estimated_remaining_s"] < 30
    assert running["position"] is None
    listed = client.get("/v1/jobs?limit=5").json()["data"]
    assert all(fields <= set(body) for body in listed)
    ended = finished_job(client, slow)
    assert {ended[name] for name in fields} == {None}
    assert all(fields <= set(body) for body in client.get("/v1/trainings").json()["data"])
