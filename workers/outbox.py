"""The outbox of one API process: groups waiting requests into batches, sends them, and sees every one through.

Greedy and without a timer: a group leaves at once while few batches are in flight, and the next one grows meanwhile, so
a lone request never waits and batches grow under load. A batch whose worker falls silent is sent again row by row; the
first completion wins. Nothing here is promised to anybody but the request that holds the connection.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson
import redis

from workers.blobs import Blobs
from workers.queue import (
    LANES,
    RUN_BATCH,
    RUN_JOBS,
    WORKERS,
    Lane,
    Line,
    connect_async,
    dropped_key,
    message,
    notes_stream,
    queue_name,
    started_key,
)
from workers.registry import Entry
from workers.settings import HEARTBEAT_S, Settings
from workers.wire import Batch, Fields, Items, Part, cut_items, joined, unpack

log = logging.getLogger(__name__)

IN_FLIGHT_PER_WORKER = 2
"""Batches on their way to each worker: one that runs and one that waits for it."""

_UNKNOWN_CAPACITY = (8, 8)
_RETRY_S = 0.25
_LONG_S, _LONG_WIDE_S = 0.03, 0.01
"""Passes longer than this are worth waiting for, to make the next one fuller; a wide one, on all cores, sooner: what
is done beside it slows it down."""

_QUIET, _HOLD = 0.15, 0.5
"""Shares of a long pass: how long no row may come before the next one leaves, and how long it waits at most."""

_FORGET_WORKER_S = 60.0
_KEEP_LATE = 1000


class BusyError(Exception):
    """As many requests wait as may."""


class FailedError(Exception):
    """A request that the model or its worker could not do; `problem` says why."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", ""))
        self.problem = problem


@dataclass(eq=False)
class Call:
    """One request's rows on their way to a model, and what has come back of them."""

    entry: Entry
    method: str
    options: dict[str, Any]
    seed: int
    rows: int
    items: Items = field(default_factory=dict)
    per: int = 1
    png: bool = False
    request_id: str = ""
    id: str = field(default_factory=lambda: uuid4().hex)
    result: "asyncio.Future[Fields]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    pieces: dict[int, Fields] = field(default_factory=dict)
    rows_done: float = 0.0
    rows_left: int = 0

    def __post_init__(self) -> None:
        self.rows_left = self.rows

    @property
    def progress(self) -> float:
        """Share of the rows that is done, 0 to 1."""
        return min(self.rows_done / self.rows, 1.0)


@dataclass(eq=False)
class _Waiting:
    """A part that has not been answered, since when, and how often it took its worker down alone."""

    call: Call
    part: Part
    alone: bool = False
    attempts: int = 0
    since: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Flight:
    """A batch that was sent: when it last showed a sign of life, and on which worker."""

    id: str
    lane: Lane
    waiting: list[_Waiting]
    sign: float
    key: Any = None
    worker: str | None = None
    progress: float = 0.0
    doubts: int = 0


@dataclass(frozen=True)
class _Pace:
    """A long pass of one kind that has ended, and the rows there are when its clients have come back."""

    rows: int
    took: float
    ended: float

    def until(self, last: float) -> float:
        """When the next pass leaves though it holds fewer rows, the last of which came at `last`."""
        return min(max(self.ended, last) + self.took * _QUIET, self.ended + self.took * _HOLD)


@dataclass
class _Pulse:
    """A worker as last heard of: its heartbeat, and when (on this process's clock) that last changed."""

    said: dict[str, Any]
    changed: float


class Outbox:
    """Sends calls to the workers and completes them; all methods belong to the event loop."""

    def __init__(self, settings: Settings, blobs: Blobs) -> None:
        """Prepare; nothing is connected before `start`."""
        self._settings = settings
        self._blobs = blobs
        self._stream = notes_stream(uuid4().hex[:12])
        self._groups: dict[Lane, OrderedDict[Any, deque[_Waiting]]] = {lane: OrderedDict() for lane in LANES}
        self._flying: dict[str, _Flight] = {}
        self._late: OrderedDict[str, _Flight] = OrderedDict()
        self._calls: set[Call] = set()
        self._workers: dict[str, _Pulse] = {}
        self._capacity: dict[tuple[str, str], tuple[int, int]] = {}
        self._paused_until = 0.0
        self._paces: dict[Any, _Pace] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.resent = 0

    # --- life ---

    async def start(self) -> None:
        """Connect and begin to send."""
        self._loop = asyncio.get_running_loop()
        self._redis = connect_async(self._settings)
        self._line, self._ears = Line(self._settings.queue_url), Line(self._settings.queue_url)
        self._tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._watch())}

    async def stop(self) -> None:
        """Stop sending; calls still waiting are given up."""
        self._silence()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(redis.RedisError):
            await self._redis.delete(self._stream)
        await self._redis.aclose()
        self._line.close()
        self._ears.close()

    # --- what routes use ---

    @property
    def waiting(self) -> int:
        """Calls not answered yet."""
        return len(self._calls)

    def live_workers(self) -> dict[str, dict[str, Any]]:
        """Heartbeats of the workers that are alive, by id."""
        now = time.monotonic()
        alive = self._settings.life_s
        return {name: pulse.said for name, pulse in self._workers.items() if now - pulse.changed < alive}

    def submit(self, call: Call) -> None:
        """Send a call on its way; its `result` completes or raises FailedError. Raises BusyError."""
        if len(self._calls) >= self._settings.max_waiting:
            raise BusyError
        self._calls.add(call)
        _, slice_rows = self._capacity.get((call.entry.ref, call.method), _UNKNOWN_CAPACITY)
        lane: Lane = "interactive" if call.rows <= slice_rows else "bulk"
        group = self._groups[lane].setdefault(_key(call, lane), deque())
        for first in range(0, call.rows, slice_rows):
            rows = min(slice_rows, call.rows - first)
            items = cut_items(call.items, call.per, first, rows)
            part = Part(call.id, call.seed, first, rows, items, call.png, call.request_id)
            group.append(_Waiting(call, part))
        self._dispatch(lane)

    def drop(self, call: Call) -> None:
        """Nobody waits for this call any more: what has not been sent is not, and a long run ends at its next slice."""
        if call not in self._calls:
            return
        self._calls.discard(call)
        call.result.cancel()
        for groups in self._groups.values():
            for key in list(groups):
                kept = deque(waiting for waiting in groups[key] if waiting.call is not call)
                if kept:
                    groups[key] = kept
                else:
                    del groups[key]
        for flight in list(self._flying.values()):
            if all(waiting.call not in self._calls for waiting in flight.waiting):
                self._later(self._redis.set(dropped_key(flight.id), 1, ex=600))
                self._land(flight)

    def wake(self) -> None:
        """Tell the workers that the ledger holds a job for them; the reconciler says it again if this is lost."""
        self._later(self._send("bulk", message(RUN_JOBS, "bulk")))

    async def ping(self) -> bool:
        """Whether the queue server answers."""
        try:
            return bool(await self._redis.ping())
        except (redis.RedisError, OSError):
            return False

    async def queue_lengths(self) -> dict[Lane, int]:
        """Messages waiting on each lane. Raises RedisError while the queue server is away."""
        return {lane: int(await self._redis.llen(queue_name(lane))) for lane in LANES}

    # --- sending ---

    def _dispatch(self, lane: Lane) -> None:
        groups = self._groups[lane]
        if not groups or time.monotonic() < self._paused_until:
            return
        workers = max(1, len(self.live_workers()))
        room = IN_FLIGHT_PER_WORKER * workers - sum(flight.lane == lane for flight in self._flying.values())
        while room > 0:
            key = next(
                (key for key, group in groups.items() if lane == "bulk" or not self._holds(key, group, workers)), None
            )
            if key is None:
                return
            self._take_off(lane, key)
            room -= 1

    def _take_off(self, lane: Lane, key: Any) -> None:
        """Send one batch of a group; what is left of the group goes to the back."""
        group = self._groups[lane].pop(key)
        name, version, method, options = key[:4]
        taken = _take(group, self._largest(key))
        if group:
            self._groups[lane][key] = group
        parts = [waiting.part for waiting in taken]
        batch = Batch(uuid4().hex, self._stream, name, version, method, orjson.loads(options), parts)
        self._flying[batch.id] = _Flight(
            batch.id, lane, taken, time.monotonic(), key if lane == "interactive" else None
        )
        self._later(self._send(lane, message(RUN_BATCH, lane, batch.pack()), batch.id))

    def _holds(self, key: Any, group: deque[_Waiting], workers: int) -> bool:
        """Whether a group should wait for more rows: only behind long passes, where it makes the next one worth more.

        While such a pass runs on each worker, the next one grows. After it, its clients come back within moments of
        each other: the next one waits until they have, or nobody comes any more.
        """
        pace = self._paces.get(key)
        if pace is None or group[0].alone:
            return False
        if sum(flight.key == key for flight in self._flying.values()) >= workers:
            return True
        left = pace.until(group[-1].since) - time.monotonic()
        if left <= 0 or _rows(group) >= pace.rows:
            return False
        self._ring_in(left + 0.0005)
        return True

    def _ring_in(self, seconds: float) -> None:
        """Look again then, or earlier where another group is due earlier."""
        due = self._loop.time() + seconds
        if self._alarm is None or due < self._alarm.when():
            self._silence()
            self._alarm = self._loop.call_at(due, self._ring)

    def _silence(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        self._dispatch("interactive")

    def _learn(self, flight: _Flight, took: float, *, wide: bool) -> None:
        """Remember how long a pass of this kind takes in the worker, where it is long."""
        key = flight.key
        if key is None or flight.progress:
            return
        if took < (_LONG_WIDE_S if wide else _LONG_S):
            self._paces.pop(key, None)
            return
        # those that came meanwhile count too: two halves that take turns would else stay halves for ever
        rows = _rows(flight.waiting) + _rows(self._groups["interactive"].get(key, ()))
        self._paces[key] = _Pace(min(rows, self._largest(key)), took, time.monotonic())
        while len(self._paces) > _KEEP_LATE:
            self._paces.pop(next(iter(self._paces)))

    def _largest(self, key: Any) -> int:
        """Rows of the largest pass of a group's kind."""
        name, version, method = key[:3]
        largest, _ = self._capacity.get((f"{name}@{version}", method), _UNKNOWN_CAPACITY)
        return largest

    async def _send(self, lane: Lane, data: bytes, batch_id: str = "") -> None:
        try:
            await self._line.command("LPUSH", queue_name(lane), data)
        except (redis.RedisError, OSError) as error:
            log.warning("not sent", extra={"lane": lane, "reason": str(error)})
            if batch_id:
                self._unsent(batch_id)

    def _unsent(self, batch_id: str) -> None:
        flight = self._flying.get(batch_id)
        if flight is not None:
            self._paused_until = time.monotonic() + _RETRY_S
            self._loop.call_later(_RETRY_S + 0.01, self._dispatch, flight.lane)
            self._requeue(flight, alone=False)

    def _requeue(self, flight: _Flight, *, alone: bool) -> None:
        """Put the parts of a batch back in front."""
        self._flying.pop(flight.id, None)
        for waiting in reversed(flight.waiting):
            call = waiting.call
            if call not in self._calls or waiting.part.first in call.pieces:
                continue
            waiting.alone = waiting.alone or alone
            key = _key(call, flight.lane)
            groups = self._groups[flight.lane]
            groups.setdefault(key, deque()).appendleft(waiting)
            groups.move_to_end(key, last=False)
        self._dispatch(flight.lane)

    # --- notes that come back ---

    async def _read(self) -> None:
        last: bytes | str = "0"
        while True:
            try:
                async with asyncio.timeout(15):
                    found = await self._ears.command(
                        "XREAD", "COUNT", "64", "BLOCK", "5000", "STREAMS", self._stream, last
                    )
            except (redis.RedisError, OSError):
                self._ears.close()
                await asyncio.sleep(0.1)
                continue
            for entry_id, (_, data) in found[0][1] if found else ():
                last = entry_id
                try:
                    await self._heed(data)
                except Exception:
                    log.exception("note not understood")

    async def _heed(self, data: bytes) -> None:
        note = unpack(data)
        if "blob" in note:
            key = note["blob"]
            note = unpack(await asyncio.to_thread(self._blobs.get, key))
            self._later(asyncio.to_thread(self._blobs.delete, key))
        flight = self._flying.get(note["batch"]) or self._late.get(note["batch"])
        if flight is None:
            return
        flight.sign = time.monotonic()
        flight.worker = note["worker"]
        flight.doubts = 0
        if note["kind"] == "progress":
            flight.lane = "bulk"
            for waiting in flight.waiting:
                waiting.call.rows_done += (note["done"] - flight.progress) * waiting.part.rows
            flight.progress = note["done"]
            self._dispatch("interactive")
        elif note["kind"] == "done":
            self._learn(flight, note.get("took", 0.0), wide=note.get("wide", False))
            for waiting, outcome in zip(flight.waiting, note["outcomes"], strict=True):
                self._complete(waiting, flight, outcome)
            self._land(flight)

    def _complete(self, waiting: _Waiting, flight: _Flight, outcome: dict[str, Any]) -> None:
        call, part = waiting.call, waiting.part
        if call not in self._calls or part.first in call.pieces:
            return
        problem = outcome.get("problem")
        if problem is not None:
            self._fail(call, problem)
            return
        call.pieces[part.first] = outcome["fields"]
        call.rows_done += (1 - flight.progress) * part.rows
        call.rows_left -= part.rows
        if call.rows_left == 0:
            self._calls.discard(call)
            if not call.result.done():
                call.result.set_result(joined([call.pieces[first] for first in sorted(call.pieces)]))

    def _fail(self, call: Call, problem: dict[str, Any]) -> None:
        if not call.result.done():
            call.result.set_exception(FailedError(problem))
        self.drop(call)

    def _land(self, flight: _Flight) -> None:
        self._flying.pop(flight.id, None)
        self._late.pop(flight.id, None)
        self._dispatch(flight.lane)

    # --- signs of life ---

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S / 2)
            try:
                heard = await self._redis.hgetall(WORKERS)
                lengths = await self.queue_lengths()
                await self._redis.expire(self._stream, 3600)
            except (redis.RedisError, OSError):
                # without the queue server nobody's silence means anything
                for flight in self._flying.values():
                    flight.sign = time.monotonic()
                continue
            try:
                self._listen(heard)
                await self._judge(lengths)
                for lane in LANES:
                    self._dispatch(lane)
                silent = [name for name, p in self._workers.items() if time.monotonic() - p.changed > _FORGET_WORKER_S]
                for name in silent:
                    self._later(self._redis.hdel(WORKERS, name))
            except Exception:
                log.exception("watching the workers")

    def _listen(self, heard: dict[Any, Any]) -> None:
        now = time.monotonic()
        pulses = {}
        for raw, data in heard.items():
            name, said = raw.decode(), unpack(data)
            known = self._workers.get(name)
            fresh = known is None or known.said["beat"] != said["beat"]
            # one never heard of before may long be dead: believe its own clock for the first time
            first = now - max(0.0, time.time() - said["at"]) if known is None else now
            pulses[name] = _Pulse(said, first if fresh else known.changed)  # type: ignore[union-attr]
        self._workers = pulses
        capacity: dict[tuple[str, str], tuple[int, int]] = {}
        for said in self.live_workers().values():
            for ref, methods in said["capacity"].items():
                for method, (largest, slice_rows) in methods.items():
                    known_largest, known_slice = capacity.get((ref, method), (largest, slice_rows))
                    capacity[ref, method] = (min(known_largest, largest), min(known_slice, slice_rows))
        self._capacity.update(capacity)

    async def _judge(self, lengths: dict[Lane, int]) -> None:
        now = time.monotonic()
        running = {batch: name for name, said in self.live_workers().items() for batch in said["running"]}
        for flight in list(self._flying.values()):
            if flight.id in running:
                flight.sign, flight.worker, flight.doubts = now, running[flight.id], 0
            if now - flight.sign < self._settings.life_s:
                continue
            if flight.worker is None:
                found = await self._redis.get(started_key(flight.id))
                if isinstance(found, bytes):
                    # taken up after lying on the queue: whether that worker lives will be known one silence later
                    flight.sign, flight.worker = now, found.decode()
                    continue
            died = flight.worker is not None and flight.worker not in self.live_workers()
            if not died and lengths[flight.lane]:
                continue  # may still lie on the queue
            flight.doubts += 1
            if (died or flight.doubts > 1) and flight.id in self._flying:
                self._resend(flight, died=died)

    def _resend(self, flight: _Flight, *, died: bool) -> None:
        log.warning("batch sent again", extra={"batch": flight.id, "parts": len(flight.waiting), "worker_died": died})
        self.resent += 1
        self._late[flight.id] = flight
        while len(self._late) > _KEEP_LATE:
            self._late.popitem(last=False)
        if died and len(flight.waiting) == 1:
            waiting = flight.waiting[0]
            waiting.attempts += 1
            if waiting.attempts >= self._settings.max_attempts:
                detail = f"the process that ran this request died or fell silent {waiting.attempts} times"
                problem = {"type": "about:blank", "title": "Worker lost", "status": 500, "detail": detail}
                self._flying.pop(flight.id, None)
                self._fail(waiting.call, problem)
                return
        self._requeue(flight, alone=died)

    def _later(self, act: Any) -> None:
        """Do something nobody waits for."""

        async def quietly() -> None:
            with contextlib.suppress(redis.RedisError, OSError):
                await act

        task = self._loop.create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _key(call: Call, lane: Lane) -> tuple[Any, ...]:
    """What calls must share to share a batch; on the bulk lane each call is a group of its own: they take turns."""
    options = orjson.dumps(call.options, option=orjson.OPT_SORT_KEYS)
    alike = (call.entry.name, call.entry.version, call.method, options)
    return (*alike, call.id) if lane == "bulk" else alike


def _rows(group: Iterable[_Waiting]) -> int:
    return sum(waiting.part.rows for waiting in group)


def _take(group: deque[_Waiting], largest: int) -> list[_Waiting]:
    """As many parts off the front as fit one forward pass; one that must run alone goes alone."""
    taken = [group.popleft()]
    rows = taken[0].part.rows
    while group and not taken[0].alone and not group[0].alone and rows + group[0].part.rows <= largest:
        rows += group[0].part.rows
        taken.append(group.popleft())
    return taken
