"""Revision 0006: add what hosts without a common folder share: versions, datasets, files of runs."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create empty tables for versions, datasets and files of runs.

    `python -m core.shared` fills them from a state folder.
    """
    op.create_table(
        "versions",
        sa.Column("name", sa.String(120), primary_key=True),
        sa.Column("version", sa.String(40), primary_key=True),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("job_id", sa.String(40)),
        sa.Column("blob_key", sa.String(300)),
        sa.Column("sha256", sa.String(64)),
        sa.Column("bytes", sa.BigInteger),
        sa.Column("card", sa.Text),
        sa.Column("changed_at", sa.Float, nullable=False),
    )
    op.create_table(
        "version_pointers",
        sa.Column("name", sa.String(120), primary_key=True),
        sa.Column("serves", sa.String(40)),
        sa.Column("next", sa.String(40)),
    )
    op.create_table(
        "datasets",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("files", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "dataset_uses",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("job_id", sa.String(40), primary_key=True),
    )
    op.create_table(
        "run_files",
        sa.Column("job_id", sa.String(40), primary_key=True),
        sa.Column("name", sa.String(80), primary_key=True),
        sa.Column("blob_key", sa.String(300), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("webhook_secret", sa.Text),
        sa.Column("version_changes", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO instance (id, version_changes) VALUES ('', 0)")
