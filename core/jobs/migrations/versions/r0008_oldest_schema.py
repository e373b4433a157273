"""Revision 0008: record the oldest revision whose release can use the tables.

With it a program knows whether it can use a database that a newer release has migrated.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column `oldest_schema` to the table of the instance."""
    op.add_column("instance", sa.Column("oldest_schema", sa.String(32)))
