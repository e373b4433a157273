"""Whose job is claimed next: owners take turns, so that one owner's backlog does not delay another's jobs.

For each queue and owner the table keeps when a job of theirs was last claimed. The owner served longest ago who has a
claimable job is next; among one owner's jobs the oldest goes first. The owner is chosen by a plain query, and rows are
locked only afterwards, which PostgreSQL requires (no window function goes together with FOR UPDATE).
"""

import time
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

INFERENCE, TRAINING, AUXILIARY = "inference", "training", "auxiliary"
"""Queues that owners take turns in, each by itself: a day of training is no reason to wait for a sample."""


class ClaimOrder:
    """The table of turns, and the owner whose turn it is."""

    def __init__(self, metadata: sa.MetaData) -> None:
        """Declare the table; it is created with the others."""
        self.table = sa.Table(
            "owner_turns",
            metadata,
            sa.Column("queue", sa.String(20), primary_key=True),
            sa.Column("owner", sa.String(80), primary_key=True),
            sa.Column("claimed_at", sa.Float, nullable=False),
        )

    def register(self, connection: Connection, queue: str, owners: Iterable[str]) -> None:
        """Give owners a turn who have none yet; they are the next to be served."""
        rows = [{"queue": queue, "owner": owner, "claimed_at": 0.0} for owner in owners]
        if rows:
            insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
            connection.execute(insert(self.table).on_conflict_do_nothing(), rows)

    def next_owner(
        self, connection: Connection, queue: str, jobs: sa.Table, claimable: sa.ColumnElement[bool]
    ) -> str | None:
        """Return the owner served longest ago of those with a claimable job; None where nobody has one."""
        waiting = sa.select(jobs.c.id).where(jobs.c.owner == self.table.c.owner, claimable).exists()
        query = sa.select(self.table.c.owner).where(self.table.c.queue == queue, waiting)
        found: str | None = connection.scalar(query.order_by(self.table.c.claimed_at).limit(1))
        if found is None:  # a row that a process of an earlier release inserted: its owner was never registered
            found = connection.scalar(sa.select(jobs.c.owner).where(claimable).limit(1))
            if found is not None:
                self.register(connection, queue, [found])
        return found

    def served(self, connection: Connection, queue: str, owners: Iterable[str]) -> None:
        """Note that jobs of these owners were claimed now."""
        mine = (self.table.c.queue == queue) & self.table.c.owner.in_(sorted(set(owners)))
        connection.execute(self.table.update().where(mine).values(claimed_at=time.time()))
