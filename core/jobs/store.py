"""Store jobs, results, events and idempotency keys in one SQL database.

A job is committed here before its 202 is sent, and ends exactly once. The methods of JobStore are
in several modules: `queries` (reads), `claims` (for workers), `inputs` (fetch of images by URL),
`leases` (recovery from dead processes), and here those for requests of clients and for expiry. The
store works on SQLite (WAL, `BEGIN IMMEDIATE`) and PostgreSQL.
"""

import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.claims import JobClaims, queue_of, register_owners
from core.jobs.database import NOW, current_time
from core.jobs.inputs import JobInputs
from core.jobs.leases import JobLeases
from core.jobs.queries import overdue
from core.jobs.records import TERMINAL, TRAINING, IdempotencyKey, Insertion, Job
from core.jobs.schema import events, idempotency_keys, jobs, result_chunks, transaction
from core.webhooks.outbox import insert_delivery

_JOBS_PER_DELETE = 1000
_INSERT_TRIES = 5
_TIMES = tuple(column.name for column in jobs.c if isinstance(column.type, sa.Float) and column.name != "progress")


class JobStore(JobClaims, JobInputs, JobLeases):
    """The job store, which any number of processes may open on one database."""

    def insert(
        self, *new_jobs: Job, exclusive: bool = False, idempotency_key: IdempotencyKey | None = None
    ) -> Insertion:
        """Insert jobs, each with its first event; return the outcome for the first job.

        All jobs are inserted in one transaction, or none. `exclusive` and `idempotency_key` are for
        a single job. This job is not inserted if its owner has inserted a job under the same key
        and route, or if `exclusive` is set and an unfinished job of its kind and model exists.
        """
        for _ in range(_INSERT_TRIES - 1):
            try:
                return self._insert(new_jobs, exclusive, idempotency_key)
            except sa.exc.IntegrityError:
                if not exclusive and idempotency_key is None:
                    raise
                # another process has inserted such a job or key at the same time; the next try
                # finds it
        return self._insert(new_jobs, exclusive, idempotency_key)

    def _insert(self, new_jobs: Sequence[Job], exclusive: bool, idempotency_key: IdempotencyKey | None) -> Insertion:
        """Insert jobs as `insert` does.

        Raises IntegrityError if another transaction inserts an excluded job or the same key at the
        same time, which SQLite does not allow.
        """
        job = new_jobs[0]
        with transaction(self.engine) as connection:
            other = _other_unfinished(connection, job) if exclusive else None
            # afterwards, so that the key of that other job is seen, too
            if idempotency_key is not None and (first := _first_under(connection, job.owner, idempotency_key)):
                return first
            if other is not None:
                return Insertion(other.id, conflict=other.status)
            register_owners(connection, {(queue_of(one.kind), one.owner) for one in new_jobs})
            connection.execute(jobs.insert(), _rows(connection, new_jobs))
            first_events = [
                {"job_id": one.id, "seq": 1, "name": "status", "data": {"status": one.status}} for one in new_jobs
            ]
            transitions.insert_events(connection, first_events)
            for one in new_jobs:
                if one.status == "running" and one.webhook is not None:
                    insert_delivery(connection, one.id, one.status)
            if idempotency_key is None:
                return Insertion(job.id)
            row = {"route": idempotency_key.route, "key": idempotency_key.key, "owner": job.owner, "job_id": job.id}
            row |= {"fingerprint": idempotency_key.fingerprint}
            connection.execute(idempotency_keys.insert().values(**row, created_at=NOW))
            return Insertion(job.id, idempotency_key.fingerprint)

    def cancel(self, job_id: str) -> bool:
        """Cancel an unfinished job and invalidate the claim on it; return True.

        Returns False if there is no such job or it had already ended.
        """
        unfinished = (jobs.c.id == job_id) & jobs.c.status.not_in(TERMINAL)
        with transaction(self.engine) as connection:
            return transitions.finish(connection, unfinished, job_id, "cancelled")

    def end_overdue(self) -> list[str]:
        """End the unfinished jobs whose deadline has passed as failed (504); return their ids.

        The claims on these jobs are no longer valid.
        """
        late = overdue()
        with transaction(self.engine) as connection:
            query = sa.select(jobs.c.id, jobs.c.created_at, jobs.c.deadline_at).where(late).order_by(jobs.c.id)
            rows = connection.execute(query.with_for_update(skip_locked=True)).all()
            return [
                row.id
                for row in rows
                if transitions.finish(
                    connection,
                    late & (jobs.c.id == row.id),
                    row.id,
                    "failed",
                    _overdue_problem(row.deadline_at - row.created_at),
                    token=jobs.c.token + 1,
                )
            ]

    def pause(self, job_id: str) -> bool:
        """Pause a queued or running training and invalidate the claim on it; return True.

        Returns False if the job is no training or is neither queued nor running.
        """
        active = (jobs.c.id == job_id) & (jobs.c.kind == TRAINING) & jobs.c.status.in_(("queued", "running"))
        return self._set_status(job_id, active, "paused")

    def resume(self, job_id: str) -> bool:
        """Queue a paused training again and return True; return False if the job is not paused."""
        return self._set_status(job_id, (jobs.c.id == job_id) & (jobs.c.status == "paused"), "queued")

    def _set_status(self, job_id: str, where: sa.ColumnElement[bool], status: str) -> bool:
        change = {"token": jobs.c.token + 1, "queued_at": NOW}
        with transaction(self.engine) as connection:
            return transitions.set_status(connection, where, job_id, {"status": status}, **change)

    def delete(self, job_id: str) -> None:
        """Delete an ended job with its events, results and idempotency key.

        The caller checks that the job has ended, and removes its blobs.
        """
        with transaction(self.engine) as connection:
            # first, so that no other transaction adds rows for this job after they are deleted
            connection.execute(jobs.delete().where(jobs.c.id == job_id))
            for table in (result_chunks, events, idempotency_keys):
                connection.execute(table.delete().where(table.c.job_id == job_id))

    # --- expiry of results ---

    def delete_expired_keys(self, ttl_s: float) -> None:
        """Delete the idempotency keys that are older than `ttl_s` seconds."""
        old = idempotency_keys.c.created_at < NOW - ttl_s
        with self.engine.connect() as connection:
            if connection.scalar(sa.select(idempotency_keys.c.job_id).where(old).limit(1)) is None:
                return
        with transaction(self.engine) as connection:
            connection.execute(idempotency_keys.delete().where(old))

    def kept_results(self, limit: int, older_than_s: float | None = None) -> list[str]:
        """Return the ids of at most `limit` ended jobs whose results are kept, earliest end first.

        With `older_than_s`, only jobs that ended more than this many seconds ago are returned.
        Trainings, which are kept until they are deleted, are left out.
        """
        kept = jobs.c.status.in_(TERMINAL) & (jobs.c.kind != TRAINING) & sa.not_(jobs.c.expired)
        if older_than_s is not None:
            kept &= jobs.c.finished_at < NOW - older_than_s
        query = sa.select(jobs.c.id).where(kept).order_by(jobs.c.finished_at).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def with_blobs(self, job_ids: Sequence[str]) -> set[str]:
        """Return the ids of those jobs whose inputs or results are blobs."""
        inputs = sa.select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.items_blob.is_not(None))
        chunks = result_chunks.c.job_id.in_(job_ids) & result_chunks.c.blob_key.is_not(None)
        with self.engine.connect() as connection:
            return set(connection.scalars(inputs.union(sa.select(result_chunks.c.job_id).where(chunks))))

    def mark_expired(self, job_ids: Sequence[str]) -> None:
        """Remove the results and inputs of jobs from the database; mark the jobs as expired.

        The caller must have removed their blobs before.
        """
        with transaction(self.engine) as connection:
            connection.execute(result_chunks.delete().where(result_chunks.c.job_id.in_(job_ids)))
            change = {"expired": True, "items": None, "items_blob": None}
            connection.execute(jobs.update().where(jobs.c.id.in_(job_ids)).values(change))

    def delete_expired(self, older_than_s: float) -> None:
        """Delete at most 1000 expired jobs that ended more than `older_than_s` seconds ago.

        Their events are deleted too.
        """
        old = jobs.c.expired & (jobs.c.finished_at < NOW - older_than_s)
        with self.engine.connect() as connection:
            job_ids = list(connection.scalars(sa.select(jobs.c.id).where(old).limit(_JOBS_PER_DELETE)))
        if not job_ids:
            return
        with transaction(self.engine) as connection:
            connection.execute(events.delete().where(events.c.job_id.in_(job_ids)))
            connection.execute(jobs.delete().where(jobs.c.id.in_(job_ids)))


def _rows(connection: sa.Connection, new_jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the rows of new jobs, whose times are of this host's clock, with times of the
    database's.
    """
    rows = [dict(vars(job)) for job in new_jobs]
    if connection.dialect.name != "sqlite":
        ahead_s = current_time(connection) - time.time()
        for row in rows:
            row.update({name: row[name] + ahead_s for name in _TIMES if row[name] is not None})
    return rows


def _overdue_problem(allowed_s: float) -> dict[str, Any]:
    detail = (
        f"the job was not done within the {max(0.0, allowed_s):.3g} s that Request-Timeout left it; its work was "
        "stopped. Send it again with more time"
    )
    return {"type": "about:blank", "title": "Deadline exceeded", "status": 504, "detail": detail}


def _other_unfinished(connection: sa.Connection, job: Job) -> sa.Row[Any, Any] | None:
    """Return the id and status of an unfinished job of the same kind and model; None without one."""
    same = (jobs.c.kind == job.kind) & (jobs.c.model == job.model) & jobs.c.status.not_in(TERMINAL)
    return connection.execute(sa.select(jobs.c.id, jobs.c.status).where(same)).first()


def _first_under(connection: sa.Connection, owner: str, key: IdempotencyKey) -> Insertion | None:
    """Return the outcome of the first insert by `owner` under `key`; None if there was none.

    The key is deleted first if it has expired.
    """
    keys = idempotency_keys.c
    same = (keys.owner == owner) & (keys.route == key.route) & (keys.key == key.key)
    connection.execute(idempotency_keys.delete().where(same, keys.created_at < NOW - key.ttl_s))
    first = connection.execute(sa.select(keys.job_id, keys.fingerprint).where(same)).first()
    return Insertion(first.job_id, first.fingerprint) if first is not None else None
