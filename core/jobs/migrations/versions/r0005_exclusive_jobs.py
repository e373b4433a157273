"""Revision 0005: at most one unfinished training, and one unfinished publication, of each model."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_UNFINISHED = "kind IN ('training', 'publication') AND status IN ('queued', 'running', 'paused')"

# Requests for a second one are rejected, so there should be none. If there is one, it ends.
_END_OTHERS = f"""
UPDATE jobs SET
  status = 'failed',
  token = token + 1,
  lease_holder = NULL,
  lease_until = NULL,
  finished_at = queued_at,
  problem = '{{"type":"about:blank","title":"Not in this state","status":409,"detail":"an earlier job of this model was unfinished when the service was upgraded; start this one again"}}'
WHERE {_UNFINISHED} AND EXISTS (
  SELECT 1 FROM jobs AS other
  WHERE other.kind = jobs.kind AND other.model = jobs.model AND other.id < jobs.id
    AND other.status IN ('queued', 'running', 'paused')
)
"""  # noqa: S608, E501 - a constant


def upgrade() -> None:
    """End jobs beyond the first as failed, then add the unique index on kind and model."""
    op.get_bind().exec_driver_sql(_END_OTHERS)
    where, columns = sa.text(_UNFINISHED), ["kind", "model"]
    op.create_index("jobs_unfinished_name", "jobs", columns, unique=True, sqlite_where=where, postgresql_where=where)
