"""Revision 0007: add the device kind on which all rows of a job are computed.

A device kind is what the bits of results depend on: device, processor, torch version, threads.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column `device_kind` to jobs."""
    op.add_column("jobs", sa.Column("device_kind", sa.String(80)))
