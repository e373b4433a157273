"""Renew the leases of jobs, and requeue or fail jobs whose leases have expired."""

import time
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.database import NOW
from core.jobs.queries import JobQueries, jobs_of
from core.jobs.records import API_HOLDER_PREFIX, Claim, Event
from core.jobs.schema import jobs, transaction
from core.settings import HEARTBEAT_S


def _lapsed() -> sa.ColumnElement[bool]:
    """Return the SQL condition that matches running jobs whose lease has expired."""
    return (jobs.c.status == "running") & jobs.c.lease_holder.is_not(None) & (jobs.c.lease_until < NOW)


def _lock(connection: sa.Connection, where: transitions.Condition, *, skip_locked: bool = False) -> list[str]:
    """Lock the jobs that match `where`, in the order of their ids; return their ids.

    With `skip_locked`, jobs that another transaction has locked are left out.
    """
    query = sa.select(jobs.c.id).where(where).order_by(jobs.c.id)
    return list(connection.scalars(query.with_for_update(skip_locked=skip_locked)))


class JobLeases(JobQueries):
    """The part of the job store that renews leases, and ends or requeues jobs with expired ones."""

    def renew_leases(self, holder: str, lease_s: float, job_ids: Collection[str] | None = None) -> list[str]:
        """Extend the leases that `holder` owns; return the ids of their jobs.

        They expire `lease_s` seconds from now. With `job_ids`, only the leases of these jobs are
        extended. So a job expires whose claim the holder does not know about, because the
        connection broke before the database's reply. A job of `job_ids` whose id is not returned
        has ended, or was requeued: `holder` does not own its lease any more.
        """
        held = (jobs.c.lease_holder == holder) & (jobs.c.status == "running")
        if job_ids is not None:
            held &= jobs.c.id.in_(job_ids)
        with transaction(self.engine) as connection:
            if locked := _lock(connection, held):
                connection.execute(jobs.update().where(jobs.c.id.in_(locked)).values(lease_until=NOW + lease_s))
            return locked

    def record_progress(self, holder: str, progress: Mapping[str, float]) -> None:
        """Increase the progress of jobs whose leases `holder` owns, and add an event to each.

        `progress` has fractions from 0 to 1, keyed by job id. A fraction that is not above the
        stored one is ignored.
        """
        with transaction(self.engine) as connection:
            for job_id, value in sorted(progress.items()):
                fraction = round(value, 4)
                held = (jobs.c.id == job_id) & (jobs.c.lease_holder == holder) & (jobs.c.progress < value)
                if connection.execute(jobs.update().where(held).values(progress=fraction)).rowcount:
                    transitions.append_event(connection, [job_id], Event("progress", {"progress": fraction}))

    def record_kind(self, holder: str, job_id: str, device_kind: str) -> None:
        """Record that a job whose lease `holder` owns has restarted on another device kind.

        `device_kind` names device, processor, torch version and threads. If it differs from the
        stored one, it is stored, the progress is set to 0, and an event says so.
        """
        held = (jobs.c.id == job_id) & (jobs.c.lease_holder == holder) & (jobs.c.device_kind != device_kind)
        reason = f"its device kind has no worker any more; it started again at row 0 on {device_kind}"
        with transaction(self.engine) as connection:
            change = {"device_kind": device_kind, "progress": 0.0}
            if connection.execute(jobs.update().where(held).values(change)).rowcount:
                transitions.append_event(connection, [job_id], Event("status", {"status": "running", "reason": reason}))

    def release(self, holder: str | None, reason: str) -> None:
        """Return the running jobs whose leases `holder` owns (None: all owners) to their queues.

        `reason` is a text for the event of each job. This does not count as a failed attempt.
        """
        by_holder = jobs.c.lease_holder.is_not(None) if holder is None else jobs.c.lease_holder == holder
        held = by_holder & (jobs.c.status == "running")
        with transaction(self.engine) as connection:
            for job_id in _lock(connection, held):
                transitions.requeue(connection, held & (jobs.c.id == job_id), job_id, reason)

    def touch_lapsed(self) -> list[tuple[Claim, float]]:
        """Test that the database is writable; return the claims on jobs whose lease has expired,
        each with the time (Unix time in seconds) at which it did.

        The test writes the leases of these jobs unchanged. If it raises an error, live processes
        cannot renew their leases either. If no lease has expired, nothing is written.
        """
        lapsed = _lapsed()
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(jobs.c.id, jobs.c.token, jobs.c.lease_until).where(lapsed)).all()
        if rows:
            with transaction(self.engine) as connection:
                if job_ids := _lock(connection, lapsed, skip_locked=True):
                    same = jobs.update().where(jobs.c.id.in_(job_ids)).values(lease_until=jobs.c.lease_until)
                    connection.execute(same)
        return [(Claim(job_id, token), lease_until) for job_id, token, lease_until in rows]

    def reap(self, max_attempts: int, job_ids: Sequence[str] | None = None) -> list[str]:
        """Requeue or fail the jobs with an expired lease; return the ids of these jobs.

        With `job_ids`, only these jobs are considered. If a worker ran the job alone, this is a
        failed attempt; the job fails after `max_attempts` failed attempts. If the job ran in a
        batch with other jobs, this is no failed attempt. In both cases the job runs alone
        (isolated) from then on. A job whose lease an API process owned is requeued, without a
        failed attempt and not isolated.
        """
        lapsed = _lapsed() if job_ids is None else _lapsed() & jobs.c.id.in_(job_ids)
        with transaction(self.engine) as connection:
            query = sa.select(jobs).where(lapsed).order_by(jobs.c.id).with_for_update(skip_locked=True)
            lapsed_jobs = jobs_of(connection.execute(query))
            for job in lapsed_jobs:
                still_lapsed = lapsed & transitions.held_by(job.claim)
                was_run = not (job.lease_holder or "").startswith(API_HOLDER_PREFIX)
                attempts = job.attempts + (was_run and not job.co_batched)
                if attempts < max_attempts:
                    # to the end of the queue: a job that may kill its worker must not delay others,
                    # nor kill several workers in a row
                    change = {"isolated": job.isolated or was_run, "attempts": attempts, "queued_at": NOW}
                    transitions.requeue(
                        connection, still_lapsed, job.id, "its worker died or sent no heartbeat", **change
                    )
                    continue
                detail = f"the process that ran this job died or sent no heartbeat {attempts} times"
                problem = {"type": "about:blank", "title": "Worker lost", "status": 500, "detail": detail}
                change = {"attempts": attempts, "token": job.token + 1}
                transitions.finish(connection, still_lapsed, job.id, "failed", problem, **change)
            return [job.id for job in lapsed_jobs]


class LeaseReaper:
    """Requeues or fails the jobs of dead workers and API processes whose leases have expired.

    While the database cannot be written (full disk, locked, unreachable), live processes cannot
    renew their leases either. So the reaper first tests that it can write. If the test succeeds,
    the reaper gives the owner of an expired lease half of `lease_s`, and at least two heartbeats,
    to renew it, because the disk may have been full for the owner alone; if not, the reaper does
    nothing for `lease_s` seconds. So a full disk never counts as a failed attempt of a job.
    """

    def __init__(self, job_store: JobLeases, lease_s: float, max_attempts: int) -> None:
        self._job_store = job_store
        self._lease_s = lease_s
        self._grace_s = max(lease_s / 2, min(lease_s, 2 * HEARTBEAT_S))
        self._max_attempts = max_attempts
        self._not_before = 0.0
        self._first_seen: dict[tuple[Claim, float], float] = {}

    def reap(self) -> list[str]:
        """Requeue or fail the jobs of dead processes; return the ids of these jobs.

        Raises sqlalchemy.exc.DBAPIError if the database cannot be used; calls in the next `lease_s`
        seconds then do nothing and return an empty list.
        """
        now = time.monotonic()
        if now < self._not_before:
            return []
        try:
            # a lease that was renewed since and has expired again gets the time anew
            self._first_seen = {lapsed: self._first_seen.get(lapsed, now) for lapsed in self._job_store.touch_lapsed()}
            due = [claim.job_id for (claim, _), seen in self._first_seen.items() if now - seen >= self._grace_s]
            return self._job_store.reap(self._max_attempts, due) if due else []
        except sa.exc.DBAPIError:
            self._not_before = now + self._lease_s
            self._first_seen = {}
            raise
