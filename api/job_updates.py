"""Notifies requests and event streams that a job has changed."""

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


# See docs/decisions.md#one-database-poll-serves-all-event-streams
class JobUpdates:
    """Wakes the requests of one API process that wait for jobs.

    A message of a worker, or a new event in the job store, wakes them.
    """

    def __init__(self, job_store: JobStore, threads: StoreThreads, job_events: JobEvents) -> None:
        """Start without waiting requests; `notify` also wakes the event streams of `job_events`."""
        self._job_store = job_store
        self._threads = threads
        self._job_events = job_events
        self._waiters: dict[str, set[asyncio.Event]] = {}

    def notify(self, job_id: str) -> None:
        """Wake the requests and event streams that wait for a job."""
        self._job_events.wake(job_id)
        for waiter in self._waiters.get(job_id, ()):
            waiter.set()

    async def wait(self, job_id: str, timeout_s: float) -> None:
        """Wait until a job changes, for at most `timeout_s` seconds."""
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
        """Read the workers' messages and notify of the jobs they name, until cancelled.

        Messages can be lost; `poll` finds these changes.
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
        """Poll the job store twice a second and notify of jobs with new events, until cancelled."""
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
