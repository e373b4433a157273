"""Updates of jobs: wakes requests and event streams that wait for a job when it has changed."""

import asyncio
import contextlib

import redis
import redis.asyncio
import sqlalchemy as sa

from api.job_events import JobEvents
from api.store_threads import StoreThreads
from core.broker.codec import unpack
from core.broker.connection import stream_entries
from core.broker.keys import JOB_UPDATES
from core.jobs.store import JobStore

POLL_S = 0.5


class JobUpdates:
    """The waiters for jobs in this process; worker messages and the job store wake them."""

    def __init__(self, job_store: JobStore, threads: StoreThreads, job_events: JobEvents) -> None:
        self._job_store = job_store
        self._threads = threads
        self._job_events = job_events
        self._waiters: dict[str, set[asyncio.Event]] = {}

    def notify(self, job_id: str) -> None:
        """Wake all who wait for a job."""
        self._job_events.wake(job_id)
        for waiter in self._waiters.get(job_id, ()):
            waiter.set()

    async def wait(self, job_id: str, timeout_s: float) -> None:
        """Return when a job has changed, or after the time."""
        waiter = asyncio.Event()
        waiters = self._waiters.setdefault(job_id, set())
        waiters.add(waiter)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await waiter.wait()
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiters.get(job_id) is waiters:
                del self._waiters[job_id]

    async def listen(self, connection: redis.asyncio.Redis) -> None:
        """Notify of jobs that workers report as changed, until cancelled.

        Lost messages are made good by `poll`.
        """
        last: bytes | str = "$"
        while True:
            try:
                messages = await connection.xread({JOB_UPDATES: last}, count=256, block=5000)
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.2)
                continue
            for entry_id, values in stream_entries(messages):
                last = entry_id
                for job_id in unpack(values[b"ids"]):
                    self.notify(job_id)

    async def poll(self) -> None:
        """Notify of jobs with new events, until cancelled: one query for all, twice a second."""
        known: dict[str, int] = {}
        while True:
            await asyncio.sleep(POLL_S)
            watched = {*self._waiters, *self._job_events.watched}
            try:
                last = await self._threads.read(self._job_store.last_event_numbers, watched) if watched else {}
            except sa.exc.SQLAlchemyError:
                continue
            changed = [job_id for job_id in watched if known.get(job_id) != last.get(job_id, 0)]
            known = {job_id: last.get(job_id, 0) for job_id in watched}
            for job_id in changed:
                self.notify(job_id)
