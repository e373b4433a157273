"""The records of the batch scheduler: pending requests, their slices, and batches in flight."""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from core.broker.codec import BatchSlice, Fields, Items, cut_items
from core.broker.keys import QueueName
from core.catalog.registry import ModelVersion

GroupKey = tuple[Any, ...]  # what requests must share to share a batch


@dataclass(eq=False, slots=True)
class PendingRequest:
    """One request for rows of a model, and the results so far.

    `items` are the input images, each for `per` consecutive rows. `owner` is the name of the API
    key, empty without keys; `limits` are the limits of this key that differ from the settings.
    `chunks` has the results of finished slices, keyed by the number of their first row. `result` is
    a future for the complete result; when a wait of one second ends without it, a new future
    replaces it.
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
    id: str = field(default_factory=partial(secrets.token_hex, 16))
    result: "asyncio.Future[Fields]" = field(init=False, repr=False)
    chunks: dict[int, Fields] = field(default_factory=dict)
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

    @property
    def progress(self) -> float:
        """Share of the rows that are done, 0 to 1."""
        return min(self.rows_done / self.rows, 1.0)

    @property
    def unsent_rows(self) -> int:
        """Number of rows that are in no batch, including slices to be retried."""
        return self.rows - self.next_row + sum(retry.rows for retry in self.retries)


@dataclass(eq=False, slots=True)
class RequestSlice:
    """Rows `first` … `first + rows − 1` of a request, for one forward pass.

    `isolated`: a worker died while it ran the slice, so the slice is alone in its next batch.
    `attempts` counts the workers that died with the slice alone in their batch.
    """

    request: PendingRequest
    first: int
    rows: int
    isolated: bool = False
    attempts: int = 0

    def to_wire(self) -> BatchSlice:
        """Return the slice with its input images, in the form that is sent to a worker."""
        request = self.request
        items = cut_items(request.items, request.per, self.first, self.rows) if request.items else {}
        return BatchSlice(request.id, request.seed, self.first, self.rows, items, request.png, request.request_id)


@dataclass(eq=False, slots=True)
class InFlightBatch:
    """A batch that was sent, when it was last seen alive, and on which worker.

    `waiting` counts the slices whose request still waits; at 0 no client needs the batch any more.
    """

    id: str
    queue: QueueName
    key: GroupKey
    slices: list[RequestSlice]
    last_seen: float
    waiting: int
    worker: str | None = None
    progress: float = 0.0
    missed_checks: int = 0

    @property
    def isolated(self) -> bool:
        """Whether the batch consists of one slice whose worker died before."""
        return self.slices[0].isolated

    @property
    def sent_to(self) -> QueueName:
        """The queue to which the batch is sent: an isolated batch goes to the bulk queue.

        An interactive batch may interrupt other work, which would be lost if it crashed the worker.
        """
        return "bulk" if self.isolated else self.queue
