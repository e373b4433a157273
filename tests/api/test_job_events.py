"""Event streams: one read of a job for all its listeners, a limit per caller, and fast requests
beside a thousand streams.
"""

import asyncio
import contextlib
import hashlib
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from api import job_events
from api.errors import OverloadedError, TooManyRequestsError
from api.job_events import (
    MAX_OPENING_DELAY_S,
    OPENING_BURST,
    OPENINGS_PER_SECOND,
    JobEvents,
    JobUpdates,
    OpeningPace,
    StreamLimit,
    Update,
)
from api.store_threads import StoreThreads
from core.broker.codec import pack
from core.jobs.records import TRAINING, Event, Job
from core.jobs.store import JobStore
from tests.api.attack import connect
from tests.api.helpers import post_samples
from tests.stack import Stack
from tests.waiting import wait_until


class _Store:
    """Events of one job, and a count of how often they are read."""

    def __init__(self) -> None:
        self.rows: list[Event] = []
        self.reads = self.looks = 0
        self.there = True
        self.fails = 0
        self.error: Exception = sa.exc.OperationalError("select", {}, Exception("locked"))

    def add(self, status: str) -> None:
        self.rows.append(Event("status", {"status": status}, seq=len(self.rows) + 1))

    async def read(self, _job_id: str, seq: int) -> list[Event]:
        self.reads += 1
        if self.fails:
            self.fails -= 1
            raise self.error
        return self.rows[seq:]

    async def exists(self, _job_id: str) -> bool:
        return self.there

    async def preview(self, _job_id: str) -> bytes:
        self.looks += 1
        return b"picture"


async def _heard(events: JobEvents, seq: int, until: int, updates: list[Update]) -> list[int]:
    numbers = []
    async for update in events.listen("job", seq):
        updates.append(update)
        numbers += [event.seq for event in update.events]
        if numbers[-1:] == [until] or not update.exists:
            break
    return numbers


def test_a_job_is_read_once_for_all_its_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 listeners share the reads of a job; each gets the events after its own number, in
    order.
    """
    monkeypatch.setattr(job_events, "RETRY_S", 0.01)

    async def run() -> None:
        store = _Store()
        events = JobEvents(store.read, store.exists, store.preview)
        store.add("queued")
        store.add("running")
        updates: list[Update] = []
        listeners = [asyncio.create_task(_heard(events, number % 3, 4, updates)) for number in range(300)]
        await asyncio.sleep(0.1)
        assert events.feeds.keys() == {"job"}
        reads = store.reads
        assert reads <= 3
        store.add("running")
        store.fails = 2
        events.wake("job")
        await asyncio.sleep(0.2)
        assert store.reads <= reads + 4
        store.add("succeeded")
        events.wake("job")
        heard = await asyncio.wait_for(asyncio.gather(*listeners), 5)
        assert heard == [list(range(number % 3 + 1, 5)) for number in range(300)]
        assert store.looks == 1
        assert sum(update.preview for update in updates) <= 300
        await asyncio.sleep(0)
        assert not events.feeds

    asyncio.run(run())


def test_an_unexpected_error_does_not_end_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the events of a job cannot be read, they are read again later, whatever the error."""
    monkeypatch.setattr(job_events, "RETRY_S", 0.01)

    async def run() -> None:
        store = _Store()
        events = JobEvents(store.read, store.exists, store.preview)
        store.error, store.fails = ValueError("damaged"), 2
        store.add("queued")
        assert await asyncio.wait_for(_heard(events, 0, 1, []), 5) == [1]

    asyncio.run(run())


class _Connection:
    """A connection whose stream of messages about jobs has damaged messages."""

    def __init__(self, *messages: dict[bytes, bytes]) -> None:
        self.entries = [(b"%d-0" % number, fields) for number, fields in enumerate(messages, 1)]

    async def xread(self, streams: dict[str, bytes | str], **_: int) -> Any:
        (last,) = streams.values()
        after = 0 if last == "$" else int(bytes(last).partition(b"-")[0])  # type: ignore[arg-type]
        if not self.entries[after:]:
            await asyncio.sleep(60)
        return [(b"stream", self.entries[after:])]


def test_a_damaged_message_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that cannot be read do not keep those after them from waking the requests."""
    monkeypatch.setattr(job_events, "RETRY_S", 0.01)
    connection: Any = _Connection({b"ids": b"\xc1"}, {}, {b"ids": pack(7)}, {b"ids": pack([{}])}, {b"ids": pack(["a"])})

    async def run() -> None:
        store = _Store()
        updates = JobUpdates(JobStore("sqlite://"), StoreThreads(), JobEvents(store.read, store.exists, store.preview))
        listening = asyncio.create_task(updates.listen(connection))
        async with asyncio.timeout(5):
            await updates.wait("a", 60)
        assert not listening.done()
        listening.cancel()

    asyncio.run(run())


def test_polling_goes_on_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the numbers of the last events cannot be read, they are read again, whatever the error."""
    monkeypatch.setattr(job_events, "POLL_S", 0.01)
    errors: list[Exception] = [RuntimeError("unexpected"), sa.exc.OperationalError("select", {}, Exception("locked"))]
    read = JobStore.last_event_numbers

    def read_later(job_store: JobStore, job_ids: set[str]) -> dict[str, int]:
        if errors:
            raise errors.pop()
        return read(job_store, job_ids)

    async def run() -> None:
        job_store, store, threads = JobStore(f"sqlite:///{tmp_path / 'l.sqlite3'}"), _Store(), StoreThreads()
        row = _queued("")
        job_store.insert(row)
        updates = JobUpdates(job_store, threads, JobEvents(store.read, store.exists, store.preview))
        with patch.object(JobStore, "last_event_numbers", read_later):
            polling = asyncio.create_task(updates.poll())
            async with asyncio.timeout(5):
                await updates.wait(row.id, 60)
        assert not polling.done()
        polling.cancel()
        threads.shutdown()
        job_store.engine.dispose()

    asyncio.run(run())


def test_a_deleted_job_ends_its_streams() -> None:
    """The streams of a job end when it is deleted."""

    async def run() -> None:
        store = _Store()
        events = JobEvents(store.read, store.exists, store.preview)
        store.add("queued")
        listener = asyncio.create_task(_heard(events, 0, 9, []))
        await asyncio.sleep(0.05)
        store.there = False
        store.rows.clear()
        events.wake("job")
        assert await asyncio.wait_for(listener, 5) == [1]

    asyncio.run(run())


def test_silence_is_broken_before_proxies_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without events, an empty update is sent at intervals, so that proxies keep the connection."""
    monkeypatch.setattr(job_events, "KEEP_ALIVE_S", 0.05)

    async def run() -> None:
        store = _Store()
        events = JobEvents(store.read, store.exists, store.preview)
        store.add("queued")
        stream = events.listen("job", 1)
        async with asyncio.timeout(5), contextlib.aclosing(stream):  # type: ignore[type-var]
            assert (await anext(stream)).preview
            assert await anext(stream) == Update([], preview=False, exists=True)

    asyncio.run(run())


def test_each_caller_has_a_limit_of_its_own() -> None:
    """A caller may have a limited number of streams open at the same time."""
    limit = StreamLimit(2)
    with limit.hold("ann"), limit.hold("ann"):
        with pytest.raises(TooManyRequestsError):
            limit.check("ann")
        limit.check("bob")
    limit.check("ann")


# --- a real service with a thousand streams ---

KEYS = [f"key-{number}" for number in range(20)]
PER_KEY, JOBS_PER_KEY = 50, 10


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with twenty keys and no training worker."""
    folder = tmp_path_factory.mktemp("crowd")
    lines = [f"{key}:{hashlib.sha256(key.encode()).hexdigest()}" for key in KEYS]
    (folder / "keys").write_text("\n".join(lines) + "\n")
    with Stack(folder, workers=["inference"], api_keys=str(folder / "keys"), max_streams=str(PER_KEY)) as running:
        yield running


def _queued(owner: str) -> Job:
    """Return a job that no worker claims."""
    return Job(kind=TRAINING, method=TRAINING, owner=owner, model=f"none-{uuid4().hex}")


def _median_ms(client: httpx.Client) -> float:
    times = []
    for number in range(60):
        began = time.perf_counter()
        assert post_samples(client, seed=number).status_code == 200
        times.append(time.perf_counter() - began)
    return sorted(times)[30] * 1000


def _streams(stack: Stack, key: str, job_id: str, count: int) -> list[socket.socket]:
    opened = []
    for _ in range(count):
        connection = connect(stack.port)
        head = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n"
        connection.sendall(head.encode())
        opened.append(connection)
    return opened


def _drain(connections: list[socket.socket], stop: threading.Event, received: dict[socket.socket, bytes]) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, data=connection)
        while not stop.is_set():
            for ready, _ in selector.select(0.1):
                connection = ready.data
                piece = connection.recv(65536)
                received[connection] = received.get(connection, b"") + piece
                if not piece:
                    selector.unregister(connection)


def _having(received: dict[socket.socket, bytes], text: bytes) -> int:
    """Return the number of streams on which a text has arrived."""
    return sum(text in data for data in list(received.values()))


@pytest.mark.slow
@pytest.mark.timing
def test_a_thousand_streams_slow_nobody_down(crowd: Stack) -> None:
    """With a thousand open streams, the median latency of a sample is at most three times the idle
    one.
    """
    authorization = {"Authorization": f"Bearer {KEYS[0]}"}
    with httpx.Client(base_url=crowd.url, headers=authorization, timeout=60) as client:
        store = JobStore(crowd.database)
        jobs = {key: [_queued(key) for _ in range(JOBS_PER_KEY)] for key in KEYS}
        store.insert(*(row for rows in jobs.values() for row in rows))
        first = jobs[KEYS[0]][0].id
        _median_ms(client)
        idle_ms = _median_ms(client)
        connections = [
            stream
            for key, rows in jobs.items()
            for row in rows
            for stream in _streams(crowd, key, row.id, PER_KEY // JOBS_PER_KEY)
        ]
        stop, received = threading.Event(), dict[socket.socket, bytes]()
        reader = threading.Thread(target=_drain, args=(connections, stop, received))
        reader.start()
        try:
            wait_until(lambda: _having(received, b"event: status") == len(connections), "every stream is open", 60)
            crowded_ms = min(_median_ms(client) for _ in range(3))
            more = client.get(f"/v1/jobs/{first}/events")
            assert more.status_code == 429
            assert "streams" in more.text
            for key, rows in jobs.items():
                for row in rows:
                    mine = {"Authorization": f"Bearer {key}"}
                    assert client.post(f"/v1/jobs/{row.id}/cancel", headers=mine).status_code == 200
            wait_until(lambda: _having(received, b'"cancelled"') == len(connections), "every stream has ended", 30)
        finally:
            stop.set()
            reader.join()
            for connection in connections:
                connection.close()
        assert crowded_ms <= max(3 * idle_ms, 25), (idle_ms, crowded_ms)
        assert post_samples(client).status_code == 200
        assert client.get(f"/v1/jobs/{first}/events").status_code == 200  # all places are free again


def test_streams_are_opened_at_a_pace() -> None:
    """A burst of streams opens at once, further ones at a fixed rate; those that would wait too
    long are rejected.
    """
    now = 0.0
    pace = OpeningPace(lambda: now)
    delays = [pace.delay_s() for _ in range(OPENING_BURST + 1 + OPENINGS_PER_SECOND)]
    assert delays[: OPENING_BURST + 1] == pytest.approx([0] * (OPENING_BURST + 1))
    assert delays[-1] == pytest.approx(1.0)
    with pytest.raises(OverloadedError, match="event streams"):
        delays.extend(iter(pace.delay_s, None))
    assert max(delays) == pytest.approx(MAX_OPENING_DELAY_S, abs=0.01)
    now += 2 * MAX_OPENING_DELAY_S
    assert pace.delay_s() == 0
