"""Define the names of queues, streams and keys on the queue server.

API processes and workers of adjacent releases use them together, so they change only with a
migration.
"""

from typing import Literal
from uuid import uuid4

QueueName = Literal["interactive", "bulk"]
QUEUES: tuple[QueueName, ...] = ("interactive", "bulk")

WORKERS = "reverie:workers"  # hash of inference worker id → packed heartbeat

# Stream of ids of jobs that have changed: a hint to read the job store, never the truth.
JOB_UPDATES = "reverie:news"

# List that wakes training workers up, in the database `training_queue`; its content means nothing.
TRAINING_WAKEUP = "reverie:trainings"

# About how many entries a stream keeps. An API process that lags further behind has its batches
# sent again.
STREAM_LENGTH = 10_000


# See docs/decisions.md#workers-of-one-kind-share-a-queue-and-each-has-one-of-its-own
def queue_key(queue: QueueName, target: str = "") -> str:
    """Return the key of the Redis list that holds the messages of a queue.

    `target` is the id of the worker, or of the worker group (same device kind and same setting
    `models`), that receives the messages; "" means the queue of releases without groups.
    """
    return f"reverie-{queue}:{target}" if target else f"reverie-{queue}"


def catalog_key(digest: str) -> str:
    """Return the Redis key of a catalog, the packed list of versions that a worker may load.

    Heartbeats contain only the digest of the list.
    """
    return f"reverie:catalog:{digest}"


DRAIN_TTL_S = 60  # lifetime of the key that asks a worker to stop


def drain_key(worker_id: str) -> str:
    """Return the key whose value is the reason why a worker has to stop; the worker reads it."""
    return f"reverie:drain:{worker_id}"


def new_completion_stream() -> str:
    """Return a new name for the stream by which workers report batches to an API process."""
    return f"reverie:notes:{uuid4().hex[:12]}"


# See docs/decisions.md#a-batch-that-has-started-is-a-key-and-not-a-message
def started_key(batch_id: str) -> str:
    """Return the key whose value is the id of the worker that has started the batch `batch_id`."""
    return f"reverie:started:{batch_id}"


def dropped_key(batch_id: str) -> str:
    """Return the key that an API process sets when no request waits for a batch any more."""
    return f"reverie:dropped:{batch_id}"


# See docs/decisions.md#previews-are-linked-from-events
def preview_key(request_id: str) -> str:
    """Return the key of the latest preview (PNG) of a running job or pending request."""
    return f"reverie:preview:{request_id}"
