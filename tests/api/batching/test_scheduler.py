"""The batch scheduler in simulated time: the contents of batches, the order of owners, the cost of
cancelling, limits, and waiting for a fuller batch.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.batching.fleet import IN_FLIGHT_PER_WORKER, Fleet, WorkerState
from api.batching.requests import InFlightBatch, PendingRequest
from api.batching.scheduler import BatchScheduler, Limits, QueueFullError
from core.catalog.cards import Card
from core.catalog.registry import ModelVersion

LARGEST, SLICE = 32, 16
CARD = Card.from_json({"image": {"channels": 1, "height": 8, "width": 8}, "operations": {}})
ENTRY = ModelVersion("model", "1", CARD, Path())
WIDE = Limits(1 << 30, 1 << 30, 1 << 40)


@dataclass
class Clock:
    """A clock that tests advance."""

    now: float = 0.0

    def __call__(self) -> float:
        """Return the simulated time in seconds."""
        return self.now


def workers(number: int) -> Fleet:
    """Return a fleet of equal workers."""
    return Fleet(WorkerState(f"w{index}", "group") for index in range(number))


def scheduler(limits: Limits = WIDE, clock: Clock | None = None, number: int = 1) -> BatchScheduler:
    """Return an empty scheduler for so many equal workers, with room for `LARGEST` rows per batch."""
    made = BatchScheduler(limits, clock or Clock())
    made.fleet = workers(number)
    made.capacity["", "model@1", "sample"] = (LARGEST, SLICE)
    return made


def request(rows: int = 1, owner: str = "", **options: Any) -> PendingRequest:
    """Return a pending request of `rows` rows."""
    return PendingRequest(ENTRY, "sample", options, 7, rows, owner=owner)


def finish(made: BatchScheduler, batch: InFlightBatch) -> list[PendingRequest]:
    """Complete a batch as workers do; return the requests that it completes."""
    ended = [part.request for part in batch.slices if made.add_chunk(batch, part, {"row": part.first})]
    made.finish_batch(batch)
    return ended


def rows_of(batch: InFlightBatch) -> int:
    """Return the number of rows in a batch."""
    return sum(part.rows for part in batch.slices)


# --- contents of batches ---

REQUESTS = st.lists(
    st.tuples(st.integers(1, 100), st.sampled_from(["", "a", "b"]), st.integers(0, 2)), min_size=1, max_size=40
)
EVENTS = st.lists(st.sampled_from(["finish", "finish late", "die", "lose", "progress", "cancel", "tick"]), max_size=80)


@dataclass
class Run:
    """A scheduler under random events, with a record of the batches it sent and the requests it
    completed.
    """

    clock: Clock = field(default_factory=Clock)
    sent: list[InFlightBatch] = field(default_factory=list)
    completed: Counter[str] = field(default_factory=Counter)
    cancelled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.scheduler = scheduler(clock=self.clock)

    def send(self) -> None:
        """Take all batches that the scheduler sends now, and check each one."""
        for queue in ("interactive", "bulk"):
            while (batch := self.scheduler.next_batch(queue)) is not None:
                assert 0 < rows_of(batch) <= LARGEST
                assert len({(part.request.key, part.request.queue) for part in batch.slices}) == 1
                assert len(batch.slices) == 1 or not any(part.isolated for part in batch.slices)
                assert all(part.request in self.scheduler for part in batch.slices)
                self.sent.append(batch)
            counted = [one for one in self.scheduler.in_flight.values() if one.queue == queue]
            assert queue == "bulk" or len(counted) <= IN_FLIGHT_PER_WORKER

    def end(self, batch: InFlightBatch) -> None:
        """Complete a batch."""
        self.sent.remove(batch)
        for ended in finish(self.scheduler, batch):
            self.completed[ended.id] += 1
            starts = sorted(ended.chunks)
            assert starts[0] == 0

    def happen(self, event: str, one: PendingRequest, batch: InFlightBatch) -> None:
        """Apply an event: the tick of the clock, or a change to the request `one` or to `batch`."""
        if event == "tick":
            self.clock.now += 0.1
        elif event in {"finish", "finish late"}:
            self.scheduler.record_duration(batch, 0.001 if event == "finish" else 0.2, multithreaded=False)
            self.end(batch)
        elif event == "progress":
            self.scheduler.record_progress(batch, 0.5)
        elif event == "cancel":
            self.cancelled |= {one.id} if one in self.scheduler else set()
            for abandoned in self.scheduler.cancel(one):
                assert all(part.request not in self.scheduler for part in abandoned.slices)
                self.scheduler.finish_batch(abandoned)
                self.sent.remove(abandoned)
        else:
            self.sent.remove(batch)
            self.scheduler.requeue(batch, isolate=event == "die")

    def drain(self) -> None:
        """Send and complete batches until no request is left."""
        while len(self.scheduler):
            self.clock.now += 0.1
            self.send()
            assert self.sent
            for batch in list(self.sent):
                self.end(batch)


@settings(max_examples=150, deadline=None)
@given(requests=REQUESTS, events=EVENTS, choices=st.randoms(use_true_random=False))
def test_every_row_is_computed_once_whatever_happens(requests: Any, events: list[str], choices: Any) -> None:
    """Under random events, every request that is not cancelled completes exactly once with all its
    rows.

    No batch has more than `LARGEST` rows, and the scheduler keeps no state of finished requests.
    """
    run = Run()
    waiting = [request(rows, owner, kind=kind) for rows, owner, kind in requests]
    for one in waiting:
        run.scheduler.submit(one)
        run.clock.now += 0.001
    run.send()
    for event in events:
        if run.sent:
            run.happen(event, choices.choice(waiting), choices.choice(run.sent))
        run.send()
    run.drain()
    assert run.completed == {one.id: 1 for one in waiting if one.id not in run.cancelled}
    assert all(one.rows_left == 0 for one in waiting if one.id not in run.cancelled)
    # the scheduler has dropped all of their state
    assert not run.scheduler.in_flight
    assert not any(one.batches for one in waiting)
    assert not any(run.scheduler._groups.values())
    assert not any(run.scheduler._turns.values())
    assert not run.scheduler._rows
    assert not run.scheduler._requests


def test_a_waiting_request_costs_the_same_whatever_its_rows() -> None:
    """150 requests of 65 536 rows, with images, are submitted and cancelled in under 0.1 s."""
    made = scheduler()
    picture = {"images": np.zeros((65_536, 1, 1, 1), np.uint8)}
    started = time.process_time()
    waiting = [PendingRequest(ENTRY, "sample", {}, seed, 65_536, picture) for seed in range(150)]
    for one in waiting:
        made.submit(one)
    for one in waiting:
        made.cancel(one)
    assert time.process_time() - started < 0.1
    assert not len(made)


def test_cancelling_costs_the_request_s_own_rows() -> None:
    """20 000 waiting requests are cancelled in under 1 s, whatever their position in the queue."""
    made = scheduler()
    waiting = [request(16, options=number % 50) for number in range(20_000)]
    for one in waiting:
        made.submit(one)
    started = time.process_time()
    for one in (*waiting[::-2], *waiting[::2]):
        made.cancel(one)
    assert time.process_time() - started < 1.0
    assert not len(made)
    assert made.next_batch("interactive") is None


def test_an_abandoned_batch_is_named_once_nobody_waits_for_it() -> None:
    """`cancel` returns a batch of two requests when the second of them is cancelled, and only
    then.
    """
    made = scheduler()
    first, second = request(), request()
    made.submit(first)
    made.submit(second)
    batch = made.next_batch("interactive")
    assert batch is not None
    assert made.cancel(first) == []
    assert made.cancel(second) == [batch]
    assert made.cancel(second) == []


def test_rows_are_sliced_by_the_capacity_of_the_moment() -> None:
    """A request submitted before any worker has reported its capacity is sliced by the capacity
    that is known when its batch is sent.
    """
    made = BatchScheduler(WIDE, Clock())
    made.fleet = workers(1)
    one = request(100)
    made.submit(one)
    made.capacity["", "model@1", "sample"] = (64, 64)
    batch = made.next_batch("bulk")
    assert batch is not None
    assert [(part.first, part.rows) for part in batch.slices] == [(0, 64)]
    part = batch.slices[0].to_wire()
    assert (part.first, part.rows, part.seed) == (0, 64, 7)


def test_images_are_cut_with_their_rows() -> None:
    """A slice carries the images that its rows read; each image is repeated for its `per` rows."""
    made = scheduler()
    images = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    made.submit(PendingRequest(ENTRY, "sample", {}, 7, 40, {"images": images}, per=2))
    made.next_batch("bulk")
    batch = made.next_batch("bulk")
    assert batch is not None
    part = batch.slices[0].to_wire()
    assert part.first == LARGEST
    assert part.items["images"].ravel().tolist() == [value for value in range(16, 20) for _ in range(2)]


# --- the order of owners ---


def served(made: BatchScheduler, queue: Any = "interactive") -> list[str]:
    """Complete the next batch; return the owners of its slices."""
    batch = made.next_batch(queue)
    assert batch is not None
    finish(made, batch)
    return [part.request.owner for part in batch.slices]


def test_a_backlog_in_many_groups_does_not_starve_another_owner() -> None:
    """One owner's backlog in 500 groups counts as one owner: another owner's request is in the
    first or second batch.
    """
    made = scheduler()
    for number in range(500):
        made.submit(request(1, "busy", kind=number))
    made.submit(request(1, "other", kind=-1))
    assert "other" in served(made) + served(made)


def test_a_backlog_in_the_same_group_does_not_starve_another_owner() -> None:
    """Owners take turns within a batch: a request is in the next batch although another owner has a
    thousand older ones in its group.
    """
    made = scheduler()
    for _ in range(1000):
        made.submit(request(1, "busy"))
    made.submit(request(1, "other"))
    assert "other" in served(made)


def test_large_requests_take_turns_between_owners() -> None:
    """An owner with one large request gets every second slice beside an owner with twenty."""
    made = scheduler()
    for _ in range(20):
        made.submit(request(10_000, "busy"))
    made.submit(request(10_000, "other"))
    assert Counter(served(made, "bulk")[0] for _ in range(10)) == {"busy": 5, "other": 5}


def test_a_small_request_joins_the_batch_of_larger_ones() -> None:
    """A request of one row joins a batch before older requests of 60 rows, and a stream of single
    rows does not starve those.
    """
    made = BatchScheduler(WIDE, Clock())
    made.fleet = workers(1)
    made.capacity["", "model@1", "sample"] = (100, 60)
    clock = made._clock
    assert isinstance(clock, Clock)
    for _ in range(50):
        made.submit(request(60, kind=0))
        clock.now += 0.01
    one = request(1, kind=0)
    made.submit(one)
    batch = made.next_batch("interactive")
    assert batch is not None
    assert one in [part.request for part in batch.slices]
    finish(made, batch)
    large = 0
    for _ in range(49):
        for _ in range(200):
            made.submit(request(1, kind=0))
        batch = made.next_batch("interactive")
        assert batch is not None
        finish(made, batch)
        large += sum(part.rows == 60 for part in batch.slices)
    assert large == 49


@settings(max_examples=60, deadline=None)
@given(
    backlog=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 5), st.integers(0, 30)), max_size=150),
    rows=st.integers(1, SLICE),
)
def test_no_owner_starves(backlog: list[tuple[int, int, int]], rows: int) -> None:
    """An owner's request waits for at most one batch of each other owner in its queue, whatever
    they have submitted.
    """
    made = scheduler()
    for one, owner, kind in backlog:
        made.submit(request(one, f"owner {owner}", kind=kind))
    victim = request(rows, "victim", kind=-1)
    made.submit(victim)
    passed = 0
    while victim in made:
        batch = made.next_batch("interactive")
        assert batch is not None
        finish(made, batch)
        passed += 1
        made.submit(request(1, "owner 0", kind=passed % 7))
    assert passed <= 1 + len({owner for _, owner, _ in backlog} | {0})


def test_small_requests_that_take_long_do_not_starve_large_ones() -> None:
    """However many interactive batches have become long, the worker gets batches of large requests
    and further interactive ones.
    """
    made = scheduler()
    made.submit(request(1000, "large"))
    for number in range(6):
        made.submit(request(1, "small", kind=number))
        batch = made.next_batch("interactive")
        assert batch is not None
        made.record_progress(batch, 0.1)
    assert len(made.in_flight) == 6
    for _ in range(20):
        batch = made.next_batch("bulk")
        assert batch is not None
        finish(made, batch)
    for batch in list(made.in_flight.values()):
        finish(made, batch)
    assert [made.next_batch("bulk") is not None for _ in range(3)] == [True, True, False]


# --- limits ---


def test_limits_name_what_is_full() -> None:
    """The error names the limit that is reached: all requests, a key's requests, or the rows of a
    key's large requests.
    """
    made = scheduler(Limits(5, 2, 1000))
    made.submit(request(600, "a"))
    with pytest.raises(QueueFullError, match="600 rows") as rows:
        made.submit(request(401, "a"))
    assert (rows.value.limit, rows.value.own) == ("waiting_rows", True)
    small = request(1, "a")
    made.submit(small)
    with pytest.raises(QueueFullError, match="2 requests") as own:
        made.submit(request(1, "a"))
    assert (own.value.limit, own.value.own) == ("waiting_requests", True)
    assert made.usage("a") == {"waiting_requests": 2, "waiting_rows": 600}
    made.cancel(small)
    made.submit(request(400, "a"))
    made.submit(request(1000, "b"))
    for _ in range(2):
        made.submit(request(1))
    with pytest.raises(QueueFullError, match="5 requests") as everybody:
        made.submit(request(1, "c"))
    assert (everybody.value.limit, everybody.value.own) == ("max_waiting", False)


def test_small_requests_pass_though_large_ones_have_all_the_rows() -> None:
    """A request of up to one slice is accepted although large requests use the whole budget of
    rows.
    """
    made = scheduler(Limits(100, 100, 1000))
    made.submit(request(1000))
    with pytest.raises(QueueFullError) as full:
        made.submit(request(17))
    assert not full.value.own
    made.submit(request(16))


def test_a_key_may_have_limits_of_its_own() -> None:
    """A key's own limits override those of the settings, and 0 means no limit."""
    made = scheduler(Limits(100, 2, 1000))
    for rows in (20_000, 20_000, 1, 1):
        one = request(rows, "a")
        one.limits = {"waiting_requests": 5, "waiting_rows": 0}
        made.submit(one)
    less = request(1, "b")
    less.limits = {"waiting_requests": 1}
    made.submit(less)
    another = request(1, "b")
    another.limits = less.limits
    with pytest.raises(QueueFullError):
        made.submit(another)


def test_a_request_larger_than_the_budget_passes_alone() -> None:
    """A request with more rows than the budget is accepted if no other large request waits."""
    made = scheduler(Limits(100, 100, 1000))
    first = request(5000)
    made.submit(first)
    with pytest.raises(QueueFullError):
        made.submit(request(5000))
    made.cancel(first)
    made.submit(request(5000))


# --- holding a batch after a slow one ---


def test_after_a_long_pass_the_next_waits_for_its_clients() -> None:
    """After a slow batch of two requests, a lone request is held for 0.15 s for a second one to
    arrive.
    """
    clock = Clock()
    made = scheduler(clock=clock)
    for _ in range(2):
        made.submit(request())
    batch = made.next_batch("interactive")
    assert batch is not None
    clock.now = 1.0
    made.record_duration(batch, 1.0, multithreaded=False)
    finish(made, batch)
    made.submit(request())
    assert made.next_batch("interactive") is None
    assert made.wakeup_at == pytest.approx(1.15)
    made.submit(request())
    full = made.next_batch("interactive")
    assert full is not None
    assert rows_of(full) == 2
    finish(made, full)
    made.submit(request())
    clock.now = 1.16
    assert made.next_batch("interactive") is not None


ANY_SIZE = ModelVersion(
    "model",
    "1",
    Card.from_json(
        {"image": {"channels": 3, "height": 8, "width": 8}, "operations": {"upscale": {"any_size": True, "margin": 1}}}
    ),
    Path(),
)


def test_tiles_of_any_size_run_alone() -> None:
    """A batch has one tile if tiles may have any size, also while the workers' capacity is unknown."""
    made = scheduler(number=3)
    for _ in range(3):
        tiles = {"images": np.zeros((1, 3, 8, 8), np.uint8)}
        made.submit(PendingRequest(ANY_SIZE, "upscale", {}, 7, 1, tiles))
    sizes = [rows_of(batch) for _ in range(3) if (batch := made.next_batch("interactive")) is not None]
    assert set(sizes) == {1}


def test_tiles_larger_than_the_models_image_are_long_work() -> None:
    """A tile of up to the pixels of the model's image is interactive, a larger one is not."""
    made = scheduler()
    for side, queue in ((8, "interactive"), (9, "bulk")):
        tile = PendingRequest(ANY_SIZE, "upscale", {}, 7, 1, {"images": np.zeros((1, 3, 8, side), np.uint8)})
        made.submit(tile)
        assert tile.queue == queue
