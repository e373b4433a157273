"""The batch scheduler: forms batches of waiting rows. It does no I/O, and its clock is injected.

Requests for the same model version, operation, options and device kind form a group and share
forward passes. The rows of a request are divided among batches only when a batch is formed. So a
waiting request costs the same however many rows it has, and cancelling a request wastes only those
of its rows that were already sent.

The scheduler serves the owners (API keys) in turn, and the groups of each owner in turn; within a
group it serves the owner's oldest request. If the batch then has room, the scheduler adds requests
of the same group, one of each owner in turn, small requests first. Every owner, every group and
every oldest request is served after a bounded number of batches, so none starves.

This file has more than 400 lines because every step changes the same queues.
"""

import secrets
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import orjson

from api.batching.fleet import IN_FLIGHT_PER_WORKER, Fleet, InFlightCounts, Target
from api.batching.requests import Group, GroupKey, InFlightBatch, OwnerQueue, PendingRequest, RequestSlice
from core.broker.codec import Fields
from core.broker.keys import QUEUES, QueueName

T = TypeVar("T")

UNKNOWN_CAPACITY = (8, 8)
# After a forward pass of at least so many seconds, the next batch of its group waits for more rows.
# A multithreaded pass counts as slow sooner, since other work on the machine slows it down.
_LONG_S, _LONG_MULTITHREADED_S = 0.03, 0.01

# The next batch is sent after this share of the pass without a new row, and after this share at the
# latest.
_QUIET, _HOLD = 0.15, 0.5

_TIMINGS = 1000

Capacity = tuple[int, int]  # rows of the largest forward pass, and rows that take about one time slice


class QueueFullError(Exception):
    """Raised if a limit on waiting requests is reached.

    `limit` is the name of the limit. `own` is true for a limit of the caller's API key, and false
    for a limit of the process.
    """

    def __init__(self, detail: str, limit: str, *, own: bool) -> None:
        super().__init__(detail)
        self.limit = limit
        self.own = own


@dataclass(frozen=True)
class Limits:
    """Limits on waiting requests, which are those without a complete result; 0 means no limit.

    `requests` limits the number of waiting requests of all owners together, and `waiting_requests`
    the number of one owner's. `waiting_rows` limits the total number of rows of one owner's waiting
    requests on the bulk queue, including rows already computed. A request's own `limits` override
    `waiting_requests` and `waiting_rows`.
    """

    requests: int
    waiting_requests: int
    waiting_rows: int


@dataclass(frozen=True, slots=True)
class PassTiming:
    """The last slow forward pass of a group; after it, the group's next batch waits for more rows.

    The batch waits until it has `rows` rows: as many as the pass had, plus the rows that arrived
    during the pass, at most a full batch. The pass took `took` seconds, and ended at the time
    `ended` (monotonic, seconds).
    """

    rows: int
    took: float
    ended: float

    def until(self, last: float) -> float:
        """Return until when the group's next batch waits for more rows, in monotonic seconds.

        `last` is the time at which the newest row of the group arrived. The wait ends when no row
        has arrived for 15 % of the duration of the slow pass, and at the latest half that duration
        after the end of the pass.
        """
        return min(max(self.ended, last) + self.took * _QUIET, self.ended + self.took * _HOLD)


class BatchScheduler:
    """Holds the requests without a complete result, in groups, and forms batches of their rows.

    `in_flight` has the batches that were sent and have not completed, keyed by id.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        """Start without requests; `clock` returns the present time, in monotonic seconds."""
        self._limits = limits
        self._clock = clock
        self._groups: dict[QueueName, dict[GroupKey, Group]] = {queue: defaultdict(Group) for queue in QUEUES}
        # keyed by owner: the keys of the groups in which the owner has unsent rows; owners and
        # groups are in the order of their turns
        self._turns: dict[QueueName, OrderedDict[str, OrderedDict[GroupKey, None]]]
        self._turns = {queue: OrderedDict() for queue in QUEUES}
        self._waiting: set[PendingRequest] = set()
        self._requests: Counter[str] = Counter()
        self._rows: Counter[str] = Counter()
        self._counts = InFlightCounts()
        self._group_count: Counter[GroupKey] = Counter()
        # in flight on the interactive queue
        self._short_count: Counter[GroupKey] = Counter()
        self._short_rows: Counter[GroupKey] = Counter()
        self._timings: OrderedDict[GroupKey, PassTiming] = OrderedDict()
        self.in_flight: dict[str, InFlightBatch] = {}
        self._sizes: dict[str, int] = {}
        self.fleet = Fleet()
        """The workers that receive batches. Without workers no batch is formed."""
        self.waiting_by_kind: Counter[tuple[str, str]] = Counter()
        """The numbers of waiting requests, keyed by (`name@version`, device kind)."""
        self.capacity: dict[tuple[str, str, str], Capacity] = {}
        """The capacity that the workers report, keyed by (device kind, `name@version`, method)."""
        self.wakeup_at: float | None = None
        """When to call `next_batch` again, if a group waits for more rows."""

    # --- requests ---

    def __len__(self) -> int:
        """Return the number of requests without a complete result, including those in flight."""
        return len(self._waiting)

    def __contains__(self, request: object) -> bool:
        """Return whether a request still waits for its result, on a queue or in flight."""
        return request in self._waiting

    def submit(self, request: PendingRequest) -> None:
        """Add a request to its group's queue, and set its `queue`, `key` (the group) and `arrived`.

        Raises QueueFullError if a limit on waiting requests is reached.
        """
        ref, kind = request.entry.ref, request.device_kind
        _, slice_rows = self.capacity.get((kind, ref, request.method), UNKNOWN_CAPACITY)
        small = request.rows <= slice_rows and not _has_large_tiles(request)
        request.queue = "interactive" if small else "bulk"
        self._check(request)
        request.key = _key(request)
        request.arrived = self._clock()
        if ref not in self._sizes:
            self._sizes[ref] = _size_bytes(request)
        self._add(request)

    def _add(self, request: PendingRequest) -> None:
        """Count a request as waiting, and queue its rows."""
        self._waiting.add(request)
        self._requests[request.owner] += 1
        self.waiting_by_kind[request.entry.ref, request.device_kind] += 1
        if request.queue == "bulk":
            self._rows[request.owner] += request.rows
        self._enqueue(request, request.rows)

    def _check(self, request: PendingRequest) -> None:
        """Raise QueueFullError if a limit does not allow another waiting request, or its rows."""
        limits, owner = self._limits, request.owner
        if len(self._waiting) >= limits.requests:
            raise QueueFullError(f"{limits.requests} requests wait already", "max_waiting", own=False)
        most = request.limits.get("waiting_requests", limits.waiting_requests)
        if owner and 0 < most <= self._requests[owner]:
            raise QueueFullError(f"you have {most} requests waiting already", "waiting_requests", own=True)
        # a small request is never rejected for the rows of large ones: it waits for at most one of
        # their slices
        most, rows = request.limits.get("waiting_rows", limits.waiting_rows), self._rows[owner]
        if request.queue == "bulk" and rows and 0 < most < rows + request.rows:
            detail = f"large requests have {rows} rows waiting already, and may have {most}"
            raise QueueFullError(detail, "waiting_rows", own=bool(owner))

    def usage(self, owner: str) -> dict[str, int]:
        """Return an owner's present use of the limits on waiting requests, keyed by limit.

        `waiting_requests` is the number of the owner's requests that have no complete result.
        `waiting_rows` is the total number of rows of those requests that are on the bulk queue,
        including rows that are already computed.
        """
        return {"waiting_requests": self._requests[owner], "waiting_rows": self._rows[owner]}

    def cancel(self, request: PendingRequest) -> list[InFlightBatch]:
        """Remove a request, so that its unsent rows are not sent.

        Returns the batches in flight that have rows of this request and of no other waiting
        request. If the request has ended, does nothing and returns an empty list.
        """
        if request not in self._waiting:
            return []
        self._remove(request)
        self._dequeue(request)
        return [batch for batch in request.batches if batch.waiting == 0 and batch.id in self.in_flight]

    def restart(self, request: PendingRequest, kind: str) -> list[InFlightBatch]:
        """Begin a waiting request again at its first row, on another device kind.

        Its results so far are discarded, and later results of slices that were already sent are
        ignored. Returns the batches in flight that have rows of this request and of no other
        waiting request.
        """
        abandoned = self.cancel(request)
        request.restart(kind)
        request.key = _key(request)
        self._add(request)
        return abandoned

    def waiting_on(self, ref: str, kind: str) -> list[PendingRequest]:
        """Return the requests for a version that wait for results from workers of a device kind."""
        return [one for one in self._waiting if one.device_kind == kind and one.entry.ref == ref]

    def _dequeue(self, request: PendingRequest) -> None:
        """Remove the unsent rows of a request from the queues."""
        group = self._groups[request.queue].get(request.key)
        if group is not None and (owner_queue := group.queues.get(request.owner)) and owner_queue.remove(request):
            group.rows -= request.unsent_rows
            self._remove_empty(request.queue, request.key, group, request.owner)

    def _remove(self, request: PendingRequest) -> None:
        """Stop counting a request as waiting, because it has ended."""
        self._waiting.discard(request)
        _subtract(self._requests, request.owner)
        _subtract(self.waiting_by_kind, (request.entry.ref, request.device_kind))
        if request.queue == "bulk":
            _subtract(self._rows, request.owner, request.rows)
        for batch in request.batches:
            batch.waiting -= 1

    def add_chunk(self, batch: InFlightBatch, part: RequestSlice, fields: Fields) -> bool:
        """Record `fields`, the result of the slice `part` of a batch.

        Returns True if the slice's request is now complete. A second result of a slice, or one for
        a request that has ended, is ignored.
        """
        request = part.request
        if request not in self._waiting or part.outdated or part.first in request.chunks:
            return False
        request.chunks[part.first] = fields
        request.rows_done += (1 - batch.progress) * part.rows
        request.rows_left -= part.rows
        if request.rows_left:
            return False
        self._remove(request)
        return True

    # --- batches ---

    def next_batch(self, queue: QueueName) -> InFlightBatch | None:
        """Form the next batch of a queue, add it to `in_flight`, and return it.

        Returns None if no group of the queue has unsent rows, if enough batches are in flight for
        the workers that can run them, or if all groups should wait for more rows; in the last case
        `wakeup_at` is the time (monotonic, seconds) at which to try again, or None if a completed
        batch ends the wait.
        """
        if queue == "interactive":
            self.wakeup_at = None
        if self._counts.total(queue) >= IN_FLIGHT_PER_WORKER * len(self.fleet):
            return None
        busy: set[tuple[str, str]] = set()
        for owner, keys in self._turns[queue].items():
            for key in keys:
                model = (f"{key[0]}@{key[1]}", key[4])
                if model in busy:
                    continue
                route = self.fleet.route(*model, self._sizes.get(model[0], 0))
                target = None if route is None else self._counts.free_target(queue, route)
                if route is None or target is None:
                    busy.add(model)
                    continue
                group = self._groups[queue][key]
                if queue == "interactive" and (
                    self._is_too_small(key, group, route.workers) or self._should_wait(key, group, owner, route.workers)
                ):
                    continue
                return self._form_batch(queue, key, group, owner, target)
        return None

    # See docs/decisions.md#rows-are-sliced-when-a-batch-is-formed
    def _form_batch(self, queue: QueueName, key: GroupKey, group: Group, owner: str, target: Target) -> InFlightBatch:
        """Form a batch of one group, add it to `in_flight`, and return it.

        Its first rows are those of a request of `owner`. Then `owner` moves to the end of the order
        in which owners are served, and the group to the end of the owner's groups.
        """
        slices = self._fill(queue, key, group, owner)
        turns = self._turns[queue]
        turns.move_to_end(owner)
        turns[owner].move_to_end(key)
        for served in {part.request.owner for part in slices}:
            self._remove_empty(queue, key, group, served)
        batch = InFlightBatch(secrets.token_hex(16), queue, key, target, slices, self._clock(), len(slices))
        for part in slices:
            part.request.batches.append(batch)
        self.in_flight[batch.id] = batch
        self._counts.add(queue, target)
        self._group_count[key] += 1
        if queue == "interactive":
            self._short_count[key] += 1
            self._short_rows[key] += sum(part.rows for part in slices)
        return batch

    def _fill(self, queue: QueueName, key: GroupKey, group: Group, owner: str) -> list[RequestSlice]:
        """Remove slices from the queues of a group for one batch, and return them.

        The first slice is from the oldest request of `owner`. The remaining room in the batch is
        filled with requests that fit, one per owner in turn. A batch of the bulk queue or with an
        isolated slice has only the first slice.
        """
        owner_queue = group.queues[owner]
        oldest = owner_queue.oldest()
        largest = self._largest(key)
        if _is_any_size(oldest):
            largest = 1
        slices = [self._cut(group, owner_queue, oldest, largest)]
        room = largest - slices[0].rows
        if queue == "bulk" or slices[0].isolated:
            return slices
        owners = [owner, *(other for other in group.queues if other != owner)] if len(group.queues) > 1 else [owner]
        while owners:
            fitting = []
            for each in owners:
                if (request := group.queues[each].fitting(room)) is not None:
                    slices.append(self._cut(group, group.queues[each], request, room))
                    room -= slices[-1].rows
                    fitting.append(each)
            owners = fitting
        return slices

    @staticmethod
    def _cut(group: Group, owner_queue: OwnerQueue, request: PendingRequest, most: int) -> RequestSlice:
        """Remove the next slice of a request from its owner's queue, and return it.

        Slices to be retried come first and keep their size. Any other slice has the next `most`
        unsent rows, or all if there are fewer. When the last slice is removed, the request leaves
        the queue.
        """
        if request.retries:
            part = request.retries.pop(0)
        else:
            part = RequestSlice(request, request.next_row, min(most, request.rows - request.next_row))
            request.next_row += part.rows
        group.rows -= part.rows
        if request.next_row >= request.rows and not request.retries:
            owner_queue.remove(request)
        return part

    def finish_batch(self, batch: InFlightBatch) -> None:
        """Remove a batch from `in_flight`: it has completed, is not needed, or will be sent again.

        Does nothing if the batch is not in flight.
        """
        if self.in_flight.pop(batch.id, None) is None:
            return
        if not batch.uncounted:
            self._counts.add(batch.queue, batch.target, -1)
        _subtract(self._group_count, batch.key)
        self._end_short(batch)
        for part in batch.slices:
            if not part.outdated:
                part.request.batches.remove(batch)

    def record_progress(self, batch: InFlightBatch, done: float) -> None:
        """Record the progress `done`, 0 to 1, of a batch whose long operation has not ended.

        From its first progress on, a batch of the interactive queue does not count when batches in
        flight are limited: it takes turns with the batches of the bulk queue at its worker, and
        must hold back neither interactive batches nor those of the bulk queue.
        """
        for part in batch.slices:
            if not part.outdated:
                part.request.rows_done += (done - batch.progress) * part.rows
        batch.progress = done
        if batch.queue != "bulk" and batch.id in self.in_flight:
            self._end_short(batch)
            self._counts.add(batch.queue, batch.target, -1)
            batch.uncounted = True
        batch.queue = "bulk"

    def requeue(self, batch: InFlightBatch, *, isolate: bool) -> None:
        """Remove a batch from `in_flight`, and queue its slices before other rows of their owners.

        With `isolate`, each slice is sent in a batch of its own. Slices that have a result, or
        whose request has ended, are not queued.
        """
        self.finish_batch(batch)
        for part in reversed(batch.slices):
            request = part.request
            if request not in self._waiting or part.outdated or part.first in request.chunks:
                continue
            part.isolated = part.isolated or isolate
            request.retries.insert(0, part)
            self._enqueue(request, part.rows, front=True)

    def _is_too_small(self, key: GroupKey, group: Group, workers: int) -> bool:
        """Return whether a group's next batch should wait until a batch in flight has completed.

        If at least two batches of the group, and at least one per worker, are in flight, the next
        batch is sent only if it has as many rows as the batches in flight have on average.
        Otherwise the rows of the same clients would be divided among more and smaller batches the
        more workers there are.
        """
        count = self._short_count[key]
        return count >= max(IN_FLIGHT_PER_WORKER, workers) and group.rows * count < self._short_rows[key]

    def _end_short(self, batch: InFlightBatch) -> None:
        """Subtract a batch from the counts of interactive batches in flight and of their rows.

        `_is_too_small` reads these counts. A batch of the bulk queue is not in them.
        """
        if batch.queue == "interactive":
            _subtract(self._short_count, batch.key)
            _subtract(self._short_rows, batch.key, sum(part.rows for part in batch.slices))

    # --- waiting for more rows after slow passes ---

    # See docs/decisions.md#after-a-slow-pass-the-next-batch-waits-for-returning-clients
    def _should_wait(self, key: GroupKey, group: Group, owner: str, workers: int) -> bool:
        """Return whether a group's next batch should wait for more rows.

        It waits only if the group's last forward pass was slow (`record_duration`): while as many
        batches of the group are in flight as there are `workers`, and after that for a fraction of
        the slow pass's duration, in which clients may send their next requests. The end of this
        wait is stored in `wakeup_at`, unless `wakeup_at` is earlier. A batch of `owner` that must
        run isolated does not wait.
        """
        timing = self._timings.get(key)
        if timing is None:
            return False
        retries = group.queues[owner].oldest().retries
        if retries and retries[0].isolated:
            return False
        if self._group_count[key] >= workers:
            return True
        due = timing.until(group.last_arrival)
        if due <= self._clock() or group.rows >= timing.rows:
            return False
        self.wakeup_at = due if self.wakeup_at is None else min(due, self.wakeup_at)
        return True

    def record_duration(self, batch: InFlightBatch, took: float, *, multithreaded: bool) -> None:
        """Record the duration `took` (seconds) of an interactive forward pass if it was slow.

        The next batches of its group then wait for more rows, until a faster pass deletes the
        record. A pass is slow from `_LONG_S` seconds on or, if it ran in several threads
        (`multithreaded`), from `_LONG_MULTITHREADED_S`. Batches of the bulk queue are not recorded.
        """
        key = batch.key
        if batch.progress or batch.queue == "bulk":
            return
        if took < (_LONG_MULTITHREADED_S if multithreaded else _LONG_S):
            self._timings.pop(key, None)
            return
        # rows that arrived meanwhile count too: otherwise two half batches in alternation would
        # never merge
        group = self._groups["interactive"].get(key)
        rows = sum(part.rows for part in batch.slices) + (0 if group is None else group.rows)
        self._timings[key] = PassTiming(min(rows, self._largest(key)), took, self._clock())
        if len(self._timings) > _TIMINGS:
            self._timings.popitem(last=False)

    # --- queues ---

    def _largest(self, key: GroupKey) -> int:
        """Return how many rows a forward pass of a group may have at most."""
        largest, _ = self.capacity.get((key[4], f"{key[0]}@{key[1]}", key[2]), UNKNOWN_CAPACITY)
        return largest

    def _enqueue(self, request: PendingRequest, rows: int, *, front: bool = False) -> None:
        """Put a request into its group's queue, and add `rows` to the unsent rows of the group.

        With `front`, the request and its group are the next ones of the request's owner.
        """
        queue, key, owner = request.queue, request.key, request.owner
        group = self._groups[queue][key]
        group.queues[owner].add(request, front=front)
        group.rows += rows
        group.last_arrival = max(group.last_arrival, request.arrived)
        keys = self._turns[queue].setdefault(owner, OrderedDict())
        keys.setdefault(key)
        if front:
            keys.move_to_end(key, last=False)

    def _remove_empty(self, queue: QueueName, key: GroupKey, group: Group, owner: str) -> None:
        """Delete an owner's queue and its turn in the group `key`, if the queue is empty."""
        owner_queue = group.queues.get(owner)
        if owner_queue is None or owner_queue:
            return
        del group.queues[owner]
        if not group.queues:
            del self._groups[queue][key]
        turns = self._turns[queue]
        del turns[owner][key]
        if not turns[owner]:
            del turns[owner]


def _subtract(counts: Counter[T], key: T, number: int = 1) -> None:
    """Subtract `number` from the count of a key; delete the key if its count is then 0."""
    counts[key] -= number
    if not counts[key]:
        del counts[key]


def _is_any_size(request: PendingRequest) -> bool:
    """Return whether the model's operation accepts images of any size.

    A batch of such an operation has a single row, because the sizes of two images may differ.
    """
    spec = request.entry.card.operations.get(request.method)
    return spec is not None and spec.any_size


def _size_bytes(request: PendingRequest) -> int:
    """Return the size of the checkpoint file of a request's version; 0 if it was deleted."""
    try:
        return request.entry.size_bytes
    except OSError:
        return 0


def _has_large_tiles(request: PendingRequest) -> bool:
    """Return whether the request's tiles have more pixels than the images of its model."""
    tiles = request.items.get("images")
    if tiles is None or not _is_any_size(request):
        return False
    _, height, width = request.entry.image
    return bool(tiles.shape[2] * tiles.shape[3] > height * width)


def _key(request: PendingRequest) -> GroupKey:
    """Return the key of a request's group: model, version, method, options and device kind.

    A request for the bulk queue is a group of its own, so that such requests take turns.
    """
    options = orjson.dumps(request.options, option=orjson.OPT_SORT_KEYS)
    alike = (request.entry.name, request.entry.version, request.method, options, request.device_kind)
    return alike if request.queue == "interactive" else (*alike, request.id)
