"""Leases on jobs: renewal by their holders, and recovery from holders that died."""

import time
from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.database import JobDatabase
from core.jobs.queries import jobs_of
from core.jobs.records import API_HOLDER_PREFIX, Claim, Event
from core.jobs.schema import jobs


def _lapsed() -> sa.ColumnElement[bool]:
    """Return the condition of jobs whose holder has not renewed its lease in time."""
    return (jobs.c.status == "running") & jobs.c.lease_holder.is_not(None) & (jobs.c.lease_until < time.time())


class JobLeases(JobDatabase):
    """The part of the job store for leases."""

    def renew_leases(self, holder: str, lease_s: float) -> None:
        """Extend all leases of a holder."""
        held = (jobs.c.lease_holder == holder) & (jobs.c.status == "running")
        with self._transaction() as connection:
            connection.execute(jobs.update().where(held).values(lease_until=time.time() + lease_s))

    def record_progress(self, holder: str, progress: Mapping[str, float]) -> None:
        """Increase the progress, 0 to 1, of jobs of a holder, by job id."""
        with self._transaction() as connection:
            for job_id, value in progress.items():
                fraction = round(value, 4)
                held = (jobs.c.id == job_id) & (jobs.c.lease_holder == holder) & (jobs.c.progress < value)
                if connection.execute(jobs.update().where(held).values(progress=fraction)).rowcount:
                    transitions.append_events(connection, job_id, [Event("progress", {"progress": fraction})])

    def release(self, holder: str | None, reason: str) -> None:
        """Return the jobs of a holder, or of all holders (None), to their queues."""
        by_holder = jobs.c.lease_holder.is_not(None) if holder is None else jobs.c.lease_holder == holder
        held = by_holder & (jobs.c.status == "running")
        with self._transaction() as connection:
            for job_id in list(connection.scalars(sa.select(jobs.c.id).where(held))):
                transitions.requeue(connection, held & (jobs.c.id == job_id), job_id, reason)

    def touch_lapsed(self) -> list[Claim]:
        """Write to the jobs with an expired lease, without a change; return the claims on them.

        An error means that holders cannot renew their leases either. Without an expired lease
        nothing is written.
        """
        lapsed = _lapsed()
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.token).where(lapsed)).all()
        if rows:
            with self._transaction() as connection:
                connection.execute(jobs.update().where(lapsed).values(lease_until=jobs.c.lease_until))
        return [Claim(job_id, token) for job_id, token in rows]

    def reap(self, max_attempts: int, job_ids: Sequence[str] | None = None) -> list[str]:
        """Return jobs with an expired lease to their queues, all or those of `job_ids`.

        Return their ids. A job that ran in a batch with others is not charged an attempt, but runs
        isolated from then on. A job whose holder died `max_attempts` times while running it alone
        fails.
        """
        lapsed = _lapsed() if job_ids is None else _lapsed() & jobs.c.id.in_(job_ids)
        with self._transaction() as connection:
            lapsed_jobs = jobs_of(connection.execute(sa.select(jobs).where(lapsed)))
            for job in lapsed_jobs:
                still_lapsed = lapsed & (jobs.c.id == job.id)
                was_run = not (job.lease_holder or "").startswith(API_HOLDER_PREFIX)
                attempts = job.attempts + (was_run and not job.co_batched)
                if attempts < max_attempts:
                    # to the end of the queue: a job that may kill its worker must not delay others,
                    # nor kill several workers in a row
                    change = {"isolated": job.isolated or was_run, "attempts": attempts, "queued_at": time.time()}
                    transitions.requeue(connection, still_lapsed, job.id, "its worker died or fell silent", **change)
                    continue
                problem = {
                    "type": "about:blank",
                    "title": "Worker lost",
                    "status": 500,
                    "detail": f"the process that ran this job died or fell silent {attempts} times",
                }
                change = {"attempts": attempts, "token": job.token + 1}
                transitions.finish(connection, still_lapsed, job.id, "failed", problem, **change)
            return [job.id for job in lapsed_jobs]
