"""Define the tables of the job database, and open write transactions on it.

A change of a table needs a migration in `migrations/versions`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import sqlalchemy as sa

from core.jobs.records import AUXILIARY_KINDS, TRAINING


class Json(sa.types.TypeDecorator[dict[str, Any]]):
    """A column type for JSON objects, stored as text.

    With `sort_keys`, equal objects have equal texts, so that SQL can compare them.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, *, sort_keys: bool = False) -> None:
        super().__init__()
        self.sort_keys = sort_keys

    def process_bind_param(self, value: dict[str, Any] | None, _dialect: sa.Dialect) -> str | None:
        """Return the JSON text to store for an object; None (NULL) for None."""
        options = orjson.OPT_SORT_KEYS if self.sort_keys else 0
        return None if value is None else orjson.dumps(value, option=options).decode()

    def process_result_value(self, value: str | None, _dialect: sa.Dialect) -> dict[str, Any] | None:
        """Return the object that a stored JSON text describes; None for NULL."""
        return None if value is None else orjson.loads(value)


metadata = sa.MetaData()

_EXCLUSIVE = sa.text("kind IN ('training', 'publication') AND status IN ('queued', 'running', 'paused')")

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("owner", sa.String(80), nullable=False, default=""),
    sa.Column("status", sa.String(12), nullable=False),
    sa.Column("model", sa.String(120), nullable=False),
    sa.Column("version", sa.String(40), nullable=False),
    sa.Column("method", sa.String(40), nullable=False),
    sa.Column("options", Json(sort_keys=True), nullable=False),
    sa.Column("request", Json(), nullable=False),
    sa.Column("request_id", sa.String(120), nullable=False, default=""),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.Integer, nullable=False),
    sa.Column("items", sa.LargeBinary),
    sa.Column("items_blob", sa.String(200)),
    sa.Column("rows_per_image", sa.Integer, nullable=False, default=1),
    sa.Column("next_row", sa.Integer, nullable=False, default=0),
    sa.Column("continuation", sa.LargeBinary),
    sa.Column("progress", sa.Float, nullable=False, default=0.0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("lease_holder", sa.String(80)),
    sa.Column("lease_until", sa.Float),
    sa.Column("co_batched", sa.Boolean, nullable=False, default=False),
    sa.Column("isolated", sa.Boolean, nullable=False, default=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("queued_at", sa.Float, nullable=False),
    sa.Column("problem", Json()),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("expired", sa.Boolean, nullable=False, default=False),
    sa.Column("not_before", sa.Float),
    sa.Column("blocked_since", sa.Float),
    sa.Column("blocked_reason", sa.Text),
    sa.Column("blocked_bytes", sa.BigInteger),
    sa.Column("deadline_at", sa.Float),
    sa.Column("traceparent", sa.String(60)),
    sa.Column("webhook", Json()),
    sa.Column("input_urls", Json()),
    sa.Column("device_kind", sa.String(80)),
    sa.Index("jobs_status_queued_at", "status", "queued_at"),
    sa.Index("jobs_owner_status_queued_at", "owner", "status", "queued_at"),
    sa.Index("jobs_owner", "owner", "id"),
    sa.Index("jobs_finished", "finished_at"),
    sa.Index("jobs_status_deadline_at", "status", "deadline_at"),
    # of the jobs that are inserted as `exclusive`, so that processes cannot insert two at the same
    # time
    sa.Index(
        "jobs_unfinished_name", "kind", "model", unique=True, sqlite_where=_EXCLUSIVE, postgresql_where=_EXCLUSIVE
    ),
)

result_chunks = sa.Table(
    "result_chunks",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("first_row", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary),
    sa.Column("blob_key", sa.String(200)),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(40), nullable=False),
    sa.Column("data", Json(), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)

# Requests to be sent to the webhooks of jobs; see `core.webhooks`.
webhook_deliveries = sa.Table(
    "webhook_deliveries",
    metadata,
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
    sa.Index("webhook_deliveries_job_id", "job_id", "id"),
    sa.Index("webhook_deliveries_status_due_at", "status", "due_at"),
    sa.Index("webhook_deliveries_created_at", "created_at"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(80), primary_key=True),
    sa.Column("route", sa.String(120), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# When a job of each owner was last claimed from each queue.
claim_order = sa.Table(
    "claim_order",
    metadata,
    sa.Column("queue", sa.String(20), primary_key=True),
    sa.Column("owner", sa.String(80), primary_key=True),
    sa.Column("claimed_at", sa.Float, nullable=False),
)

# Owners of datasets and models; see `core.resources`.
resources = sa.Table(
    "resources",
    metadata,
    sa.Column("kind", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("owner", sa.String(80), nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# One row: the number of changes to `resources`, so that processes notice one cheaply.
resource_changes = sa.Table("resource_changes", metadata, sa.Column("count", sa.BigInteger, nullable=False))

# The next tables describe what hosts without a common folder share; see `core.shared`. One host has
# folders instead, and leaves them empty.

# Versions of models made by this service. A number that was reserved is not used twice.
versions = sa.Table(
    "versions",
    metadata,
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

# The active version and the candidate of each model.
version_pointers = sa.Table(
    "version_pointers",
    metadata,
    sa.Column("name", sa.String(120), primary_key=True),
    sa.Column("serves", sa.String(40)),
    sa.Column("next", sa.String(40)),
)

datasets = sa.Table(
    "datasets",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("description", Json(), nullable=False),
    sa.Column("files", Json(), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# Unfinished jobs that use a dataset, which cannot be deleted meanwhile.
dataset_uses = sa.Table(
    "dataset_uses",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.String(40), primary_key=True),
)

# Files of training runs: the last checkpoint, and what belongs to it.
run_files = sa.Table(
    "run_files",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("name", sa.String(80), primary_key=True),
    sa.Column("blob_key", sa.String(300), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
)

# One row: the id of the instance of the service to which hosts belong, and the number of changes to
# `versions` and `version_pointers`.
instance = sa.Table(
    "instance",
    metadata,
    sa.Column("id", sa.String(40), nullable=False),
    sa.Column("webhook_secret", sa.Text),
    sa.Column("version_changes", sa.BigInteger, nullable=False, default=0),
    sa.Column("oldest_schema", sa.String(32)),
)

# Jobs of inference workers; the others are for training workers, or their inputs must be fetched.
RUNS_INFERENCE = jobs.c.kind.not_in((TRAINING, *AUXILIARY_KINDS)) & jobs.c.input_urls.is_(None)


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Yield a connection in a write transaction, which is rolled back if the block raises.

    Otherwise it is committed after the block. On SQLite the transaction takes the write lock at its
    start, so that no other process can change what the block has read.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
