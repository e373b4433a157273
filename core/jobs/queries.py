"""Open the database of the job store, and read jobs, results and events from it."""

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from core.jobs.database import NOW, open_engine
from core.jobs.migrate import migrate
from core.jobs.records import PUBLISHING_KINDS, UNFINISHED, Event, Job, JobState, ResultChunk
from core.jobs.schema import RUNS_INFERENCE, events, jobs, result_chunks
from core.resources import Kind

IDS_PER_QUERY = 500

_NUL = "\0"  # PostgreSQL accepts it in no text, so no row has it


def is_free() -> sa.ColumnElement[bool]:
    """Return the SQL condition of queued jobs, and running jobs that no process has claimed."""
    # the first condition follows from the second; with it the database can use the index on status
    return jobs.c.status.in_(("queued", "running")) & sa.or_(jobs.c.status == "queued", jobs.c.lease_holder.is_(None))


def waiting() -> sa.ColumnElement[bool]:
    """Return the SQL condition of jobs that can be claimed now.

    They are queued, or running while no worker holds them; their deadline has not passed, and they
    are not deferred.
    """
    return _WAITING


_WAITING = (
    is_free()
    & sa.or_(jobs.c.deadline_at.is_(None), jobs.c.deadline_at > NOW)
    & sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= NOW)
)


def overdue() -> sa.ColumnElement[bool]:
    """Return the SQL condition of unfinished jobs whose deadline has passed."""
    return jobs.c.status.in_(UNFINISHED) & (jobs.c.deadline_at <= NOW)


def jobs_of(rows: Iterable[sa.Row[Any]]) -> list[Job]:
    """Convert rows of the table `jobs` to records."""
    return [Job(**row._asdict()) for row in rows]


class JobQueries:
    """The part of the job store that opens its database, and reads jobs, results and events."""

    def __init__(self, url: str) -> None:
        """Open the database at a SQLAlchemy URL; create or migrate its tables if needed.

        Raises NewerDatabaseError if a newer release made the database.
        """
        self.engine = open_engine(url)
        migrate(self.engine)

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """Return the job with this id, or None if there is none.

        With `owner`, a job of another owner counts as missing.
        """
        if _NUL in job_id:
            return None
        query = sa.select(jobs).where(jobs.c.id == job_id)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        with self.engine.connect() as connection:
            matches = jobs_of(connection.execute(query))
        return matches[0] if matches else None

    def list_jobs(self, owner: str | None, filters: dict[str, str], after: str | None, limit: int) -> list[Job]:
        """Return at most `limit` jobs, newest first; their `items` and `continuation` are None.

        `owner` None means all owners. `filters` are values that columns must have, keyed by column
        name. `after` is a job id: only older jobs are returned; None starts at the newest.
        """
        if any(_NUL in value for value in (after or "", *filters.values())):
            return []
        columns = [column for column in jobs.c if column.key not in {"items", "continuation"}]
        query = sa.select(*columns).order_by(jobs.c.id.desc()).limit(limit)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if after:
            query = query.where(jobs.c.id < after)
        for name, value in filters.items():
            query = query.where(jobs.c[name] == value)
        with self.engine.connect() as connection:
            return jobs_of(connection.execute(query))

    def states(self, job_ids: Collection[str]) -> dict[str, JobState]:
        """Return the state of each of these jobs that exists, keyed by job id."""
        states = {}
        with self.engine.connect() as connection:
            for ids in _batches(job_ids):
                query = sa.select(jobs.c.id, jobs.c.status, jobs.c.expired).where(jobs.c.id.in_(ids))
                states.update({row.id: JobState(row.status, row.expired) for row in connection.execute(query)})
        return states

    def count_by_status(self) -> dict[str, int]:
        """Return the numbers of queued and of running jobs, keyed by status, without zeros."""
        query = sa.select(jobs.c.status, sa.func.count()).where(jobs.c.status.in_(("queued", "running")))
        with self.engine.connect() as connection:
            return {status: int(count) for status, count in connection.execute(query.group_by(jobs.c.status))}

    def has_overdue(self) -> bool:
        """Return whether there is an unfinished job whose deadline has passed."""
        with self.engine.connect() as connection:
            return connection.execute(sa.select(jobs.c.id).where(overdue()).limit(1)).first() is not None

    def count_claimable(self, older_than_s: float) -> int:
        """Count the inference jobs that can be claimed now and have been queued for some time.

        A job counts if it was queued more than `older_than_s` seconds ago.
        """
        overdue = jobs.c.queued_at < NOW - older_than_s
        query = sa.select(sa.func.count()).select_from(jobs).where(waiting(), RUNS_INFERENCE, overdue)
        with self.engine.connect() as connection:
            return int(connection.scalar(query) or 0)

    def unfinished_ids(self, *, model: str = "", version: str = "", kinds: Collection[str] = ()) -> list[str]:
        """Return the ids of at most 20 unfinished jobs of a model, a version and some kinds.

        Unfinished: queued, running or paused. An argument that is empty does not restrict the jobs.
        """
        query = sa.select(jobs.c.id).where(jobs.c.status.in_(UNFINISHED)).limit(20)
        if model:
            query = query.where(jobs.c.model == model)
        if version:
            query = query.where(jobs.c.version == version)
        if kinds:
            query = query.where(jobs.c.kind.in_(kinds))
        with self.engine.connect() as connection:
            return list(connection.scalars(query))

    def may_store(self, kind: Kind, name: str, *, except_owner: str) -> bool:
        """Return whether an unfinished job may store a dataset, or a version of a model, `name`.

        Jobs of `except_owner` are ignored.
        """
        query = sa.select(jobs.c.request).where(jobs.c.status.in_(UNFINISHED), jobs.c.owner != except_owner)
        if kind == "model":
            query = query.where(jobs.c.model == name, jobs.c.kind.in_(PUBLISHING_KINDS)).limit(1)
            with self.engine.connect() as connection:
                return connection.execute(query).first() is not None
        query = query.where(jobs.c.kind == "dataset")
        with self.engine.connect() as connection:
            return any(request["name"] == name for request in connection.scalars(query))

    def result(self, job_id: str) -> list[ResultChunk]:
        """Return the chunks of a job's result in row order; an empty list if none is stored."""
        columns = (result_chunks.c.data, result_chunks.c.blob_key)
        query = sa.select(*columns).where(result_chunks.c.job_id == job_id).order_by(result_chunks.c.first_row)
        with self.engine.connect() as connection:
            return [ResultChunk(data, blob_key) for data, blob_key in connection.execute(query)]

    def events(self, job_id: str, after_seq: int = 0) -> list[Event]:
        """Return the events of a job with a number above `after_seq`, lowest number first."""
        columns = (events.c.name, events.c.data, events.c.seq, events.c.at)
        query = sa.select(*columns).where(events.c.job_id == job_id, events.c.seq > after_seq).order_by(events.c.seq)
        with self.engine.connect() as connection:
            return [Event(*row) for row in connection.execute(query)]

    def last_event_numbers(self, job_ids: Collection[str]) -> dict[str, int]:
        """Return the number of the last event of each job, keyed by job id.

        Jobs without events are left out.
        """
        numbers: dict[str, int] = {}
        with self.engine.connect() as connection:
            for ids in _batches(job_ids):
                query = sa.select(events.c.job_id, sa.func.max(events.c.seq)).where(events.c.job_id.in_(ids))
                numbers.update((job_id, seq) for job_id, seq in connection.execute(query.group_by(events.c.job_id)))
        return numbers


def _batches(job_ids: Collection[str]) -> Iterator[list[str]]:
    """Yield the ids in lists of at most `IDS_PER_QUERY`, so that a query has few parameters."""
    ids = list(job_ids)
    for start in range(0, len(ids), IDS_PER_QUERY):
        yield ids[start : start + IDS_PER_QUERY]
