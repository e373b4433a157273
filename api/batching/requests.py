"""Defines the batch scheduler's records: requests, slices, queues, waits and batches in flight."""

import asyncio
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from api.batching.fleet import ANY_KIND, Target
from api.row_files import RowFile
from core.broker.codec import BatchSlice, Fields, Items, cut_items
from core.broker.keys import QueueName
from core.catalog.registry import ModelVersion

GroupKey = tuple[Any, ...]  # what requests must share to share a batch

SMALL_ROWS = 16  # requests of at most this many rows fill the rows that a larger one leaves in a forward pass

# Seconds after which a wait ends without a result, so that its caller can check whether the client
# is connected.
WAIT_S = 1.0


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One request for rows of a model, and the results so far.

    `method` is the model's name for the operation. `items` are the input images, each for `per`
    consecutive rows. `png` says that workers return images as PNG files, not as pixels. `owner` is
    the name of the API key, empty without keys; `limits` are the limits of this key that differ
    from the settings. `deadline_at` is in seconds since the epoch, `arrived` in monotonic seconds;
    `traceparent` is that of the request's span. A slice is the part of the request's rows that one
    batch contains. `chunks` has the results of finished slices, keyed by the number of their first
    row; the arrays of a large result are in `row_file`, unless `keep_in_memory` says that the disk
    is full. `result` is a future for the complete result; when a wait of one second ends without a
    result, a new future replaces it. `rows_done` is the number of computed rows, including
    fractions for the reported progress of long operations. `rows_left` is the number of rows
    without a result, and `next_row` the first row that was never sent. `retries` are the slices to
    be sent again, and `batches` the batches in flight that contain rows of the request. All rows
    are computed by workers of one `device_kind`; `restarts` counts how often the request began
    again on another device kind.
    """

    entry: ModelVersion
    method: str
    options: dict[str, Any]
    seed: int
    rows: int
    items: Items = field(default_factory=dict)
    per: int = 1
    png: bool = False
    request_id: str = ""
    owner: str = ""
    limits: Mapping[str, int] = field(default_factory=dict)
    deadline_at: float | None = None
    traceparent: str = ""
    device_kind: str = ANY_KIND
    restarts: int = field(default=0, init=False)
    id: str = field(default_factory=partial(secrets.token_hex, 16))
    result: "asyncio.Future[Fields]" = field(init=False, repr=False)
    chunks: dict[int, Fields] = field(default_factory=dict)
    row_file: RowFile | None = field(default=None, init=False)
    keep_in_memory: bool = field(default=False, init=False)
    rows_done: float = 0.0
    rows_left: int = field(init=False)
    next_row: int = 0
    queue: QueueName = field(default="interactive", init=False)
    key: GroupKey = field(default=(), init=False)
    arrived: float = field(default=0.0, init=False)
    retries: "list[RequestSlice]" = field(default_factory=list, init=False)
    batches: "list[InFlightBatch]" = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.rows_left = self.rows

    def restart(self, kind: str) -> None:
        """Discard all results, so that the request begins again on the device kind `kind`.

        Its rows are then sent again from the first one on.
        """
        self.chunks.clear()
        self.retries.clear()
        self.batches.clear()
        self.row_file, self.keep_in_memory = None, False
        self.restarts += self.next_row > 0  # otherwise no slice of it exists
        self.rows_done, self.rows_left, self.next_row = 0.0, self.rows, 0
        self.device_kind = kind

    @property
    def progress(self) -> float:
        """Share of the rows that are done, 0 to 1."""
        return min(self.rows_done / self.rows, 1.0)

    @property
    def unsent_rows(self) -> int:
        """Number of rows that are in no batch: rows never sent, and rows of slices to be retried."""
        return self.rows - self.next_row + sum(retry.rows for retry in self.retries)


@dataclass(eq=False, slots=True)
class RequestSlice:
    """Rows `first` … `first + rows − 1` of a request, which are in the same batch.

    `isolated` is true if a worker died while it ran the slice: the slice's next batch then has no
    other slice. `attempts` counts the workers that died while they ran a batch of this slice alone.
    `restarts` is the request's number of restarts when the slice was made.
    """

    request: PendingRequest
    first: int
    rows: int
    isolated: bool = False
    attempts: int = 0
    restarts: int = field(init=False)

    def __post_init__(self) -> None:
        self.restarts = self.request.restarts

    @property
    def outdated(self) -> bool:
        """Whether the request was restarted after the slice was made, so that its result is not
        used.
        """
        return self.restarts != self.request.restarts

    def to_wire(self) -> BatchSlice:
        """Return the slice with its input images, in the form that is sent to a worker."""
        request = self.request
        items = cut_items(request.items, request.per, self.first, self.rows) if request.items else {}
        return BatchSlice(
            request.id, request.seed, self.first, self.rows, items, request.png, request.request_id, request.traceparent
        )


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that was sent to the workers of `target` and has not completed.

    `last_seen` is the time (monotonic, seconds) at which a worker last reported the batch, and
    `worker` the id of this worker. `waiting` counts the slices whose request still waits; at 0 no
    client needs the batch any more. `missed_checks` counts the checks for lost batches, since a
    worker last reported the batch, that found it neither on a queue nor at a worker. `uncounted`
    says that the batch does not count when batches in flight are limited. `spans` are the batch's
    open spans, if traces are recorded.
    """

    id: str
    queue: QueueName
    key: GroupKey
    target: Target
    slices: list[RequestSlice]
    last_seen: float
    waiting: int
    worker: str | None = None
    progress: float = 0.0
    missed_checks: int = 0
    uncounted: bool = False
    spans: list[Any] = field(default_factory=list)

    @property
    def isolated(self) -> bool:
        """Whether the batch is one slice that must run alone: a worker died while it ran the slice."""
        return self.slices[0].isolated

    @property
    def sent_to(self) -> QueueName:
        """The queue to which the batch is sent: `bulk` if it is isolated, otherwise `queue`.

        An isolated batch may crash its worker. From the interactive queue, a worker could start the
        batch while another operation is unfinished, which would then be lost in the crash.
        """
        return "bulk" if self.isolated else self.queue


@dataclass(eq=False, slots=True)
class OwnerQueue:
    """The requests of one owner in one group (`Group`) that have unsent rows, oldest first.

    Requests of at most `SMALL_ROWS` rows are in `small`, all others in `large`.
    """

    small: OrderedDict[PendingRequest, None] = field(default_factory=OrderedDict)
    large: OrderedDict[PendingRequest, None] = field(default_factory=OrderedDict)

    def __bool__(self) -> bool:
        return bool(self.small or self.large)

    def _queue_of(self, request: PendingRequest) -> OrderedDict[PendingRequest, None]:
        """Return the one of the queues `small` and `large` that is for the request."""
        return self.small if request.rows <= SMALL_ROWS else self.large

    def add(self, request: PendingRequest, *, front: bool = False) -> None:
        """Put a request at the end of its queue or, with `front`, at the front.

        A request that is in the queue already keeps its place or, with `front`, moves to the front.
        """
        queue = self._queue_of(request)
        queue[request] = None
        if front:
            queue.move_to_end(request, last=False)

    def remove(self, request: PendingRequest) -> bool:
        """Remove a request; return whether it was in the queue."""
        queue = self._queue_of(request)
        if request not in queue:
            return False
        del queue[request]
        return True

    def oldest(self) -> PendingRequest:
        """Return the request that arrived first. The queue must not be empty."""
        if not self.large:
            return next(iter(self.small))
        large = next(iter(self.large))
        if not self.small:
            return large
        small = next(iter(self.small))
        return small if small.arrived <= large.arrived else large

    def fitting(self, rows: int) -> PendingRequest | None:
        """Return a request whose next slice has at most `rows` rows; None if there is none.

        The oldest small request is tried first, then the oldest large one. The slice is all unsent
        rows of the request or, if it has slices to be retried, the first of these. A slice that
        must run isolated never fits.
        """
        for queue in (self.small, self.large):
            request = next(iter(queue), None)
            if request is None or (request.retries and request.retries[0].isolated):
                continue
            if (request.retries[0].rows if request.retries else request.rows - request.next_row) <= rows:
                return request
        return None


@dataclass(eq=False, slots=True)
class Group:
    """The requests with unsent rows that have one group key, and so may share a batch.

    The key has the model, version, method, options and device kind, and for the bulk queue the
    request.

    `queues` has the requests, keyed by owner. `rows` is the number of their rows that are in no
    batch yet, and `last_arrival` the time (monotonic, seconds) at which the newest request arrived.
    """

    queues: dict[str, OwnerQueue] = field(default_factory=lambda: defaultdict(OwnerQueue))
    rows: int = 0
    last_arrival: float = 0.0


class StillWaitingError(Exception):
    """Raised if a request has no result `WAIT_S` seconds after its caller began to wait for it.

    The request is still computed; the caller may wait again.
    """


class ResultWaits:
    """Waits for the results of requests, with one timer for all waits.

    A timer for each wait would cost more CPU time than the wait itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start with no request waiting; the first wait starts a timer on the event loop `loop`."""
        self._loop = loop
        self._due: dict[PendingRequest, float] = {}  # the earliest first, as all last equally long
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, request: PendingRequest) -> Fields:
        """Wait for the result of a request, and return it, keyed by field.

        Raises the request's error if the request fails, and StillWaitingError if there is no result
        after `WAIT_S` seconds.
        """
        self._due[request] = self._loop.time() + WAIT_S
        if self._timer is None:
            self._timer = self._loop.call_later(WAIT_S, self._end_waits)
        try:
            return await request.result
        finally:
            self._due.pop(request, None)

    def close(self) -> None:
        """Cancel the timer; waits that are open then end only when their requests have results."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_waits(self) -> None:
        """End the waits that have lasted `WAIT_S` seconds, by raising StillWaitingError in their
        callers.

        Only the timer of this object calls this method. The requests continue, with new futures for
        their results. If other waits are open, the timer is set to the time at which the next of
        them ends.
        """
        now, self._timer = self._loop.time(), None
        for request, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._end_waits)
                return
            del self._due[request]
            if not request.result.done():
                request.result.set_exception(StillWaitingError())
                request.result = self._loop.create_future()
