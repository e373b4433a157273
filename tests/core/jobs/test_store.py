"""Claims, leases and fencing tokens on a real database."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.jobs.leases import LeaseReaper
from core.jobs.records import (
    API_HOLDER_PREFIX,
    SMALL_JOB_ROWS,
    IdempotencyKey,
    Insertion,
    Job,
    ResultChunk,
    SliceReport,
)
from core.jobs.store import JobStore
from tests.deferred_jobs import claimable_from, waits_s

LEASE_S = 30.0


def job(**more: Any) -> Job:
    """Return a queued job of one row."""
    return Job(**{"kind": "samples", "model": "m", "version": "1", "method": "sample", "seed": 3, **more})


def status(job_store: JobStore, job_id: str) -> str:
    """Return a job's status."""
    found = job_store.get(job_id)
    assert found is not None
    return str(found.status)


def test_a_job_is_claimed_once(job_store: JobStore) -> None:
    """Two workers never claim the same job."""
    job_store.insert(*(job() for _ in range(5)))
    first = job_store.claim("a", LEASE_S, 3)
    second = job_store.claim("b", LEASE_S, 3)
    assert (len(first), len(second)) == (3, 2)
    assert not {one.id for one in first} & {one.id for one in second}
    assert job_store.claim("c", LEASE_S, 3) == []


def test_only_alike_jobs_share_a_pass(job_store: JobStore) -> None:
    """Jobs share a claim only if model, method and options are equal, they have few rows, and none
    is isolated.
    """
    others = [
        job(model="n"),
        job(method="encode"),
        job(options={"a": 1}),
        job(rows=SMALL_JOB_ROWS + 1),
        job(isolated=True),
    ]
    job_store.insert(job(), job(), *others)
    sizes = [len(job_store.claim("a", LEASE_S, 32)) for _ in range(6)]
    assert sizes == [1, 1, 1, 1, 1, 2]


def test_a_worker_with_an_expired_lease_is_fenced_off(job_store: JobStore) -> None:
    """After its lease expired and the job was claimed again, a worker's reports are ignored."""
    row = job()
    job_store.insert(row)
    (stale,) = job_store.claim("frozen", -1.0, 1)
    assert job_store.reap(3) == [row.id]
    (fresh,) = job_store.claim("other", LEASE_S, 1)
    assert fresh.token > stale.token
    assert job_store.record_slices([SliceReport(stale.claim, 0, 1, b"late")]) == []
    assert job_store.record_slices([SliceReport(fresh.claim, 0, 1, b"right")]) == [row.id]
    assert job_store.record_slices([SliceReport(fresh.claim, 0, 1, b"again")]) == []
    assert job_store.result(row.id) == [ResultChunk(b"right", None)]
    ends = [event for event in job_store.events(row.id) if event.data.get("status") == "succeeded"]
    assert len(ends) == 1


def test_three_crashes_while_isolated_fail_a_job(job_store: JobStore) -> None:
    """A crash among other jobs only isolates a job; the third crash while isolated fails it with
    the reason.
    """
    row = job()
    job_store.insert(row, job())
    assert len(job_store.claim("a", -1.0, 2)) == 2
    job_store.reap(3)
    found = job_store.get(row.id)
    assert found is not None
    assert (found.attempts, bool(found.isolated)) == (0, True)
    for _ in range(6):  # both are isolated and alternate
        assert len(job_store.claim("a", -1.0, 2)) == 1
        job_store.reap(3)
    found = job_store.get(row.id)
    assert found is not None
    assert found.status == "failed"
    assert "3 times" in str(found.problem)


def test_losing_an_api_process_charges_no_attempt(job_store: JobStore) -> None:
    """A job held by an API process that died is queued again, uncharged and not isolated."""
    row = job(status="running", lease_holder=API_HOLDER_PREFIX + "1", lease_until=time.time() - 1, token=1)
    job_store.insert(row)
    assert job_store.reap(1) == [row.id]
    found = job_store.get(row.id)
    assert found is not None
    assert (found.status, found.attempts, bool(found.isolated)) == ("queued", 0, False)


def test_slices_take_turns(job_store: JobStore) -> None:
    """A long job is queued at the end after each slice, and its result chunks are in order."""
    long, short = job(rows=100), job(rows=50)
    job_store.insert(long)
    job_store.insert(replace(short, queued_at=time.time() + 0.001))
    order = []
    for _ in range(3):
        (held,) = job_store.claim("a", LEASE_S, 1)
        order.append(held.id)
        first = held.next_row
        job_store.record_slices([SliceReport(held.claim, first, 50, str(first).encode())])
    assert order == [long.id, short.id, long.id]
    assert [chunk.data for chunk in job_store.result(long.id)] == [b"0", b"50"]
    assert status(job_store, long.id) == status(job_store, short.id) == "succeeded"


def test_cancel_is_terminal_at_every_stage(job_store: JobStore) -> None:
    """A queued or running job that is cancelled stays cancelled, whatever its worker reports."""
    queued, running = job(), job(model="n")
    job_store.insert(queued, running)
    assert job_store.cancel(queued.id)
    (held,) = job_store.claim("a", LEASE_S, 1)
    assert held.id == running.id
    assert job_store.cancel(running.id)
    assert job_store.record_slices([SliceReport(held.claim, 0, 1, b"x")]) == []
    assert not job_store.cancel(running.id)
    assert status(job_store, queued.id) == status(job_store, running.id) == "cancelled"


def test_idempotency_keys_name_the_first_job(job_store: JobStore) -> None:
    """A second insert with an idempotency key returns the first job and adds none; an expired key
    can be used again.
    """

    def key(fingerprint: str, route: str = "r", ttl_s: float = 60) -> IdempotencyKey:
        return IdempotencyKey(route, "k", fingerprint, ttl_s)

    first, second = job(), job()
    assert job_store.insert(first, idempotency_key=key("f1")) == Insertion(first.id, "f1")
    assert job_store.insert(second, idempotency_key=key("f2")) == Insertion(first.id, "f1")
    assert job_store.get(second.id) is None
    assert job_store.insert(second, idempotency_key=key("f2", "other route")) == Insertion(second.id, "f2")
    third = job()
    assert job_store.insert(third, idempotency_key=key("f3", ttl_s=-1)) == Insertion(third.id, "f3")


def test_expiry_drops_results_then_rows(job_store: JobStore) -> None:
    """An old job first loses its result, is marked as expired, and is deleted later."""
    row = job()
    job_store.insert(row)
    (held,) = job_store.claim("a", LEASE_S, 1)
    job_store.record_slices([SliceReport(held.claim, 0, 1, b"x")])
    assert job_store.kept_results(10, older_than_s=60) == []
    assert job_store.kept_results(10, older_than_s=-1) == job_store.kept_results(10) == [row.id]
    job_store.mark_expired([row.id])
    assert job_store.kept_results(10, older_than_s=-1) == []
    job_store.delete_expired(600)
    found = job_store.get(row.id)
    assert found is not None
    assert found.expired
    assert job_store.result(row.id) == []
    job_store.delete_expired(-1)
    assert job_store.get(row.id) is None


def test_owners_take_turns(job_store: JobStore) -> None:
    """One owner's backlog delays another's job by at most one claim, whichever was accepted
    first.
    """
    backlog = [job(owner="ann", rows=SMALL_JOB_ROWS + 1) for _ in range(20)]
    job_store.insert(*backlog)
    assert job_store.claim("w", LEASE_S, 32)[0].owner == "ann"
    job_store.insert(*(job(owner=owner, rows=SMALL_JOB_ROWS + 1) for owner in ("bob", "bob", "eve")))
    order = [job_store.claim("w", LEASE_S, 32)[0] for _ in range(6)]
    assert [one.owner for one in order] == ["bob", "eve", "ann", "bob", "ann", "ann"]
    assert [one.id for one in order if one.owner == "ann"] == [one.id for one in backlog[1:4]]


def test_owners_take_turns_slice_by_slice(job_store: JobStore) -> None:
    """Other owners' jobs are claimed between the slices of a long job."""
    job_store.insert(*(job(owner="ann", rows=1000), *(job(owner=f"o{n}", rows=SMALL_JOB_ROWS + 1) for n in range(3))))
    served = []
    for _ in range(7):
        (held,) = job_store.claim("w", LEASE_S, 1)
        served.append(held.owner)
        first = held.next_row
        job_store.record_slices([SliceReport(held.claim, first, min(100, held.rows - first), b"x")])
    assert sorted(served[:4]) == ["ann", "o0", "o1", "o2"]
    assert served[4:] == ["ann"] * 3


def test_owners_take_turns_at_the_training_worker(job_store: JobStore) -> None:
    """Owners take turns in each queue separately: samples do not count against trainings."""
    job_store.insert(*(job(owner="ann", kind="training", model=f"m{n}") for n in range(3)))
    job_store.insert(job(owner="bob", kind="training"), job(owner="bob"), job(owner="bob", kind="estimate"))
    assert job_store.claim("w", LEASE_S, 1)[0].owner == "bob"
    owners = []
    for _ in range(4):
        (taken,) = job_store.claim("t", LEASE_S, kinds=("training",))
        owners.append(taken.owner)
    assert owners.index("bob") <= 1
    (estimate,) = job_store.claim("t", LEASE_S, kinds=("estimate", "import"))
    assert estimate.kind == "estimate"


def test_alike_jobs_of_several_owners_share_a_pass(job_store: JobStore) -> None:
    """Jobs of several owners that fit together are claimed together."""
    job_store.insert(job(owner="ann"), job(owner="bob"), job(owner="ann"))
    assert len(job_store.claim("w", LEASE_S, 32)) == 3


def test_a_job_that_cannot_be_stored_waits_and_is_not_charged(job_store: JobStore) -> None:
    """A deferred job is claimable again after a second, has the reason, and is not charged."""
    row = job()
    job_store.insert(row)
    problem = {"title": "Disk full", "status": 507, "detail": "no room", "type": "about:blank"}
    (held,) = job_store.claim("a", LEASE_S, 1)
    assert job_store.defer(held.claim, problem, 60.0, 1000)
    assert not job_store.defer(held.claim, problem, 60.0)  # the claim is gone
    waiting = job_store.get(row.id)
    assert waiting is not None
    assert (waiting.status, waiting.attempts, waiting.blocked_reason) == ("queued", 0, "no room")
    assert waiting.blocked_bytes == 1000
    assert waits_s(waiting) == pytest.approx(1, abs=1e-3)
    claimable_from(job_store, row.id, time.time() + 60)
    assert job_store.claim("a", LEASE_S, 1) == []
    assert job_store.count_claimable(-1) == 0
    assert job_store.reap(3) == []
    claimable_from(job_store, row.id, time.time() - 1)
    assert job_store.count_claimable(0) == 1
    (again,) = job_store.claim("a", LEASE_S, 1)
    assert job_store.record_slices([SliceReport(again.claim, 0, 1, b"x")]) == [row.id]
    done = job_store.get(row.id)
    assert done is not None
    assert (done.status, done.blocked_since, done.blocked_reason) == ("succeeded", None, None)
    events = [str(event.data) for event in job_store.events(row.id)]
    assert sum("no room" in data for data in events) == 1


def test_a_job_that_waited_for_room_too_long_says_why(job_store: JobStore) -> None:
    """A job that is deferred for longer than allowed fails with the reason of the deferral."""
    row = job()
    job_store.insert(row)
    (held,) = job_store.claim("a", LEASE_S, 1)
    problem = {"title": "Disk full", "status": 507, "detail": "no room", "type": "about:blank"}
    assert job_store.defer(held.claim, problem, 0.5)
    time.sleep(0.6)
    (held,) = job_store.claim("a", LEASE_S, 1)
    assert job_store.defer(held.claim, problem, 0.5)
    failed = job_store.get(row.id)
    assert failed is not None
    assert failed.status == "failed"
    assert (failed.problem or {})["status"] == 507


def test_a_renewed_lease_that_expires_again_gets_the_time_anew(tmp_path: Path) -> None:
    """A reaper that did not look while a lease was renewed does not take two lapses for one."""
    job_store = JobStore(f"sqlite:///{tmp_path / 'l.sqlite3'}")
    job_store.insert(job())
    job_store.claim("a", 0.1, 1)
    reaper = LeaseReaper(job_store, 1.0, 1)
    time.sleep(0.2)
    assert reaper.reap() == []
    time.sleep(0.5)
    job_store.renew_leases("a", 0.1)
    time.sleep(0.5)
    assert reaper.reap() == []
    time.sleep(0.9)
    assert len(reaper.reap()) == 1


def test_only_the_leases_of_known_jobs_are_renewed(tmp_path: Path) -> None:
    """A job expires whose holder does not know that it claimed it."""
    job_store = JobStore(f"sqlite:///{tmp_path / 'l.sqlite3'}")
    known, unknown = job(), job()
    job_store.insert(known, unknown)
    job_store.claim("a", 0.1, 1)
    job_store.claim("a", 0.1, 1)
    time.sleep(0.2)
    assert job_store.renew_leases("a", 60, [known.id]) == [known.id]
    assert job_store.reap(3) == [unknown.id]


def test_a_lost_lease_is_not_renewed(job_store: JobStore) -> None:
    """The renewal of leases returns the jobs whose leases it has renewed; not those that were
    cancelled or requeued, or that another process has claimed.
    """
    kept, cancelled, requeued, taken = rows = [job(isolated=True) for _ in range(4)]
    job_store.insert(*rows)
    claims = {one.id: one.claim for _ in rows for one in job_store.claim("a", LEASE_S, 1)}
    job_store.cancel(cancelled.id)
    job_store.requeue(claims[taken.id], "reason")
    assert [one.id for one in job_store.claim("b", LEASE_S, 1)] == [taken.id]
    job_store.requeue(claims[requeued.id], "reason")
    assert job_store.renew_leases("a", LEASE_S, list(claims)) == [kept.id]
    assert job_store.renew_leases("a", LEASE_S) == [kept.id]
    assert job_store.renew_leases("c", LEASE_S, list(claims)) == []


def test_leases_that_nobody_could_renew_do_not_expire(tmp_path: Path) -> None:
    """A lease expires only if the database was writable for long enough that the worker could have
    renewed it.
    """
    import sqlite3

    import sqlalchemy as sa

    file = tmp_path / "l.sqlite3"
    job_store = JobStore(f"sqlite:///{file}")
    row = job()
    job_store.insert(row)
    job_store.claim("a", 0.2, 1)
    time.sleep(0.3)
    reaper = LeaseReaper(job_store, 0.4, 1)
    assert reaper.reap() == []  # found for the first time, so the worker gets time to renew it
    job_store.renew_leases("a", 0.2)
    assert reaper.reap() == []
    time.sleep(0.45)
    assert reaper.reap() == []  # found for the first time after the renewal
    with job_store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=100")
    blocker = sqlite3.connect(file, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    time.sleep(0.45)
    with pytest.raises(sa.exc.OperationalError):
        reaper.reap()
    blocker.execute("ROLLBACK")
    blocker.close()
    assert reaper.reap() == []
    time.sleep(0.45)
    assert reaper.reap() == []  # writable again since too short a time
    job_store.renew_leases("a", 0.2)
    assert status(job_store, row.id) == "running"
    time.sleep(0.3)
    assert reaper.reap() == []
    time.sleep(0.45)
    assert reaper.reap() == [row.id]  # the worker could have renewed it
    job_store.engine.dispose()


def test_a_job_of_an_unregistered_owner_is_claimed(job_store: JobStore) -> None:
    """A job is claimed even if its owner has no row in the claim order, as another release may
    leave it.
    """
    import sqlalchemy as sa

    job_store.insert(job(owner="ann"))
    with job_store.engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM claim_order"))
    assert job_store.claim("w", LEASE_S, 1)[0].owner == "ann"


def test_a_large_database_is_claimed_from_quickly(tmp_path: Path) -> None:
    """A claim scans neither the backlog nor the ended jobs."""
    job_store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    now = time.time()
    job_store.insert(*(job(owner=f"o{n % 50}", queued_at=now + n) for n in range(2000)))
    job_store.insert(*(job(owner="ann", queued_at=now + n, status="succeeded", finished_at=now) for n in range(10_000)))
    job_store.insert(job(owner="ann", queued_at=now, rows=1000))
    calls = 0

    def counted(*_said: object) -> int:
        nonlocal calls
        calls += 1
        return 0

    with job_store.engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.set_progress_handler(counted, 100)  # called once in a hundred steps of SQLite's machine
    for _ in range(60):
        assert job_store.claim("w", LEASE_S, 1)
    assert calls / 60 < 100
