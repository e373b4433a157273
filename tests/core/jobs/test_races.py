"""What several processes do at the same time, on SQLite and on PostgreSQL: jobs end once, and no
call fails.
"""

# ruff: noqa: B023 - functions that use variables of a loop have returned before its next round

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from core.jobs.records import TERMINAL, TRAINING, IdempotencyKey, Insertion, Job, SliceReport
from core.jobs.schema import idempotency_keys
from core.jobs.store import JobStore
from core.resources import ResourceStore
from tests.core.jobs.test_store import LEASE_S, job

T = TypeVar("T")

ROUNDS = [20, pytest.param(200, marks=pytest.mark.slow)]
PROCESSES = 4

pytestmark = pytest.mark.parametrize("rounds", ROUNDS)


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    """Let threads interrupt each other everywhere."""
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval_s)


@pytest.fixture
def stores(database: str) -> Iterator[list[JobStore]]:
    """One job store, opened as several processes open it."""
    opened = [JobStore(database) for _ in range(PROCESSES)]
    yield opened
    for store in opened:
        store.engine.dispose()


@contextmanager
def racing() -> Iterator[Callable[..., list[Any]]]:
    """Yield a function that calls its arguments at the same time, and returns what they return."""
    with ThreadPoolExecutor(2 * PROCESSES) as pool:

        def race(*calls: Callable[[], T]) -> list[T]:
            barrier = threading.Barrier(len(calls))

            def run(call: Callable[[], T]) -> T:
                barrier.wait()
                return call()

            return [future.result() for future in [pool.submit(run, call) for call in calls]]

        yield race


def statuses(store: JobStore, job_id: str) -> list[str]:
    """The statuses that a job has had, by its events, whose numbers have no gap."""
    events = store.events(job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return [event.data["status"] for event in events if event.name == "status"]


def get(store: JobStore, job_id: str) -> Job:
    """A job that exists."""
    found = store.get(job_id)
    assert found is not None
    return found


def test_a_job_is_claimed_by_one_worker(stores: list[JobStore], rounds: int) -> None:
    """Workers that claim at the same time get all jobs, each of them once, and wait for nobody."""
    with racing() as race:
        for number in range(rounds):
            rows = [job(owner=f"o{n % 3}", model=f"m{n % 2}") for n in range(12)]
            stores[0].insert(*rows)

            def work(store: JobStore, name: str) -> list[Job]:
                claimed: list[Job] = []
                while found := store.claim(name, LEASE_S, 3):
                    claimed += found
                    store.record_slices([SliceReport(one.claim, 0, 1, b"x") for one in found])
                return claimed

            shares = race(*(lambda s=store, n=n: work(s, f"{number}-{n}") for n, store in enumerate(stores)))
            claimed = [one for share in shares for one in share]
            assert Counter(one.id for one in claimed) == Counter(row.id for row in rows)
            assert {one.token for one in claimed} == {1}
        ended = stores[0].kept_results(12 * rounds)
    assert len(ended) == 12 * rounds
    assert all(statuses(stores[0], job_id) == ["queued", "running", "succeeded"] for job_id in ended[:48])


def test_a_worker_finds_the_job_that_others_leave(stores: list[JobStore], rounds: int) -> None:
    """As many jobs as workers: each worker gets one, and none goes away empty-handed while a job
    waits.
    """
    with racing() as race:
        for number in range(rounds):
            kind, owners = (TRAINING, ["ann"] * PROCESSES) if number % 2 else ("samples", ["ann", "ann", "bob", "bob"])
            rows = [job(owner=owner, kind=kind, model=f"{number}-{n}") for n, owner in enumerate(owners)]
            stores[0].insert(*rows)
            kinds = (kind,) if kind == TRAINING else ()
            found = race(*(lambda s=store: s.claim("w", LEASE_S, 1, kinds=kinds) for store in stores))
            assert sorted(one.id for claimed in found for one in claimed) == sorted(row.id for row in rows)


def test_owners_take_turns_among_workers(stores: list[JobStore], rounds: int) -> None:
    """Claims at the same time serve different owners, as long as there are some."""
    rows = [job(owner=f"o{n}", model="m", rows=100) for n in range(PROCESSES) for _ in range(rounds)]
    stores[0].insert(*rows)
    served: Counter[str] = Counter()
    with racing() as race:
        for _ in range(rounds):
            for claimed in race(*(lambda s=store: s.claim("w", LEASE_S, 1) for store in stores)):
                served[claimed[0].owner] += 1
    assert max(served.values()) - min(served.values()) <= 2


def test_a_job_ends_once(stores: list[JobStore], rounds: int) -> None:
    """A worker ends a job whose lease has expired while it is cancelled, returned to its queue and
    claimed again.
    """
    first, second, third, fourth = stores
    with racing() as race:
        for number in range(rounds):
            row = job(kind=TRAINING if number % 2 else "samples", model=f"m{number}")
            kinds = (TRAINING,) if number % 2 else ()
            first.insert(row)
            (held,) = first.claim("silent", -1.0, 1, kinds=kinds)
            finished, cancelled, reaped, claimed = race(
                lambda: (
                    first.finish(held.claim, result=b"late")
                    if number % 4
                    else bool(first.record_slices([SliceReport(held.claim, 0, 1, b"late")]))
                ),
                lambda: number % 3 == 0 and second.cancel(row.id),
                lambda: third.reap(3),
                lambda: fourth.claim("other", LEASE_S, 1, kinds=kinds),
            )
            assert not (finished and cancelled)
            assert not (finished and reaped)
            ended = get(first, row.id)
            if finished or cancelled:
                assert ended.status == ("succeeded" if finished else "cancelled")
            else:
                assert reaped == [row.id]
                (again,) = claimed or first.claim("other", LEASE_S, 1, kinds=kinds)
                assert again.token > held.token
                assert not first.finish(held.claim, result=b"late")
                assert first.finish(again.claim, result=b"right")
            result = [chunk.data for chunk in first.result(row.id)]
            assert result == ([] if cancelled else [b"late" if finished else b"right"])
            assert sum(status in TERMINAL for status in statuses(first, row.id)) == 1
            assert first.reap(3) == []
            assert not first.claim("w", LEASE_S, 1, kinds=kinds)


def test_a_pause_and_a_resumption_do_not_bring_back_a_job(stores: list[JobStore], rounds: int) -> None:
    """A training is paused, resumed and cancelled while its worker reports: it stays cancelled."""
    first, second, third, fourth = stores
    with racing() as race:
        for number in range(rounds):
            row = job(kind=TRAINING, model=f"m{number}")
            first.insert(row)
            (held,) = first.claim("w", LEASE_S, kinds=(TRAINING,))
            race(
                lambda: first.append_events(held.claim, [], 0.5),
                lambda: second.pause(row.id) and second.resume(row.id),
                lambda: third.cancel(row.id),
                lambda: fourth.claim("other", LEASE_S, kinds=(TRAINING,)),
            )
            assert get(first, row.id).status == "cancelled"
            assert statuses(first, row.id)[-1] == "cancelled"
            assert not first.finish(held.claim, result=b"late")


def test_an_idempotency_key_makes_one_job(stores: list[JobStore], rounds: int) -> None:
    """Requests with one key on several API processes get the same job, also if the key has just
    expired.
    """
    with racing() as race:
        for number in range(rounds):
            owner, kind, exclusive = f"o{number % 2}", TRAINING if number % 2 else "samples", bool(number % 2)
            key = IdempotencyKey("POST /v1/samples", f"key {number}", "f", LEASE_S)
            if number % 3 == 0:
                expired = job(owner=owner, model=f"old{number}")
                stores[0].insert(expired, idempotency_key=key)
                with stores[0].engine.begin() as connection:
                    long_ago = time.time() - 2 * LEASE_S
                    connection.execute(idempotency_keys.update().values(created_at=long_ago))
            rows = [job(owner=owner, kind=kind, model=f"m{number}") for _ in stores]

            def insert(store: JobStore, row: Job) -> Insertion:
                return store.insert(row, exclusive=exclusive, idempotency_key=key)

            outcomes = race(*(lambda s=s, row=row: insert(s, row) for s, row in zip(stores, rows, strict=True)))
            assert len(set(outcomes)) == 1
            assert outcomes[0].fingerprint == "f"
            (found,) = [one for one in (stores[0].get(row.id) for row in rows) if one is not None]
            assert found.id == outcomes[0].job_id
            assert statuses(stores[0], found.id) == ["queued"]


def test_a_name_has_one_unfinished_training(stores: list[JobStore], rounds: int) -> None:
    """Trainings of one name on several API processes: one is inserted, and the others conflict with
    it.
    """
    with racing() as race:
        for number in range(rounds):
            kind = "publication" if number % 3 == 2 else TRAINING
            rows = [job(owner=f"o{n}", kind=kind, model=f"m{number}") for n in range(PROCESSES)]
            outcomes: list[Insertion] = race(
                *(lambda s=s, r=row: s.insert(r, exclusive=True) for s, row in zip(stores, rows, strict=True))
            )
            (first,) = {outcome.job_id for outcome in outcomes}
            assert Counter(outcome.conflict for outcome in outcomes) == {"": 1, "queued": PROCESSES - 1}
            assert [row.id for row in rows if stores[0].get(row.id)] == [first]
            assert stores[0].cancel(first)
            assert stores[0].insert(rows[0] if rows[0].id != first else rows[1], exclusive=True).conflict == ""


def test_a_name_has_one_owner(stores: list[JobStore], rounds: int) -> None:
    """Owners that claim a new name at the same time: one gets it, and the others are told whose it
    is.
    """
    resources = [ResourceStore(store.engine) for store in stores]
    with racing() as race:
        for number in range(rounds):
            name = f"m{number}"
            claims = [(one, f"o{n % 3}") for n, one in enumerate(resources)]
            owners = {
                ownership.owner
                for ownership in race(
                    *(lambda one=one, o=owner: one.claim("model", name, o, shared=None) for one, owner in claims)
                )
            }
            assert len(owners) == 1
            assert resources[0].all()["model", name].owner in owners
        assert resources[0].change_count() == rounds


def test_transactions_do_not_wait_for_each_other_forever(stores: list[JobStore], rounds: int) -> None:
    """What changes several jobs at once locks them in one order: no deadlock, whatever runs at the
    same time.
    """
    first, second, third, fourth = stores
    with racing() as race:
        for number in range(rounds):
            first.insert(*(job(owner=f"o{n % 5}") for n in range(20)))
            held = first.claim("w", LEASE_S if number % 2 else -1.0, 20, batch_rows=lambda _: 20)
            assert len(held) == 20
            reports = [SliceReport(one.claim, 0, 1, b"x") for one in reversed(held)]
            race(
                lambda: first.record_slices(reports),
                lambda: second.renew_leases("w", -1.0 if number % 3 else LEASE_S),
                lambda: third.record_progress("w", {one.id: 0.5 for one in held}),
                lambda: fourth.reap(3) if number % 2 else fourth.release("w", "it stopped"),
                lambda: second.insert(*(job(owner=f"{number}-{n}") for n in range(9))),
                lambda: third.insert(*(job(owner=f"{number}-{n}") for n in reversed(range(9)))),
                lambda: fourth.claim("x", LEASE_S, 32),
                first.touch_lapsed,
            )
            for one in held:
                first.cancel(one.id)
            while first.claim("x", LEASE_S, 32):
                pass
