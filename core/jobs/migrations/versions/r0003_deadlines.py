"""Revision 0003: add columns for the deadline of a job and for the trace of its request."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add `deadline_at` and `traceparent` to jobs, and an index to find passed deadlines."""
    op.add_column("jobs", sa.Column("deadline_at", sa.Float))
    op.add_column("jobs", sa.Column("traceparent", sa.String(60)))
    op.create_index("jobs_status_deadline_at", "jobs", ["status", "deadline_at"])
