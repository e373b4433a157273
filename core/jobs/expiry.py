"""Expiry of results: first the result of an ended job is removed, and much later its row."""

import time
from collections.abc import Sequence

import sqlalchemy as sa

from core.jobs.database import JobDatabase
from core.jobs.records import TERMINAL, TRAINING
from core.jobs.schema import events, jobs, result_chunks

_JOBS_PER_DELETE = 1000


class ResultExpiry(JobDatabase):
    """The part of the job store that removes old results."""

    def kept_results(self, limit: int, older_than_s: float | None = None) -> list[str]:
        """Return the ids of ended jobs whose results are kept, the first that ended first.

        With `older_than_s`, only jobs that ended longer ago. A training is kept until it is
        deleted.
        """
        kept = jobs.c.status.in_(TERMINAL) & (jobs.c.kind != TRAINING) & sa.not_(jobs.c.expired)
        if older_than_s is not None:
            kept &= jobs.c.finished_at < time.time() - older_than_s
        query = sa.select(jobs.c.id).where(kept).order_by(jobs.c.finished_at).limit(limit)
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def mark_expired(self, job_ids: Sequence[str]) -> None:
        """Remove the results of jobs from the database; their blobs must be removed already."""
        with self._transaction() as connection:
            connection.execute(result_chunks.delete().where(result_chunks.c.job_id.in_(job_ids)))
            change = {"expired": True, "items": None, "items_blob": None}
            connection.execute(jobs.update().where(jobs.c.id.in_(job_ids)).values(change))

    def delete_expired(self, older_than_s: float) -> None:
        """Remove the rows of expired jobs that ended longer ago, at most 1000 at a time."""
        old = jobs.c.expired & (jobs.c.finished_at < time.time() - older_than_s)
        with self.engine.connect() as connection:
            job_ids = list(connection.scalars(sa.select(jobs.c.id).where(old).limit(_JOBS_PER_DELETE)))
        if not job_ids:
            return
        with self._transaction() as connection:
            connection.execute(events.delete().where(events.c.job_id.in_(job_ids)))
            connection.execute(jobs.delete().where(jobs.c.id.in_(job_ids)))
