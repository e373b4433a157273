"""Estimates when jobs start and end; reads their queue positions, and why they wait.

The job store is read only for queued jobs and running trainings, and at most about once a second
for all requests together, so that polling costs little.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Engine

from core.jobs.claims import queue_of
from core.jobs.database import clock_offset_s
from core.jobs.queue_positions import Pace, inference_pace, queue_positions, training_paces
from core.jobs.records import TRAINING, Job

KEEP_S = 1.0  # how long what was read is kept
_KEEP_FACTOR = 10  # positions are kept so many times as long as it takes to read them
_LEAST_PROGRESS, _LEAST_S = 0.01, 0.5  # before that the progress of a job says nothing about its end


@dataclass(frozen=True)
class WaitEstimate:
    """The position of a queued job (1 is next), why the job waits, and estimates in seconds.

    `start_s` is the time from now until a queued job starts, `remaining_s` until a running job
    ends. A value that is unknown, or does not apply to the job, is None.
    """

    position: int | None = None
    reason: str | None = None
    start_s: float | None = None
    remaining_s: float | None = None


UNKNOWN = WaitEstimate()


@dataclass(frozen=True)
class _Snapshot:
    """How fast jobs progress, as read from the job store at `taken_at` (monotonic, seconds).

    `pace` is the number of inference jobs that end per second. `trainings` has the progress of
    running trainings, keyed by job id. None means unknown. `clock_offset_s` is how far the
    database's clock, which dates jobs, is ahead of this host's.
    """

    pace: float | None = None
    trainings: dict[str, Pace | None] | None = None
    taken_at: float = float("-inf")
    clock_offset_s: float = 0.0

    def now(self) -> float:
        """Return the time of the database's clock in Unix time."""
        return time.time() + self.clock_offset_s


class WaitEstimator:
    """Estimates how long queued jobs wait until they start, and running jobs until they end."""

    def __init__(
        self,
        engine: Engine,
        read: Callable[..., Awaitable[Any]],
        missing_worker: Callable[[str, str | None], str],
        training_workers: Callable[[], Awaitable[int]],
    ) -> None:
        """Set the job store's `engine`, and how to call functions that read it.

        `read(function, *args)` calls `function` in a thread. `missing_worker` returns why no live
        inference worker can run a version (`name@version`), on a device kind if one is given, or
        ""; `training_workers` returns the number of live training workers.
        """
        self._engine = engine
        self._read = read
        self._missing_worker = missing_worker
        self._training_workers = training_workers
        self._snapshot = _Snapshot(clock_offset_s=clock_offset_s(engine))
        self._positions: dict[str, int | None] = {}  # as of the last read, of all jobs that were asked for
        self._positions_until = float("-inf")
        self._asked: set[str] = set()  # since the last read
        self._next_read: asyncio.Task[dict[str, int | None]] | None = None
        self._reading = asyncio.Lock()

    async def of(self, jobs: Sequence[Job]) -> list[WaitEstimate]:
        """Return an estimate for each job in `jobs`, in the same order."""
        queued = [job for job in jobs if job.status == "queued" and job.blocked_reason is None]
        running = [job for job in jobs if job.status == "running"]
        positions = await self._current_positions([job.id for job in queued]) if queued else {}
        snapshot = self._snapshot
        if queued or any(job.kind == TRAINING for job in running):
            snapshot = await self._current()
        trainers = await self._training_workers() if any(queue_of(job.kind) != "inference" for job in queued) else 0
        return [self._estimate(job, positions.get(job.id), snapshot, trainers) for job in jobs]

    def _estimate(self, job: Job, position: int | None, snapshot: _Snapshot, trainers: int) -> WaitEstimate:
        """Return the estimate for a job; `trainers` is the number of live training workers."""
        if job.blocked_reason is not None:
            return WaitEstimate(reason=job.blocked_reason)
        if job.status == "queued":
            return self._of_queued(job, position, snapshot, trainers)
        if job.status == "running":
            return WaitEstimate(remaining_s=_remaining_s(job, snapshot))
        return WaitEstimate(reason="it is paused; resume it to go on") if job.status == "paused" else UNKNOWN

    def _of_queued(self, job: Job, position: int | None, snapshot: _Snapshot, trainers: int) -> WaitEstimate:
        """Return the estimate for a queued job; its `reason` says why the job waits."""
        if job.input_urls:
            return WaitEstimate(reason="its images are to be fetched by URL")
        queue = queue_of(job.kind)
        missing = self._missing_worker(f"{job.model}@{job.version}", job.device_kind) if queue == "inference" else ""
        if missing:
            return WaitEstimate(position, missing)
        if queue != "inference" and trainers == 0:
            return WaitEstimate(position, "no training worker is running")
        if position is None:
            return UNKNOWN  # it has been claimed meanwhile
        others = f"{position - 1} other job{'s' * (position > 2)} will be started first" if position > 1 else ""
        reason = others or "it is next, when a worker is free"
        return WaitEstimate(position, reason, _start_s(queue, position, snapshot, trainers))

    async def _current_positions(self, job_ids: Sequence[str]) -> dict[str, int | None]:
        """Return the queue positions of jobs, keyed by id; None for a job that is no longer queued.

        The result may have the positions of other jobs too. Positions are cached for a second or,
        if reading them takes more than a tenth of a second, for ten times as long as the reading
        took. Calls that come while positions are read share the next reading.
        """
        self._asked.update(job_ids)
        if time.monotonic() < self._positions_until and self._positions.keys() >= set(job_ids):
            return self._positions
        if self._next_read is None:
            self._next_read = asyncio.get_running_loop().create_task(self._read_positions())
        return await asyncio.shield(self._next_read)

    async def _read_positions(self) -> dict[str, int | None]:
        """Read the queue positions of all jobs that callers have asked for; cache and return them."""
        async with self._reading:
            asked, self._asked, self._next_read = self._asked, set(), None
            began = time.monotonic()
            found: dict[str, int] = await self._read(queue_positions, self._engine, asked)
            ended = time.monotonic()
            self._positions = {job_id: found.get(job_id) for job_id in asked}
            self._positions_until = ended + max(KEEP_S, _KEEP_FACTOR * (ended - began))
            return self._positions

    async def _current(self) -> _Snapshot:
        """Return how fast jobs progress; read it again if the last reading is older than `KEEP_S`."""
        if time.monotonic() - self._snapshot.taken_at > KEEP_S:
            pace = await self._read(inference_pace, self._engine)
            paces = await self._read(training_paces, self._engine)
            offset_s = await self._read(clock_offset_s, self._engine)
            self._snapshot = _Snapshot(pace, paces, time.monotonic(), offset_s)
        return self._snapshot


def _remaining_s(job: Job, snapshot: _Snapshot) -> float | None:
    """Return the seconds until a running job ends if it continues at its speed so far.

    Returns None if that is unknown, for example because the job has just started.
    """
    now = snapshot.now()
    if job.kind == TRAINING:
        pace = (snapshot.trainings or {}).get(job.id)
        return None if pace is None else pace.remaining_s(now)
    elapsed_s = now - (job.started_at or now)
    if job.progress < _LEAST_PROGRESS or elapsed_s < _LEAST_S:
        return None
    return elapsed_s * (1 - job.progress) / job.progress


def _start_s(queue: str, position: int, snapshot: _Snapshot, trainers: int) -> float | None:
    """Return the seconds until a queued job starts; None if that is unknown.

    `position` is the job's position in `queue`, and `trainers` the number of live training workers.
    An inference job starts when the jobs before it have ended. If all training workers are busy,
    the next training starts when the first of the running ones ends.
    """
    if queue == "inference":
        return None if snapshot.pace is None else position / snapshot.pace
    running = list((snapshot.trainings or {}).values())
    if queue != "training" or position > 1 or len(running) < trainers:
        return None
    left = [None if pace is None else pace.remaining_s(snapshot.now()) for pace in running]
    return None if None in left else min((one for one in left if one is not None), default=None)
