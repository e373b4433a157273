"""Sends the changes of jobs to the requests and event streams that wait for them.

The events of a job are read from the job store once for all of its event streams.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import orjson
import redis
import redis.asyncio
import sqlalchemy as sa
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.errors import OverloadedError, TooManyRequestsError
from api.store_threads import StoreThreads
from core.broker.codec import unpack
from core.broker.connection import stream_entries
from core.broker.keys import JOB_UPDATES
from core.jobs.records import TERMINAL, Event
from core.jobs.store import JobStore

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
PREVIEW_S = 0.5  # least time between two reads of a preview
RETRY_S = 0.5  # pause after a failed read
POLL_S = 0.5  # interval at which the job store is polled for new events
OPENINGS_PER_SECOND = 200  # event streams that are opened per second, of all callers; further ones wait
OPENING_BURST = 20  # event streams that are opened without a wait after a pause
MAX_OPENING_DELAY_S = 10.0  # a stream that would have to wait longer is rejected
_WAKE_GROUP = 32  # listeners that are woken before other requests are served


@dataclass(frozen=True)
class JobEvent:
    """An event of a job, and its text as a server-sent event.

    `seq` is the number of the event in its job. `last` is true for the status event of a job that
    has ended.
    """

    seq: int
    name: str
    text: str
    last: bool

    @classmethod
    def of(cls, event: Event) -> "JobEvent":
        """Convert an event of the job store to a server-sent event."""
        last = event.name == "status" and event.data["status"] in TERMINAL
        text = f"id: {event.seq}\nevent: {event.name}\ndata: {orjson.dumps(event.data).decode()}\n\n"
        return cls(event.seq, event.name, text, last)


@dataclass
class _Feed:
    """The events of one job so far, its newest preview (PNG), and its listeners.

    `exists` is false if the job was deleted. `stale` is true if the job store may have newer
    events, and `reader` is the task that reads them. `previews` counts the different previews so
    far, and `preview_at` is the time at which the preview last changed.
    """

    job_id: str
    events: list[JobEvent] = field(default_factory=list)
    listeners: set[asyncio.Event] = field(default_factory=set)
    exists: bool = True
    stale: bool = True
    reader: asyncio.Task[None] | None = None
    preview: bytes | None = None
    previews: int = 0
    preview_at: float = 0.0

    def after(self, seq: int) -> list[JobEvent]:
        """Return the events with numbers above `seq`; a job's first event has number 1."""
        return self.events[max(0, seq) :]


@dataclass(frozen=True)
class Update:
    """What has changed in a job since the listener received its last update.

    `events` are the new events. `preview` says whether there is a new preview, and `exists` whether
    the job still exists. After `KEEP_ALIVE_S` seconds without a change, an update without events is
    sent, to keep the connection alive.
    """

    events: list[JobEvent]
    preview: bool
    exists: bool


@dataclass(eq=False)
class JobEvents:
    """Reads the events of jobs that have listeners, once for all listeners of a job.

    The first argument of the functions `read`, `exists` and `preview` is the id of a job. The
    second argument of `read` is an event number: it returns the events after it. `exists` returns
    whether the job exists; `preview` returns the newest preview of the job as PNG, or None. `feeds`
    has what was read, keyed by job id.
    """

    read: Callable[[str, int], Awaitable[list[Event]]]
    exists: Callable[[str], Awaitable[bool]]
    preview: Callable[[str], Awaitable[bytes | None]]
    feeds: "dict[str, _Feed]" = field(default_factory=dict)

    def wake(self, job_id: str) -> None:
        """Read the events of a job that has changed, and wake its listeners.

        Does nothing for a job without listeners.
        """
        if (feed := self.feeds.get(job_id)) is not None:
            feed.stale = True
            if feed.reader is None:
                feed.reader = asyncio.get_running_loop().create_task(self._refresh(feed))

    def close(self) -> None:
        """Cancel the tasks that read the job store."""
        for feed in self.feeds.values():
            if feed.reader is not None:
                feed.reader.cancel()

    async def _refresh(self, feed: _Feed) -> None:
        """Read the new events of a job until it has no more; retry while the job store fails."""
        try:
            while feed.stale and feed.listeners:
                feed.stale = False
                try:
                    await self._read_new(feed)
                except Exception as error:
                    if not isinstance(error, sa.exc.SQLAlchemyError | OSError):
                        log.exception("events not read", extra={"job": feed.job_id})
                    feed.stale = True
                    await asyncio.sleep(RETRY_S)
        finally:
            feed.reader = None

    async def _read_new(self, feed: _Feed) -> None:
        """Read the new events of a job and its preview, and wake the listeners."""
        events = await self.read(feed.job_id, len(feed.events))
        feed.events += [JobEvent.of(event) for event in events]
        if not events and not await self.exists(feed.job_id):
            feed.exists = False
        if events and not feed.events[-1].last:
            await self._read_preview(feed)
        for number, listener in enumerate(list(feed.listeners), 1):
            listener.set()
            if number % _WAKE_GROUP == 0:
                await asyncio.sleep(0)

    async def _read_preview(self, feed: _Feed) -> None:
        """Read the preview of a job, unless a new one came within the last `PREVIEW_S` seconds."""
        now = asyncio.get_running_loop().time()
        if now - feed.preview_at < PREVIEW_S:
            return
        preview = await self.preview(feed.job_id)
        if preview is not None and preview != feed.preview:
            feed.preview, feed.preview_at = preview, now
            feed.previews += 1

    async def listen(self, job_id: str, seq: int) -> AsyncIterator[Update]:
        """Yield updates of a job after its event number `seq`, until the caller stops iterating."""
        feed = self.feeds.setdefault(job_id, _Feed(job_id))
        changed = asyncio.Event()
        feed.listeners.add(changed)
        previews = feed.previews
        try:
            if not feed.events:
                self.wake(job_id)
            while True:
                # random, so that the keep-alives of many listeners are spread over time
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S * random.uniform(0.8, 1.0)):
                        while not feed.after(seq) and previews == feed.previews and feed.exists:
                            changed.clear()
                            await changed.wait()
                events = feed.after(seq)
                yield Update(events, preview=previews != feed.previews, exists=feed.exists)
                previews = feed.previews
                if events:
                    seq = events[-1].seq
        finally:
            feed.listeners.discard(changed)
            if not feed.listeners and self.feeds.get(job_id) is feed:
                del self.feeds[job_id]


# See docs/decisions.md#one-database-poll-serves-all-event-streams
class JobUpdates:
    """Wakes the requests and event streams of one API process when the jobs they wait for change.

    The process learns of a change by a worker's message or by polling the job store for new events.
    """

    def __init__(self, job_store: JobStore, threads: StoreThreads, job_events: JobEvents) -> None:
        """Start with no request waiting.

        A change of a job also wakes the listeners that `job_events` has for the job.
        """
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
        """Wait until a job changes, for at most `timeout_s` seconds; return in either case."""
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
        """Read the workers' messages about jobs; wake the requests and streams that wait for them.

        Runs until cancelled. If a message is lost, or damaged and skipped, polling the job store
        finds the change.
        """
        last: bytes | str = "$"
        while True:
            try:
                messages = await connection.xread({JOB_UPDATES: last}, count=256, block=5000)
                for entry_id, values in stream_entries(messages):
                    last = entry_id
                    for job_id in unpack(values[b"ids"]):
                        self.notify(job_id)
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.2)
            except Exception:
                log.exception("message about jobs not read", extra={"message_id": last})
                await asyncio.sleep(RETRY_S)

    async def poll(self) -> None:
        """Poll the job store twice a second for new events; wake the requests and streams of their
        jobs.

        Runs until cancelled.
        """
        known: dict[str, int] = {}
        while True:
            await asyncio.sleep(POLL_S)
            watched = {*self._waiters, *self._job_events.feeds}
            try:
                last = await self._threads.read(self._job_store.last_event_numbers, watched) if watched else {}
            except sa.exc.SQLAlchemyError:
                continue
            except Exception:
                log.exception("new events not read")
                continue
            changed = [job_id for job_id in watched if known.get(job_id) != last.get(job_id, 0)]
            known = {job_id: last.get(job_id, 0) for job_id in watched}
            for job_id in changed:
                self.notify(job_id)


class StreamLimit:
    """Limits the number of open event streams of each caller."""

    def __init__(self, limit: int) -> None:
        """Allow each caller at most `limit` event streams that are open at the same time."""
        self._limit = limit
        self._open: Counter[str] = Counter()

    @contextlib.contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Count an open stream of the caller while the block runs."""
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if self._open[caller] <= 0:
                del self._open[caller]

    def check(self, caller: str) -> None:
        """Raise TooManyRequestsError if a caller has as many open streams as the limit allows."""
        if self._open[caller] >= self._limit:
            detail = f"{self._limit} event streams are open for you already; close some, or ask for the jobs themselves"
            raise TooManyRequestsError(detail, retry_after_s=10, limit="streams")


class OpeningPace:
    """Spreads the opening of event streams over time.

    A thousand streams that open at the same time would delay all other requests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with no opening time reserved; `clock` returns monotonic seconds."""
        self._clock = clock
        self._next_at = float("-inf")

    def delay_s(self) -> float:
        """Reserve a time at which a stream may open; return the seconds until that time.

        Raises OverloadedError if that is more than `MAX_OPENING_DELAY_S` seconds.
        """
        now = self._clock()
        next_at = max(self._next_at, now - OPENING_BURST / OPENINGS_PER_SECOND)
        if next_at - now > MAX_OPENING_DELAY_S:
            raise OverloadedError("too many event streams are being opened; try again in a moment", retry_after_s=5)
        self._next_at = next_at + 1 / OPENINGS_PER_SECOND
        return max(0.0, next_at - now)


class EventStream(StreamingResponse):
    """A response of server-sent events, counted by a StreamLimit while it is open."""

    def __init__(self, content: AsyncIterator[str], limit: StreamLimit, caller: str) -> None:
        """Create a response that sends the events which `content` yields.

        `caller` is the name under which the stream is counted. Raises TooManyRequestsError if the
        caller has as many open streams as `limit` allows.
        """
        limit.check(caller)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(content, 200, headers, "text/event-stream")
        self._limit = limit
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until there are no more, or until the client disconnects.

        Then closes the iterator that yields the events.
        """
        with self._limit.hold(self._caller):
            try:
                await super().__call__(scope, receive, send)
            finally:
                if (close := getattr(self.body_iterator, "aclose", None)) is not None:
                    await close()
