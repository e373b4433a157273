"""Change the status of a job and add the event that reports it, in the caller's transaction."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from core.jobs.database import NOW
from core.jobs.records import Claim, Event, Problem
from core.jobs.schema import events, jobs
from core.webhooks.outbox import insert_delivery

Condition = sa.ColumnElement[bool]  # an SQL condition on rows of `jobs`

NO_LEASE = {"lease_holder": None, "lease_until": None}
NOT_BLOCKED = {"not_before": None, "blocked_since": None, "blocked_reason": None, "blocked_bytes": None}


# Built once: to build a statement takes longer than SQLite takes to execute it.
_LAST_SEQ = sa.select(sa.func.max(events.c.seq)).where(events.c.job_id == jobs.c.id).scalar_subquery()
_APPEND_EVENT = events.insert().from_select(
    ["job_id", "seq", "name", "data", "at"],
    sa.select(
        jobs.c.id,
        sa.func.coalesce(_LAST_SEQ, 0) + 1,
        sa.bindparam("event_name", type_=events.c.name.type),
        sa.bindparam("event_data", type_=events.c.data.type),
        NOW,
    ).where(jobs.c.id.in_(sa.bindparam("job_ids", expanding=True))),
)


def held_by(claim: Claim) -> Condition:
    """Return the SQL condition that matches the claim's job while the claim is valid.

    Each write on behalf of a worker's claim uses this condition.
    """
    return (jobs.c.id == claim.job_id) & (jobs.c.token == claim.token) & (jobs.c.status == "running")


def append_events(connection: sa.Connection, job_id: str, new_events: Sequence[Event]) -> None:
    """Add events to a job; their numbers follow its last event's number, or start at 1.

    The caller's transaction must have changed or locked the job's row, so that no other transaction
    uses the same numbers.
    """
    last = connection.scalar(sa.select(sa.func.max(events.c.seq)).where(events.c.job_id == job_id)) or 0
    rows = [
        {"job_id": job_id, "seq": seq, "name": event.name, "data": event.data}
        for seq, event in enumerate(new_events, last + 1)
    ]
    insert_events(connection, rows)


def append_event(connection: sa.Connection, job_ids: Sequence[str], event: Event) -> None:
    """Add the same event to several jobs, with one statement; see `append_events`."""
    values = {"job_ids": job_ids, "event_name": event.name, "event_data": event.data}
    connection.execute(_APPEND_EVENT, values)


def insert_events(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows with the columns `job_id`, `seq`, `name` and `data` as events of this time."""
    if rows:
        connection.execute(events.insert().values(at=NOW), rows)


def set_status(connection: sa.Connection, where: Condition, job_id: str, data: dict[str, Any], **values: Any) -> bool:
    """Set a job's status to `data["status"]`, end its lease, and add an event with `data`.

    Also inserts a delivery for the job's webhook, if there is one. `where` is an SQL condition that
    matches at most the row of this job. `values` are further columns to set. Returns True; False,
    and changes nothing, if no row matches `where`.
    """
    update = jobs.update().where(where).values(status=data["status"], **NO_LEASE, **values)
    changed = connection.execute(update.returning(jobs.c.webhook)).first()
    if changed is None:
        return False
    append_event(connection, [job_id], Event("status", data))
    if changed.webhook is not None:
        insert_delivery(connection, job_id, data["status"])
    return True


def requeue(connection: sa.Connection, where: Condition, job_id: str, reason: str, **values: Any) -> bool:
    """Return a job to its queue if it matches `where`, and invalidate the claim on it.

    `reason` is a text for the event; `values` are further columns to set. Returns True; False, and
    changes nothing, if no row matches `where`.
    """
    data = {"status": "queued", "reason": reason}
    return set_status(connection, where, job_id, data, token=jobs.c.token + 1, **values)


def finish(
    connection: sa.Connection, where: Condition, job_id: str, status: str, problem: Problem | None = None, **values: Any
) -> bool:
    """End a job that matches `where`: set its status, its end time and `problem`, and add an event.

    Also clears the columns that only an unfinished job needs: `continuation`, `items` and
    `blocked_…`. `values` are further columns to set, which take precedence. Returns True; False,
    and changes nothing, if no row matches `where`.
    """
    data = {"status": status} | ({"problem": problem} if problem else {})
    dropped = {"continuation": None, "items": None, **NOT_BLOCKED}
    values = {"problem": problem or None, "finished_at": NOW, **dropped, **values}
    return set_status(connection, where, job_id, data, **values)
