"""Positions in the queue, the pace of jobs, and jobs past their deadline, on a real database."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.jobs.queue_positions import Pace, inference_pace, queue_positions, training_paces
from core.jobs.records import TRAINING, Event, Job
from core.jobs.store import JobStore
from tests.core.jobs.test_store import LEASE_S, job, status


def _claims_in_order(job_store: JobStore, jobs: list[Job]) -> list[str]:
    """Claim and finish inference jobs until as many as `jobs` have ended; return their ids in this
    order.
    """
    order = []
    for _ in jobs:
        (claimed,) = job_store.claim("w", LEASE_S)
        job_store.finish(claimed.claim, result=b"")
        order.append(claimed.id)
    return order


def test_positions_are_the_order_of_claims(job_store: JobStore) -> None:
    """Positions equal the order in which jobs are claimed, with owners in turn."""
    job_store.insert(job(owner="ann"), job(owner="bob"))
    _claims_in_order(job_store, [job(), job()])
    now = time.time()
    owners = ["ann", "ann", "ann", "bob", "cat", "cat", "ann"]
    jobs = [job(owner=owner, queued_at=now + number) for number, owner in enumerate(owners)]
    job_store.insert(*jobs)
    positions = queue_positions(job_store.engine, [one.id for one in jobs])
    assert sorted(positions.values()) == list(range(1, 8))
    assert _claims_in_order(job_store, jobs) == sorted(positions, key=lambda job_id: positions[job_id])


def test_each_queue_has_positions_of_its_own(job_store: JobStore) -> None:
    """Trainings and samples have separate positions; jobs that cannot be claimed have none."""
    now = time.time()
    samples, training = job(queued_at=now), job(kind=TRAINING, queued_at=now + 1)
    late, deferred = job(deadline_at=now - 1, queued_at=now - 5), job(not_before=now + 60, queued_at=now - 5)
    running = job(status="running", queued_at=now - 5)
    job_store.insert(samples, training, late, deferred, running)
    every = [one.id for one in (samples, training, late, deferred, running)]
    assert queue_positions(job_store.engine, every) == {samples.id: 1, training.id: 1}
    assert queue_positions(job_store.engine, []) == {}


def test_twenty_thousand_jobs_are_ranked_quickly(job_store: JobStore) -> None:
    """Positions among 20 000 queued jobs are computed in under 2 s."""
    now = time.time()
    jobs = [job(owner=f"owner {number % 50}", queued_at=now + number) for number in range(20_000)]
    job_store.insert(*jobs)
    started = time.perf_counter()
    assert queue_positions(job_store.engine, [jobs[-1].id])[jobs[-1].id] > 19_950  # its owner's last job
    assert time.perf_counter() - started < 2.0


def test_the_pace_is_that_since_the_oldest_waiting_job(job_store: JobStore) -> None:
    """The pace counts the jobs that ran and ended since the oldest waiting job was queued; below
    five it is unknown.
    """
    now = time.time()
    ended = [job(status="succeeded", started_at=now - 99, finished_at=now - number) for number in (1, 3, 5, 7, 9)]
    others = [job(status="succeeded", started_at=now - 99, finished_at=now - 20) for _ in range(50)]
    cancelled = [job(status="cancelled", finished_at=now - 3) for _ in range(50)]
    training = job(status="succeeded", kind=TRAINING, started_at=now - 99, finished_at=now - 3)
    job_store.insert(*ended[:4], *others, *cancelled, training)
    assert inference_pace(job_store.engine) is None  # nothing waits
    job_store.insert(job(queued_at=now - 10), job(queued_at=now - 1))
    assert inference_pace(job_store.engine) is None  # four jobs are too few
    job_store.insert(ended[4])
    pace = inference_pace(job_store.engine)
    assert pace is not None
    assert abs(pace - 0.5) < 0.05


def test_a_training_is_paced_from_its_last_start(job_store: JobStore) -> None:
    """The pace of a training ignores progress before its last start."""
    row = job(kind=TRAINING)
    job_store.insert(row)
    assert training_paces(job_store.engine) == {}
    (claimed,) = job_store.claim("w", LEASE_S, kinds=(TRAINING,))
    assert training_paces(job_store.engine) == {row.id: None}
    job_store.append_events(claimed.claim, [Event("progress", {"progress": 0.5})], 0.5)
    job_store.pause(row.id)
    job_store.resume(row.id)
    (claimed,) = job_store.claim("w", LEASE_S, kinds=(TRAINING,))
    assert training_paces(job_store.engine) == {row.id: None}
    for progress in (0.6, 0.7):
        job_store.append_events(claimed.claim, [Event("progress", {"progress": progress})], progress)
    pace = training_paces(job_store.engine)[row.id]
    assert pace is not None
    assert (pace.first_progress, pace.last_progress) == (0.6, 0.7)


def test_what_remains_follows_from_the_pace() -> None:
    """The remaining time is extrapolated from the pace; without progress it is unknown."""
    pace = Pace(100.0, 0.4, 110.0, 0.5)
    assert pace.remaining_s(110.0) == pytest.approx(50)
    assert pace.remaining_s(130.0) == pytest.approx(30)
    assert pace.remaining_s(500.0) == 0
    assert replace(pace, last_progress=0.4).remaining_s(110.0) is None


def test_jobs_fail_at_their_deadline_and_their_worker_is_fenced_off(job_store: JobStore) -> None:
    """Queued, running and paused jobs fail with 504 after their deadline, and their worker can no
    longer write; ended ones keep their status.
    """
    now = time.time()
    queued, running, ended = (job(deadline_at=now + 2) for _ in range(3))
    paused, later = job(deadline_at=now + 2, status="paused", kind=TRAINING), job(deadline_at=now + 600)
    job_store.insert(ended)
    (claimed,) = job_store.claim("w", LEASE_S)
    job_store.finish(claimed.claim, result=b"")
    job_store.insert(running)
    (claimed,) = job_store.claim("w", LEASE_S)
    job_store.insert(queued, paused, later)
    assert not job_store.has_overdue()
    time.sleep(now + 2.1 - time.time())
    assert job_store.has_overdue()
    assert [one.id for one in job_store.claim("w", LEASE_S, 5)] == [later.id]  # overdue jobs are not claimed
    assert set(job_store.end_overdue()) == {queued.id, running.id, paused.id}
    assert job_store.end_overdue() == []
    assert not job_store.finish(claimed.claim, result=b"")
    assert [status(job_store, one.id) for one in (queued, running, paused)] == ["failed"] * 3
    assert status(job_store, ended.id) == "succeeded"
    found = job_store.get(running.id)
    assert found is not None
    assert (found.problem or {})["status"] == 504
    assert job_store.events(running.id)[-1].data["problem"]["title"] == "Deadline exceeded"


def test_a_new_database_and_a_migrated_one_have_deadlines(tmp_path: Path) -> None:
    """The deadline of a job is stored."""
    job_store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    row = job(deadline_at=5.0)
    job_store.insert(row)
    found = job_store.get(row.id)
    assert found is not None
    assert found.deadline_at == 5.0
