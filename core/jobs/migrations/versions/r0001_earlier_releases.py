"""Revision 0001: the schema of the last release without migrations.

Earlier releases added the tables, nullable columns and indexes that a database lacked when they
opened it. So a database may have the schema of any earlier release, and this revision adds the
missing parts.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

metadata = sa.MetaData()

sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("model", sa.String(120), nullable=False),
    sa.Column("version", sa.String(40), nullable=False),
    sa.Column("method", sa.String(40), nullable=False),
    sa.Column("options", sa.Text, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("request_id", sa.String(120), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("items", sa.LargeBinary),
    sa.Column("items_blob", sa.String(200)),
    sa.Column("per", sa.Integer, nullable=False),
    sa.Column("next_row", sa.Integer, nullable=False),
    sa.Column("state", sa.LargeBinary),
    sa.Column("progress", sa.Float, nullable=False),
    sa.Column("token", sa.Integer, nullable=False),
    sa.Column("lease_owner", sa.String(80)),
    sa.Column("lease_until", sa.Float),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("alone", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("turn", sa.Float, nullable=False),
    sa.Column("problem", sa.Text),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("expired", sa.Boolean, nullable=False),
    sa.Column("not_before", sa.Float),
    sa.Column("blocked_since", sa.Float),
    sa.Column("blocked_reason", sa.Text),
    sa.Column("blocked_bytes", sa.BigInteger),
    sa.Index("jobs_turn", "status", "turn"),
    sa.Index("jobs_owner_turn", "owner", "status", "turn"),
    sa.Index("jobs_owner", "owner", "id"),
    sa.Index("jobs_finished", "finished_at"),
)
sa.Table(
    "parts",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("first", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary),
    sa.Column("blob", sa.String(200)),
)
sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("event", sa.String(40), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(80), primary_key=True),
    sa.Column("route", sa.String(120), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
sa.Table(
    "owner_turns",
    metadata,
    sa.Column("queue", sa.String(20), primary_key=True),
    sa.Column("owner", sa.String(80), primary_key=True),
    sa.Column("claimed_at", sa.Float, nullable=False),
)
sa.Table(
    "resources",
    metadata,
    sa.Column("kind", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
sa.Table("resource_changes", metadata, sa.Column("count", sa.BigInteger, nullable=False))

_REGISTER_OWNERS = """
INSERT INTO owner_turns (queue, owner, claimed_at)
SELECT DISTINCT
  CASE WHEN kind = 'training' THEN 'training'
       WHEN kind IN ('estimate', 'import', 'publication') THEN 'auxiliary'
       ELSE 'inference' END,
  owner,
  0.0
FROM jobs
WHERE status NOT IN ('succeeded', 'failed', 'cancelled')
ON CONFLICT DO NOTHING
"""


def upgrade() -> None:
    """Add the tables, columns and indexes that the database lacks, and the rows they need.

    These are the owners of unfinished jobs, and the counter of changes to resources.
    """
    connection = op.get_bind()
    metadata.create_all(connection)
    inspector = sa.inspect(connection)
    for table in metadata.sorted_tables:
        columns = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name not in columns:
                op.add_column(table.name, sa.Column(column.name, column.type))
        indexes = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in indexes:
                index.create(connection)
    op.execute(_REGISTER_OWNERS)
    op.execute("INSERT INTO resource_changes SELECT 0 WHERE NOT EXISTS (SELECT * FROM resource_changes)")
