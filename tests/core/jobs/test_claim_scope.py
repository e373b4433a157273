"""Which jobs a worker claims: those of its models and its device kind."""

import time
from typing import Any

from core.jobs.records import ClaimScope, Job, SliceReport
from core.jobs.store import JobStore

LEASE_S = 30.0
CPU, GPU = ClaimScope("cpu"), ClaimScope("gpu")


def job(**more: Any) -> Job:
    """Return a queued job of many rows."""
    return Job(**{"kind": "samples", "model": "m", "version": "1", "method": "sample", "rows": 90, **more})


def claimed(job_store: JobStore, scope: ClaimScope) -> list[Job]:
    """Claim the next job in a scope."""
    return job_store.claim("w", LEASE_S, 1, scope=scope)


def test_a_job_stays_on_the_kind_of_its_first_claim(job_store: JobStore) -> None:
    """A job without a device kind gets that of its first worker, and no worker of another kind
    claims its later slices.
    """
    job_store.insert(job())
    (first,) = claimed(job_store, CPU)
    assert first.device_kind == "cpu"
    job_store.record_slices([SliceReport(first.claim, 0, 30, b"x")])
    assert claimed(job_store, GPU) == []
    (second,) = claimed(job_store, CPU)
    assert (second.id, second.next_row) == (first.id, 30)


def test_a_job_returned_for_any_kind_leaves_its_kind(job_store: JobStore) -> None:
    """A claimed job that is returned for any device kind is claimed by a worker of another kind; a
    claim that is no longer valid changes nothing.
    """
    job_store.insert(job())
    (first,) = claimed(job_store, CPU)
    job_store.requeue(first.claim, "for a worker of this kind")
    assert claimed(job_store, GPU) == []
    job_store.requeue(first.claim, "late", any_device_kind=True)
    assert claimed(job_store, GPU) == []
    (second,) = claimed(job_store, CPU)
    job_store.requeue(second.claim, "for any worker", any_device_kind=True)
    (third,) = claimed(job_store, GPU)
    assert (third.id, third.device_kind) == (first.id, "gpu")


def test_a_worker_claims_its_models_only(job_store: JobStore) -> None:
    """Jobs of other models, of versions that the worker lacks, and of other device kinds stay
    queued.
    """
    chosen = job(model="b")
    job_store.insert(job(model="a"), job(model="b", version="2"), job(model="b", device_kind="gpu"), chosen)
    scope = ClaimScope("cpu", models=("b", "c"), lacking=(("b", "2"),))
    assert [one.id for one in claimed(job_store, scope)] == [chosen.id]
    assert claimed(job_store, scope) == []


def test_a_full_worker_leaves_other_models_to_others_for_a_while(job_store: JobStore) -> None:
    """A worker without room claims jobs of its loaded versions at once, others after a second."""
    new, old = job(model="a"), job(model="b")
    job_store.insert(new)
    full = ClaimScope("cpu", loaded=(("c", "1"),))
    assert claimed(job_store, full) == []
    waited = job(model="b", queued_at=old.queued_at - 5)
    job_store.insert(waited)
    assert [one.id for one in claimed(job_store, full)] == [waited.id]
    assert [one.id for one in claimed(job_store, ClaimScope("cpu", loaded=(("a", "1"),)))] == [new.id]


def test_a_job_begins_again_on_another_kind(job_store: JobStore) -> None:
    """Jobs that leave a kind have no results any more and begin at row 0; the event has the reason.
    Claimed jobs and those of other versions stay.
    """
    left, other = job(device_kind="cpu"), job(version="2", device_kind="cpu", queued_at=time.time() + 60)
    job_store.insert(left)
    (first,) = claimed(job_store, CPU)
    job_store.record_slices([SliceReport(first.claim, 0, 30, blob_key="jobs/x/1-0")])
    job_store.insert(other, job(device_kind="cpu", queued_at=0.0))
    (held,) = claimed(job_store, CPU)
    assert sorted(job_store.waiting_kinds(-100)) == [("m", "1", "cpu"), ("m", "2", "cpu")]
    assert job_store.restart_on_any_device_kind("m", "1", "cpu", "the kind is lost") == ["jobs/x/1-0"]
    moved = job_store.get(left.id)
    assert moved is not None
    assert (moved.next_row, moved.device_kind, moved.status, moved.progress) == (0, None, "queued", 0.0)
    assert job_store.result(left.id) == []
    assert job_store.events(left.id)[-1].data == {"status": "queued", "reason": "the kind is lost"}
    assert job_store.is_held(held.claim)
    assert [one.id for one in claimed(job_store, GPU)] == [left.id]
    assert job_store.waiting_kinds(-100) == [("m", "2", "cpu")]


def test_waiting_jobs_of_a_version_end(job_store: JobStore) -> None:
    """Jobs of a version that does not exist fail with the problem; claimed ones and others stay."""
    gone, other, held = job(), job(version="2"), job(queued_at=0.0)
    job_store.insert(held)
    (claim,) = claimed(job_store, CPU)
    job_store.insert(gone, other)
    problem = {"title": "Model unavailable", "status": 503, "detail": "gone"}
    assert job_store.fail_waiting("m", "1", problem) == [gone.id]
    ended = job_store.get(gone.id)
    assert ended is not None
    assert (ended.status, ended.problem) == ("failed", problem)
    assert job_store.is_held(claim.claim)
    assert [one.id for one in claimed(job_store, CPU)] == [other.id]


def test_an_adopted_job_that_begins_again_says_so(job_store: JobStore) -> None:
    """The new device kind of a job that an API process runs is stored once, with one event."""
    running = job(device_kind="cpu", status="running", lease_holder="api-1", lease_until=time.time() + 9, progress=0.5)
    job_store.insert(running)
    for holder in ("api-2", "api-1", "api-1"):
        job_store.record_kind(holder, running.id, "gpu")
    stored = job_store.get(running.id)
    assert stored is not None
    assert (stored.device_kind, stored.progress) == ("gpu", 0.0)
    events = job_store.events(running.id)
    assert ["started again at row 0 on gpu" in str(one.data) for one in events] == [False, True]
