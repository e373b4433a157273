"""The batch scheduler: which waiting rows go into the next batch. It does no I/O and has no clock of its own.

Requests for the same model version, operation and options form a group and share forward passes. Rows are cut from a
request when a batch is formed, so a waiting request costs the same whatever its `rows`, and cancelling one costs no
more than the rows of its own that are on their way.

Who goes next: the owner (API key) whose turn it is, then that owner's group whose turn it is, then the oldest request
in it. What room the pass has left is filled with requests of the same group, one of each owner in turn, small ones
first. Every owner, group and oldest request comes first after a bounded number of batches, so none starves.
"""

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from api.batching.queues import Group, OwnerQueue
from api.batching.requests import GroupKey, InFlightBatch, PendingRequest, RequestSlice
from core.broker.codec import Fields
from core.broker.keys import QueueName

IN_FLIGHT_PER_WORKER = 2
"""Batches on their way to each worker: one that runs and one that waits for it."""

UNKNOWN_CAPACITY = (8, 8)
_LONG_S, _LONG_MULTITHREADED_S = 0.03, 0.01
"""Passes longer than this are worth waiting for, to make the next one fuller; one on all cores sooner: what is done
beside it slows it down."""

_QUIET, _HOLD = 0.15, 0.5
"""Shares of a long pass: how long no row may come before the next one leaves, and how long it waits at most."""

_TIMINGS = 1000

Capacity = tuple[int, int]
"""Rows of the largest forward pass, and rows that take about one slice of time."""


class QueueFullError(Exception):
    """A limit of what may wait is reached; `own` if it is that of an API key and not that of the process."""

    def __init__(self, detail: str, limit: str, *, own: bool) -> None:
        super().__init__(detail)
        self.limit = limit
        self.own = own


@dataclass(frozen=True)
class Limits:
    """How much may wait: requests in all, and of one owner requests and rows of large ones; of those, 0 is no limit.

    A request's own `limits`, by `waiting_requests` and `waiting_rows`, go before the latter two.
    """

    requests: int
    waiting_requests: int
    waiting_rows: int


@dataclass(frozen=True, slots=True)
class PassTiming:
    """A long forward pass of one group that has ended: its rows, how long it took, and when it ended."""

    rows: int
    took: float
    ended: float

    def until(self, last: float) -> float:
        """When the next pass leaves though it holds fewer rows, the last of which came at `last`."""
        return min(max(self.ended, last) + self.took * _QUIET, self.ended + self.took * _HOLD)


class BatchScheduler:
    """Queues of waiting requests, and the batches formed of them that have not ended."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin empty; `clock` gives seconds and never goes back."""
        self._limits = limits
        self._clock = clock
        self._groups: dict[QueueName, dict[GroupKey, Group]] = {"interactive": {}, "bulk": {}}
        # by owner, the keys of the groups in which that owner has something unsent: both in order of their turns
        self._turns: dict[QueueName, OrderedDict[str, OrderedDict[GroupKey, None]]] = {
            "interactive": OrderedDict(),
            "bulk": OrderedDict(),
        }
        self._waiting: set[PendingRequest] = set()
        self._requests: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._lane_count: Counter[QueueName] = Counter()
        self._key_count: Counter[GroupKey] = Counter()
        self._timings: OrderedDict[GroupKey, PassTiming] = OrderedDict()
        self.in_flight: dict[str, InFlightBatch] = {}
        self.capacity: dict[tuple[str, str], Capacity] = {}
        """By `name@version` and method, as the workers report it."""
        self.wakeup_at: float | None = None
        """When to ask for a batch again, if the last answer was that a group should wait for more rows."""

    # --- requests ---

    def __len__(self) -> int:
        """Requests that wait for rows."""
        return len(self._waiting)

    def __contains__(self, request: object) -> bool:
        """Whether a request still waits."""
        return request in self._waiting

    def submit(self, request: PendingRequest) -> None:
        """Let a request wait for its batches. Raises QueueFullError."""
        _, slice_rows = self.capacity.get((request.entry.ref, request.method), UNKNOWN_CAPACITY)
        request.lane = "interactive" if request.rows <= slice_rows else "bulk"
        self._check(request)
        request.key = _key(request)
        request.arrived = self._clock()
        self._waiting.add(request)
        self._requests[request.owner] += 1
        if request.lane == "bulk":
            self._rows[request.owner] += request.rows
        self._enqueue(request, request.rows)

    def _check(self, request: PendingRequest) -> None:
        limits, owner = self._limits, request.owner
        if len(self._waiting) >= limits.requests:
            raise QueueFullError(f"{limits.requests} requests wait already", "max_waiting", own=False)
        most = request.limits.get("waiting_requests", limits.waiting_requests)
        if owner and 0 < most <= self._requests[owner]:
            raise QueueFullError(f"you have {most} requests waiting already", "waiting_requests", own=True)
        # a small request is never refused for the rows of large ones: it waits for one slice of theirs at most
        most, rows = request.limits.get("waiting_rows", limits.waiting_rows), self._rows[owner]
        if request.lane == "bulk" and rows and 0 < most < rows + request.rows:
            detail = f"large requests have {rows} rows waiting already, and may have {most}"
            raise QueueFullError(detail, "waiting_rows", own=bool(owner))

    def usage(self, owner: str) -> dict[str, int]:
        """What one owner has waiting, by the names of the limits."""
        return {"waiting_requests": self._requests[owner], "waiting_rows": self._rows[owner]}

    def cancel(self, request: PendingRequest) -> list[InFlightBatch]:
        """Let go of a request; returns the batches that nobody waits for any more."""
        if request not in self._waiting:
            return []
        self._forget(request)
        group = self._groups[request.lane].get(request.key)
        if group is not None and (queue := group.queues.get(request.owner)) and queue.remove(request):
            group.rows -= request.unsent_rows
            self._tidy(request.lane, request.key, group, request.owner)
        return [batch for batch in request.batches if batch.waiting == 0 and batch.id in self.in_flight]

    def _forget(self, request: PendingRequest) -> None:
        self._waiting.discard(request)
        owner = request.owner
        self._requests[owner] -= 1
        if not self._requests[owner]:
            del self._requests[owner]
        if request.lane == "bulk":
            self._rows[owner] -= request.rows
            if not self._rows[owner]:
                del self._rows[owner]
        for batch in request.batches:
            batch.waiting -= 1

    def add_chunk(self, batch: InFlightBatch, part: RequestSlice, fields: Fields) -> bool:
        """Take the fields of a slice that has ended, the first time they come; whether its request is complete now."""
        request = part.request
        if request not in self._waiting or part.first in request.chunks:
            return False
        request.chunks[part.first] = fields
        request.rows_done += (1 - batch.progress) * part.rows
        request.rows_left -= part.rows
        if request.rows_left:
            return False
        self._forget(request)
        return True

    # --- batches ---

    def next_batch(self, lane: QueueName, workers: int) -> InFlightBatch | None:
        """Form the next batch of a lane, for so many workers; None if enough are in flight or none should leave yet."""
        if lane == "interactive":
            self.wakeup_at = None
        if self._lane_count[lane] >= IN_FLIGHT_PER_WORKER * workers:
            return None
        for owner, keys in self._turns[lane].items():
            for key in keys:
                group = self._groups[lane][key]
                if lane == "interactive" and self._should_wait(key, group, owner, workers):
                    continue
                return self._form(lane, key, group, owner)
        return None

    def _form(self, lane: QueueName, key: GroupKey, group: Group, owner: str) -> InFlightBatch:
        slices = self._fill(lane, key, group, owner)
        # the turn of this owner, and of this group among the owner's, comes again after the others'
        turns = self._turns[lane]
        turns.move_to_end(owner)
        turns[owner].move_to_end(key)
        for served in {part.request.owner for part in slices}:
            self._tidy(lane, key, group, served)
        batch = InFlightBatch(secrets.token_hex(16), lane, key, slices, self._clock(), len(slices))
        for part in slices:
            part.request.batches.append(batch)
        self.in_flight[batch.id] = batch
        self._lane_count[lane] += 1
        self._key_count[key] += 1
        return batch

    def _fill(self, lane: QueueName, key: GroupKey, group: Group, owner: str) -> list[RequestSlice]:
        """Cut rows for one pass: the oldest request of `owner`, then of each owner in turn what fits."""
        largest, slice_rows = self.capacity.get((f"{key[0]}@{key[1]}", key[2]), UNKNOWN_CAPACITY)
        queue = group.queues[owner]
        # a large request yields after a time slice while others wait; alone, it fills the passes
        most = largest if lane == "interactive" or len(self._waiting) == 1 else min(largest, slice_rows)
        slices = [self._cut(group, queue, queue.oldest(), most)]
        room = largest - slices[0].rows
        if lane == "bulk" or slices[0].isolated:
            return slices
        owners = [owner, *(other for other in group.queues if other != owner)] if len(group.queues) > 1 else [owner]
        while owners:
            fitting = []
            for each in owners:
                request = group.queues[each].fitting(room)
                if request is not None:
                    slices.append(self._cut(group, group.queues[each], request, room))
                    room -= slices[-1].rows
                    fitting.append(each)
            owners = fitting
        return slices

    @staticmethod
    def _cut(group: Group, queue: OwnerQueue, request: PendingRequest, most: int) -> RequestSlice:
        """Take the next rows of a request off the queue, `most` at most; those to be tried again come first, whole."""
        if request.retries:
            part = request.retries.pop(0)
        else:
            part = RequestSlice(request, request.next_row, min(most, request.rows - request.next_row))
            request.next_row += part.rows
        group.rows -= part.rows
        if request.next_row >= request.rows and not request.retries:
            queue.remove(request)
        return part

    def finish_batch(self, batch: InFlightBatch) -> None:
        """A batch has ended, is given up or is to be sent again."""
        if self.in_flight.pop(batch.id, None) is None:
            return
        self._lane_count[batch.lane] -= 1
        self._key_count[batch.key] -= 1
        if not self._key_count[batch.key]:
            del self._key_count[batch.key]
        for part in batch.slices:
            part.request.batches.remove(batch)

    def record_progress(self, batch: InFlightBatch, done: float) -> None:
        """A batch runs in slices and has got so far, 0 to 1: from now on it counts as bulk work."""
        for part in batch.slices:
            part.request.rows_done += (done - batch.progress) * part.rows
        batch.progress = done
        if batch.lane != "bulk" and batch.id in self.in_flight:
            self._lane_count[batch.lane] -= 1
            self._lane_count["bulk"] += 1
        batch.lane = "bulk"

    def requeue(self, batch: InFlightBatch, *, isolate: bool) -> None:
        """Let the slices of a batch wait again, before all others of their owners; isolated, each in its own batch."""
        self.finish_batch(batch)
        for part in reversed(batch.slices):
            request = part.request
            if request not in self._waiting or part.first in request.chunks:
                continue
            part.isolated = part.isolated or isolate
            request.retries.insert(0, part)
            self._enqueue(request, part.rows, front=True)

    # --- waiting for more rows behind long passes ---

    def _should_wait(self, key: GroupKey, group: Group, owner: str, workers: int) -> bool:
        """Whether a group should wait for more rows: only behind long passes, where it makes the next one worth more.

        While such a pass runs on each worker, the next one grows. After it, its clients come back within moments of
        each other: the next one waits until they have, or nobody comes any more.
        """
        timing = self._timings.get(key)
        if timing is None:
            return False
        retries = group.queues[owner].oldest().retries
        if retries and retries[0].isolated:
            return False
        if self._key_count[key] >= workers:
            return True
        due = timing.until(group.last_arrival)
        if due <= self._clock() or group.rows >= timing.rows:
            return False
        self.wakeup_at = due if self.wakeup_at is None else min(due, self.wakeup_at)
        return True

    def record_duration(self, batch: InFlightBatch, took: float, *, multithreaded: bool) -> None:
        """Remember how many seconds a pass of this group took in the worker, where it is long."""
        key = batch.key
        if batch.progress or batch.lane == "bulk":
            return
        if took < (_LONG_MULTITHREADED_S if multithreaded else _LONG_S):
            self._timings.pop(key, None)
            return
        # those that came meanwhile count too: two halves that take turns would else stay halves for ever
        group = self._groups["interactive"].get(key)
        rows = sum(part.rows for part in batch.slices) + (0 if group is None else group.rows)
        largest, _ = self.capacity.get((f"{key[0]}@{key[1]}", key[2]), UNKNOWN_CAPACITY)
        self._timings[key] = PassTiming(min(rows, largest), took, self._clock())
        if len(self._timings) > _TIMINGS:
            self._timings.popitem(last=False)

    # --- queues ---

    def _enqueue(self, request: PendingRequest, rows: int, *, front: bool = False) -> None:
        lane, key, owner = request.lane, request.key, request.owner
        group = self._groups[lane].get(key)
        if group is None:
            group = self._groups[lane][key] = Group()
        queue = group.queues.get(owner)
        if queue is None:
            queue = group.queues[owner] = OwnerQueue()
        queue.add(request, front=front)
        group.rows += rows
        group.last_arrival = max(group.last_arrival, request.arrived)
        turns = self._turns[lane]
        keys = turns.get(owner)
        if keys is None:
            keys = turns[owner] = OrderedDict()
        keys.setdefault(key)
        if front:
            keys.move_to_end(key, last=False)

    def _tidy(self, lane: QueueName, key: GroupKey, group: Group, owner: str) -> None:
        """Remove what an owner's emptied queue leaves behind."""
        queue = group.queues.get(owner)
        if queue is None or queue:
            return
        del group.queues[owner]
        if not group.queues:
            del self._groups[lane][key]
        turns = self._turns[lane]
        del turns[owner][key]
        if not turns[owner]:
            del turns[owner]


def _key(request: PendingRequest) -> GroupKey:
    """What requests must share to share a batch; a large one is a group of its own, so that such take turns."""
    options = orjson.dumps(request.options, option=orjson.OPT_SORT_KEYS)
    alike = (request.entry.name, request.entry.version, request.method, options)
    return alike if request.lane == "interactive" else (*alike, request.id)
