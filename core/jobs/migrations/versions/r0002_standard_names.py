"""Revision 0002: give tables, columns and indexes the names that the code uses."""

from alembic import op

revision = "0002"
down_revision = "0001"

_RENAMED_COLUMNS = {
    "jobs": {
        "per": "rows_per_image",
        "state": "continuation",
        "lease_owner": "lease_holder",
        "shared": "co_batched",
        "alone": "isolated",
        "turn": "queued_at",
    },
    "parts": {"first": "first_row", "blob": "blob_key"},
    "events": {"event": "name"},
}


def upgrade() -> None:
    """Rename columns, tables and indexes; drop the table `about` with the old schema's version."""
    op.drop_index("jobs_turn", "jobs")
    op.drop_index("jobs_owner_turn", "jobs")
    for table, columns in _RENAMED_COLUMNS.items():
        for old, new in columns.items():
            op.alter_column(table, old, new_column_name=new)
    op.create_index("jobs_status_queued_at", "jobs", ["status", "queued_at"])
    op.create_index("jobs_owner_status_queued_at", "jobs", ["owner", "status", "queued_at"])
    op.rename_table("parts", "result_chunks")
    op.rename_table("owner_turns", "claim_order")
    op.execute("DROP TABLE IF EXISTS about")
