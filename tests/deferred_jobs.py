"""Jobs that wait because their result cannot be stored."""

from __future__ import annotations

from core.jobs.records import Job
from core.jobs.schema import jobs, transaction
from core.jobs.store import JobStore


def waits_s(job: Job) -> float:
    """Return how many seconds after its first deferral a job can be claimed again."""
    assert job.not_before is not None
    assert job.blocked_since is not None
    return job.not_before - job.blocked_since


def claimable_from(job_store: JobStore, job_id: str, at: float) -> None:
    """Set the time, in seconds since the epoch, from which a deferred job can be claimed."""
    with transaction(job_store.engine) as connection:
        change = jobs.update().where(jobs.c.id == job_id, jobs.c.not_before.is_not(None)).values(not_before=at)
        assert connection.execute(change).rowcount == 1
