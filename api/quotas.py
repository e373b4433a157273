"""Checks the limits on unfinished jobs, trainings and stored bytes of each owner.

Jobs are counted in the database twice a second. This process adds the jobs that it has created
since. With several API processes, owners can exceed a limit by the jobs that the other processes
create in half a second.
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncIterator

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from api.access import quota_exceeded
from api.auth import LIMITS, Caller
from api.errors import TooManyRequestsError
from api.permissions import Permissions
from core.blobs import Blobs
from core.catalog.registry import Registry
from core.datasets.store import Datasets
from core.jobs.records import TRAINING, UNFINISHED
from core.jobs.schema import jobs, result_chunks
from core.runs import Runs
from core.settings import Settings

log = logging.getLogger(__name__)

COUNT_S = 0.5
MEASURE_S = 30.0  # interval at which the sizes of results and runs, which may be many, are measured
_CHUNK = 500


class Quotas:
    """Counts each owner's jobs, trainings and stored bytes; rejects requests over a limit."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        blobs: Blobs,
        permissions: Permissions,
        datasets: Datasets,
        registry: Registry,
        runs: Runs,
    ) -> None:
        """Create the quotas with all counts at 0; `watch` and the checks read them from the
        database.
        """
        self._settings = settings
        self._engine = engine
        self._blobs = blobs
        self._permissions = permissions
        self._datasets = datasets
        self._registry = registry
        self._runs = runs
        self._counts: dict[str, Counter[str]] = {}
        self._counted = float("-inf")
        self._counting = asyncio.Lock()
        self._adding: Counter[tuple[str, str]] = Counter()
        self._added: deque[tuple[float, str, str]] = deque()
        self._kept_bytes: Counter[str] = Counter()

    def limit(self, caller: Caller, name: str) -> int:
        """Return the limit `name` of a caller, from its key or the settings; 0 means no limit."""
        if not caller.name:
            return 0
        return int(caller.limits.get(name, getattr(self._settings, f"key_{name}")))

    def limits(self, caller: Caller) -> dict[str, int | None]:
        """Return all limits of a caller, keyed by their names; None means no limit."""
        return {name: self.limit(caller, name) or None for name in LIMITS}

    async def usage(self, caller: Caller) -> dict[str, int]:
        """Return what a caller uses now: `unfinished_jobs`, `trainings` and `stored_bytes`."""
        await self._count(fresh=True)
        stored = await self.stored_bytes(caller.name)
        jobs_used = {name: self._used(caller.name, name) for name in ("unfinished_jobs", "trainings")}
        return {**jobs_used, "stored_bytes": stored}

    async def watch(self) -> None:
        """Count jobs and measure stored bytes periodically until cancelled."""
        measured = float("-inf")
        while True:
            try:
                if time.monotonic() - measured > MEASURE_S:
                    await self.measure()
                    measured = time.monotonic()
                await self._count()
            except Exception:
                log.exception("usage not counted")
            await asyncio.sleep(COUNT_S)

    # --- jobs ---

    @contextlib.asynccontextmanager
    async def job(self, caller: Caller, *, training: bool = False) -> AsyncIterator[None]:
        """Count a job, which the block inserts, against the caller's limits.

        Raises TooManyRequestsError, before the block runs, if the caller has reached its limit of
        unfinished jobs, of stored bytes or, with `training`, of trainings. If the block raises an
        exception, the job is not counted.
        """
        if not caller.name:
            yield
            return
        limits = ("unfinished_jobs", "trainings") if training else ("unfinished_jobs",)
        for name in limits:
            await self._check_jobs(caller, name)
        limit = self.limit(caller, "stored_bytes")
        if limit and self._kept_bytes[caller.name] >= limit:
            raise _full(limit)
        for name in limits:
            self._adding[caller.name, name] += 1
        try:
            yield
            self._added.extend((time.monotonic(), caller.name, name) for name in limits)
        finally:
            for name in limits:
                self._adding[caller.name, name] -= 1

    async def _check_jobs(self, caller: Caller, name: str) -> None:
        """Raise TooManyRequestsError if a caller has reached `name`, one of the limits on jobs."""
        limit = self.limit(caller, name)
        if limit and self._used(caller.name, name) >= limit:
            await self._count(fresh=True)  # some may have ended since
            if self._used(caller.name, name) >= limit:
                what = name.replace("_", " ")
                raise quota_exceeded(name, f"you have {limit} {what}, as many as you may; wait until one has ended")

    def _used(self, owner: str, name: str) -> int:
        """Return how many of an owner's jobs count against the limit `name`.

        This is the number at the last count in the database, plus the jobs that this process has
        created since or is creating.
        """
        added = sum(entry[1:] == (owner, name) for entry in self._added)
        return self._counts.get(owner, Counter())[name] + added + self._adding[owner, name]

    async def _count(self, *, fresh: bool = False) -> None:
        """Count the unfinished jobs of all owners in the database, unless the last count is recent.

        A count is recent for `COUNT_S / 10` seconds. If it is, this method returns without
        counting; with `fresh`, it waits until the count is no longer recent, and counts then.
        """
        start = time.monotonic()
        async with self._counting:
            if self._counted > start:
                return  # another task has counted meanwhile
            if (wait_s := self._counted + COUNT_S / 10 - time.monotonic()) > 0:
                if not fresh:
                    return
                await asyncio.sleep(wait_s)
            counted_at = time.monotonic()
            self._counts = await asyncio.to_thread(self._read_counts)
            self._counted = counted_at
            while self._added and self._added[0][0] < counted_at:
                self._added.popleft()
            self._adding += Counter()  # drop zeros

    def _read_counts(self) -> dict[str, Counter[str]]:
        """Count the unfinished jobs and the unfinished trainings of each owner in the database.

        Returns the numbers, keyed by owner, then by `unfinished_jobs` or `trainings`.
        """
        is_training = sa.case((jobs.c.kind == TRAINING, 1), else_=0)
        query = sa.select(jobs.c.owner, sa.func.count(), sa.func.sum(is_training)).group_by(jobs.c.owner)
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(jobs.c.status.in_(UNFINISHED))).all()
        return {owner: Counter(unfinished_jobs=count, trainings=int(trainings)) for owner, count, trainings in rows}

    # --- bytes ---

    async def check_room(self, caller: Caller, size_bytes: int) -> None:
        """Raise TooManyRequestsError if a caller may not store `size_bytes` more bytes."""
        limit = self.limit(caller, "stored_bytes")
        if limit and await self.stored_bytes(caller.name) + size_bytes > limit:
            raise _full(limit)

    async def stored_bytes(self, owner: str) -> int:
        """Return how many bytes an owner's datasets, versions, results and runs take.

        Results and runs are measured periodically, and count with the size last measured. Returns 0
        for the empty owner.
        """
        return self._kept_bytes[owner] + await asyncio.to_thread(self._lasting_bytes, owner) if owner else 0

    def _lasting_bytes(self, owner: str) -> int:
        """Return how many bytes an owner's datasets and model versions take.

        Versions that the operator has installed are left out.
        """
        datasets = (self._datasets.get(name) for name in self._permissions.owned_by("dataset", owner))
        total = sum(int(about.get("bytes", 0)) for about in datasets if about is not None)
        for name in self._permissions.owned_by("model", owner):
            for version in self._registry.versions(name):
                with contextlib.suppress(FileNotFoundError):
                    entry = self._registry.find(f"{name}@{version}")
                    total += entry.size_bytes if entry is not None and self._registry.is_made(entry) else 0
        return total

    async def measure(self) -> None:
        """Measure how many bytes the results and runs of each owner take.

        The sums are stored, and count against the owner's limit until the next measurement.
        """
        self._kept_bytes = await asyncio.to_thread(self._measured)

    def _measured(self) -> Counter[str]:
        """Return how many bytes the results and runs of each owner take, keyed by owner."""
        sizes: Counter[str] = Counter(self._blobs.sizes("jobs"))
        sizes.update(self._runs.sizes())
        owned: Counter[str] = Counter()
        ids = list(sizes)
        size_in_row = sa.func.sum(sa.func.length(result_chunks.c.data))
        inline = sa.select(jobs.c.owner, size_in_row).join(result_chunks, result_chunks.c.job_id == jobs.c.id)
        with self._engine.connect() as connection:
            for first in range(0, len(ids), _CHUNK):
                some = sa.select(jobs.c.id, jobs.c.owner).where(jobs.c.id.in_(ids[first : first + _CHUNK]))
                for job_id, owner in connection.execute(some):
                    owned[owner] += sizes[job_id]
            for owner, size in connection.execute(inline):
                owned[owner] += int(size or 0)
        return owned


def _full(limit: int) -> TooManyRequestsError:
    """Return the error for a caller that has reached its limit of stored bytes."""
    detail = f"you may store {limit} bytes; delete datasets, versions, trainings or results of yours first"
    return quota_exceeded("stored_bytes", detail, retry_after_s=60)
