"""The queue: one Celery application, its two lanes, and the Redis keys that notes and heartbeats travel by.

Messages are acknowledged early and carry no promise: what is owed is known to the API process that waits, or stands
in the ledger (design: docs/decisions.md). Celery's own results are not used.
"""

from typing import Any, Literal

import redis
import redis.asyncio
from celery import Celery

from workers.settings import Settings

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
RUN_BATCH = "reverie.run_batch"
RUN_JOBS = "reverie.run_jobs"

WORKERS = "reverie:workers"
"""Hash of worker id → packed heartbeat."""

NEWS = "reverie:news"
"""Stream of job ids whose row changed; a hint to look, never the truth."""

NOTES_LENGTH = 10_000
"""About how many notes a stream keeps; a reader further behind than that has its rows resent."""


def notes_stream(api: str) -> str:
    """The stream of one API process's completion notes."""
    return f"reverie:notes:{api}"


def queue_name(lane: Lane) -> str:
    """The Redis list behind a lane."""
    return f"reverie-{lane}"


def make_celery(settings: Settings) -> Celery:
    """The Celery application of the API (which only publishes) and of the inference workers."""
    app = Celery("reverie", broker=settings.queue_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_acks_late=False,
        task_serializer="msgpack",
        accept_content=["msgpack"],
        task_queues={queue_name(lane): {"routing_key": queue_name(lane)} for lane in LANES},
        task_default_queue=queue_name("interactive"),
        task_send_sent_event=False,
        worker_send_task_events=False,
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        worker_pool="solo",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_heartbeat=0,
        broker_transport_options={
            # each lane gets its turn: a small request waits for one slice of a long one, and long work never starves
            "queue_order_strategy": "round_robin",
            "visibility_timeout": 3600,
            "socket_timeout": 15,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "max_connections": 20,
        },
    )
    return app


def publish(app: Celery, task: str, lane: Lane, *args: Any) -> None:
    """Put one message on a lane; blocks for up to about 2 s and raises kombu's OperationalError if nobody takes it."""
    app.send_task(task, args=args, queue=queue_name(lane), ignore_result=True, retry=False)


def connect(settings: Settings) -> redis.Redis:
    """A blocking connection to the queue server."""
    return redis.Redis.from_url(
        settings.queue_url, socket_timeout=5, socket_connect_timeout=2, socket_keepalive=True, health_check_interval=15
    )


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """An asyncio connection to the queue server."""
    return redis.asyncio.Redis.from_url(
        settings.queue_url, socket_timeout=15, socket_connect_timeout=2, socket_keepalive=True
    )


def dropped_key(batch: str) -> str:
    """Exists while nobody waits for a batch any more."""
    return f"reverie:dropped:{batch}"


def entries(found: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of an XREAD answer on one stream, in either protocol's shape."""
    if not found:
        return []
    streams = found.values() if isinstance(found, dict) else [entries for _, entries in found]
    flat = [entry for entries in streams for entry in entries]
    return [
        pair
        for entry in flat
        for pair in (entry if isinstance(entry, list) and isinstance(entry[0], tuple | list) else [entry])
    ]
