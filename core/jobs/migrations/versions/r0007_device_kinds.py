"""Revision 0007: add the kind of device on which all rows of a job are computed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add `device_kind` to jobs."""
    op.add_column("jobs", sa.Column("device_kind", sa.String(80)))
