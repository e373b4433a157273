"""Which workers get the batches of a version, in simulated time: restrictions, models in memory,
device kinds and shares of owners.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from api.batching.fleet import ANY_KIND, Fleet, InFlightCounts, WorkerState
from api.batching.requests import InFlightBatch, PendingRequest
from api.batching.scheduler import BatchScheduler, Limits
from core.catalog.cards import Card
from core.catalog.registry import ModelVersion

CARD = Card.from_json({"image": {"channels": 1, "height": 8, "width": 8}, "operations": {}})
WIDE = Limits(1 << 30, 1 << 30, 1 << 40)
CATALOG = frozenset({"a@1", "b@1"})


def worker(name: str, group: str = "g", *loaded: str, **more: Any) -> WorkerState:
    """Return the state of a worker that knows two models."""
    return WorkerState(name, group, **{"device_kind": "cpu", "catalog": CATALOG, **more}, loaded=frozenset(loaded))


def names(fleet: Fleet, ref: str, kind: str = "cpu") -> tuple[list[str], list[str]]:
    """Return the names of the preferred and of the other targets of a version."""
    route = fleet.route(ref, kind)
    assert route is not None
    return [one.name for one in route.preferred], [one.name for one in route.others]


def request(model: str = "a", rows: int = 1, owner: str = "", kind: str = "cpu", **options: Any) -> PendingRequest:
    """Return a pending request for a model."""
    entry = ModelVersion(model, "1", CARD, Path())
    return PendingRequest(entry, "sample", options, 7, rows, owner=owner, device_kind=kind)


def scheduler(*workers: WorkerState, rows: int = 32) -> BatchScheduler:
    """Return an empty scheduler for these workers, with room for so many rows per batch."""
    made = BatchScheduler(WIDE, lambda: 0.0)
    made.fleet = Fleet(workers)
    for kind in (ANY_KIND, *(one.device_kind for one in workers)):
        for ref in CATALOG:
            made.capacity[kind, ref, "sample"] = (rows, rows)
    return made


def finish(made: BatchScheduler, batch: InFlightBatch) -> None:
    """Complete a batch as workers do."""
    for part in batch.slices:
        made.add_chunk(batch, part, {"row": part.first})
    made.finish_batch(batch)


def send_all(made: BatchScheduler, queue: Any = "bulk") -> list[InFlightBatch]:
    """Return all batches that are sent now."""
    sent = []
    while (batch := made.next_batch(queue)) is not None:
        sent.append(batch)
    return sent


# --- routes ---


def test_equal_workers_share_a_queue() -> None:
    """Workers of one group that have all, or none, loaded the model receive batches from one queue."""
    for loaded in ((), ("a@1",)):
        fleet = Fleet([worker("w1", "g", *loaded), worker("w2", "g", *loaded)])
        assert names(fleet, "a@1") == (["g"], [])


def test_a_worker_that_has_loaded_the_model_is_preferred() -> None:
    """A worker with the model in memory gets its batches; others follow when it is busy."""
    fleet = Fleet([worker("w1", "g", "a@1"), worker("w2", "g")])
    assert names(fleet, "a@1") == (["w1"], ["w2"])
    assert names(fleet, "b@1") == (["g"], [])


@pytest.mark.parametrize(
    ("free_bytes", "queue", "targets"), [(0, "interactive", 1), (9, "interactive", 2), (0, "bulk", 2)]
)
def test_a_model_is_loaded_twice_only_if_there_is_room_or_much_work(free_bytes: int, queue: Any, targets: int) -> None:
    """If the worker with the model is busy, small batches go to another one only if it has room for
    it.
    """
    fleet = Fleet([worker("w1", "g", "a@1"), worker("w2", "g", free_bytes=free_bytes)])
    route, counts, used = fleet.route("a@1", "cpu", 5), InFlightCounts(), set()
    assert route is not None
    while (target := counts.free_target(queue, route)) is not None:
        counts.add(queue, target)
        used.add(target.name)
    assert (len(used), counts.total(queue)) == (targets, 2 * targets)


def test_a_restricted_worker_gets_only_its_models() -> None:
    """`REVERIE_MODELS` leaves a worker out of the routes of other models."""
    fleet = Fleet([worker("w1", "only-a", models=("a*",)), worker("w2", "all")])
    assert names(fleet, "a@1") == (["only-a", "all"], [])
    assert names(fleet, "b@1") == (["all"], [])
    assert Fleet([worker("w1", "only-a", models=("a*",))]).kinds("b@1") == ()


def test_a_worker_without_the_version_gets_none_of_its_batches() -> None:
    """A version that is in the catalog of one worker goes to this worker; one that is in no catalog
    may be new and goes to all; one that a worker has rejected goes to the other.
    """
    workers = [worker("w1", catalog=frozenset({"a@1", "a@2"})), worker("w2")]
    assert names(Fleet(workers), "a@2") == (["w1"], [])
    assert names(Fleet(workers), "a@3") == (["g"], [])
    assert names(Fleet(workers, {("w1", "a@3")}), "a@3") == (["w2"], [])
    assert Fleet(workers, {("w1", "a@3"), ("w2", "a@3")}).kinds("a@3") == ()


def test_workers_of_the_release_before_read_the_common_queue() -> None:
    """A worker that announces neither group nor device kind gets batches by the queue without a
    name.
    """
    fleet = Fleet([WorkerState("old", loaded=frozenset({"a@1"})), WorkerState("older")])
    assert fleet.kinds("a@1") == (ANY_KIND,)
    assert names(fleet, "a@1", ANY_KIND) == ([""], [""])


# --- device kinds ---


def test_all_rows_of_a_request_are_computed_on_one_kind() -> None:
    """In a fleet of two kinds, all batches of a request go to workers of its kind."""
    made = scheduler(worker("c1", "cpus"), worker("c2", "cpus"), worker("g1", "gpus", device_kind="gpu"))
    for kind in ("cpu", "gpu", "cpu"):
        made.submit(request(rows=1000, kind=kind))
    sent: Counter[tuple[str, str]] = Counter()
    for _ in range(40):
        for batch in send_all(made):
            sent[batch.slices[0].request.device_kind, batch.target.name] += 1
            finish(made, batch)
    assert sent.keys() == {("cpu", "cpus"), ("gpu", "gpus")}
    assert not len(made)


def test_a_request_begins_again_on_another_kind() -> None:
    """After a restart all rows are sent again, and results of the kind before are ignored."""
    made = scheduler(worker("c1", "cpus"), worker("g1", "gpus", device_kind="gpu"))
    one = request(rows=96)
    made.submit(one)
    early, late = send_all(made)
    finish(made, early)
    assert made.restart(one, "gpu") == [late]
    assert (one.rows_left, one.restarts, one.chunks) == (96, 1, {})
    assert not made.add_chunk(late, late.slices[0], {"row": 32})
    made.finish_batch(late)
    rows = []
    while one in made:
        for batch in send_all(made):
            assert batch.target.name == "gpus"
            rows += [part.first for part in batch.slices]
            finish(made, batch)
    assert (sorted(rows), sorted(one.chunks)) == ([0, 32, 64], [0, 32, 64])
    assert not made.in_flight
    assert not made.waiting_by_kind


# --- shares ---


def test_a_large_request_is_spread_over_all_workers() -> None:
    """The batches of one request fill all workers: those with the model, then the others."""
    made = scheduler(worker("w1", "g", "a@1"), worker("w2"), worker("w3", "h"))
    made.submit(request(rows=10_000))
    assert Counter(batch.target.name for batch in send_all(made)) == {"w1": 2, "w2": 2, "h": 2}


def test_more_workers_do_not_make_batches_smaller() -> None:
    """Clients that wait for their results share two batches, however many workers there are; a
    backlog fills all workers.
    """
    made = scheduler(*(worker(f"w{number}") for number in range(2)), rows=16)
    for _ in range(2):
        made.submit(request(rows=8))
        assert len(send_all(made, "interactive")) == 1
    made.submit(request(rows=7))
    assert send_all(made, "interactive") == []
    made.submit(request(rows=1))
    assert [len(batch.slices) for batch in send_all(made, "interactive")] == [2]
    for _ in range(9):
        made.submit(request(rows=16))
    assert len(send_all(made, "interactive")) == 1
    for batch in list(made.in_flight.values()):
        made.record_progress(batch, 0.5)  # batches that take long do not count
    assert len(send_all(made, "interactive")) == 4


def test_owners_take_turns_whatever_the_workers() -> None:
    """With several workers, an owner with one large request gets as many batches as one with
    twenty.
    """
    made = scheduler(*(worker(f"w{number}") for number in range(3)))
    for _ in range(20):
        made.submit(request(rows=10_000, owner="busy"))
    made.submit(request(rows=10_000, owner="other"))
    served: Counter[str] = Counter()
    for _ in range(10):
        for batch in send_all(made):
            served[batch.slices[0].request.owner] += 1
            finish(made, batch)
    assert abs(served["busy"] - served["other"]) <= 1


def test_a_busy_model_holds_no_other_back() -> None:
    """When the workers of one model are busy, batches of another are sent to its own workers."""
    made = scheduler(worker("w1", "only-a", models=("a",)), worker("w2", "only-b", models=("b",)))
    for _ in range(50):
        made.submit(request("a", rows=10_000))
    made.submit(request("b", rows=10_000, owner="late"))
    sent = Counter((batch.key[0], batch.target.name) for batch in send_all(made))
    assert sent == {("a", "only-a"): 2, ("b", "only-b"): 2}


def test_without_workers_nothing_is_sent() -> None:
    """Requests wait while no worker is known that can run them, and are sent when one comes."""
    made = scheduler(worker("w1", "only-a", models=("a",)))
    made.submit(request("b"))
    assert made.next_batch("interactive") is None
    made.fleet = Fleet([worker("w2")])
    batch = made.next_batch("interactive")
    assert batch is not None
    assert batch.target.name == "g"
