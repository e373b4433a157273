"""The order of claims: owners take turns, so one owner's backlog does not delay others.

The table `claim_order` has the time of the last claim for each queue and owner. Of the owners with
a claimable job, the one with the oldest last claim is next, and its oldest job is claimed. The
owner is chosen by a plain query, and rows are locked afterwards, because PostgreSQL does not allow
window functions with FOR UPDATE.
"""

import time
from collections.abc import Iterable
from importlib import import_module

import sqlalchemy as sa

from core.jobs.records import AUXILIARY_KINDS, TRAINING
from core.jobs.schema import claim_order, jobs


def queue_of(kind: str) -> str:
    """Return the name of the queue for a kind of jobs. Each queue has its own order of claims."""
    if kind == TRAINING:
        return "training"
    return "auxiliary" if kind in AUXILIARY_KINDS else "inference"


def register_owners(connection: sa.Connection, queues_owners: Iterable[tuple[str, str]]) -> None:
    """Add pairs of queue and owner that are not known yet; new owners are next in the order."""
    rows = [{"queue": queue, "owner": owner, "claimed_at": 0.0} for queue, owner in queues_owners]
    if rows:
        dialect = import_module(f"sqlalchemy.dialects.{connection.dialect.name}")  # PostgreSQL's takes 0.1 s
        connection.execute(dialect.insert(claim_order).on_conflict_do_nothing(), rows)


def next_owner(connection: sa.Connection, queue: str, claimable: sa.ColumnElement[bool]) -> str | None:
    """Return the owner whose job is claimed next; None if no owner has a claimable job.

    `claimable` is the SQL condition of claimable jobs.
    """
    has_job = sa.select(jobs.c.id).where(jobs.c.owner == claim_order.c.owner, claimable).exists()
    query = sa.select(claim_order.c.owner).where(claim_order.c.queue == queue, has_job)
    owner: str | None = connection.scalar(query.order_by(claim_order.c.claimed_at).limit(1))
    if owner is None:  # a job whose owner was never registered
        owner = connection.scalar(sa.select(jobs.c.owner).where(claimable).limit(1))
        if owner is not None:
            register_owners(connection, [(queue, owner)])
    return owner


def record_claims(connection: sa.Connection, queue: str, owners: Iterable[str]) -> None:
    """Record that jobs of these owners were claimed from the queue now; their turn comes last."""
    served = (claim_order.c.queue == queue) & claim_order.c.owner.in_(sorted(set(owners)))
    connection.execute(claim_order.update().where(served).values(claimed_at=time.time()))
