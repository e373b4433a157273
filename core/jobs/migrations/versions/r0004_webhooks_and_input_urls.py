"""Revision 0004: add webhooks of jobs, their deliveries, and URLs of images to be fetched."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table of webhook deliveries, and the columns `webhook` and `input_urls` to jobs."""
    op.add_column("jobs", sa.Column("webhook", sa.Text))
    op.add_column("jobs", sa.Column("input_urls", sa.Text))
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("job_id", sa.String(40), nullable=False),
        sa.Column("owner", sa.String(80), nullable=False),
        sa.Column("event", sa.String(40), nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("token", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Float, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("attempted_at", sa.Float),
        sa.Column("ended_at", sa.Float),
        sa.Column("response_status", sa.Integer),
        sa.Column("error", sa.Text),
    )
    for name, *columns in (
        ("webhook_deliveries_job_id", "job_id", "id"),
        ("webhook_deliveries_status_due_at", "status", "due_at"),
        ("webhook_deliveries_created_at", "created_at"),
    ):
        op.create_index(name, "webhook_deliveries", columns)
