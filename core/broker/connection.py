"""The queue: one Celery application, its two lanes, and the Redis keys that notes and heartbeats travel by.

Messages are acknowledged early and carry no promise: what is owed is known to the API process that waits, or stands
in the ledger (design: docs/decisions.md). Celery's own results are not used.
"""

import base64
import logging
from typing import Any, Literal
from uuid import uuid4

import msgpack
import orjson
import redis
import redis.asyncio
from celery import Celery
from kombu.entity import Queue as Queue_

from core.settings import Settings

log = logging.getLogger(__name__)

Queue: Any = Queue_  # kombu's classes are not typed
Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
RUN_BATCH = "reverie.run_batch"
RUN_JOBS = "reverie.run_jobs"

WORKERS = "reverie:workers"
"""Hash of worker id → packed heartbeat."""

JOB_UPDATES = "reverie:news"
"""Stream of job ids whose row changed; a hint to look, never the truth."""

COMPLETION_STREAM_LENGTH = 10_000
"""About how many notes a stream keeps; a reader further behind than that has its rows resent."""


def new_completion_stream() -> str:
    """A name for the completion stream of one API process."""
    return f"reverie:notes:{uuid4().hex[:12]}"


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
        # no acknowledgement at all: the broker owes nothing, and each one costs two round trips
        task_queues=[Queue(queue_name(lane), routing_key=queue_name(lane), no_ack=True) for lane in LANES],
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
        # a queue server whose disk is full refuses writes, and popping a message is one: wait for it, do not exit
        broker_channel_error_retry=True,
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


def message(task: str, lane: Lane, *args: Any) -> bytes:
    """A Celery message (protocol 2, as kombu's Redis transport stores it), ready to be pushed on the lane's list.

    Written here and not by `send_task`, which blocks: a publisher thread waits for the interpreter lock at every step
    while the event loop is busy, and that wait was most of a small request's time (docs/decisions.md).
    """
    name, task_id = queue_name(lane), str(uuid4())
    body = msgpack.packb((args, {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}))
    return orjson.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary",
            "content-type": "application/x-msgpack",
            "headers": {
                "lang": "py",
                "task": task,
                "id": task_id,
                "root_id": task_id,
                "ignore_result": True,
                "retries": 0,
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": name},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": task_id,
            },
        }
    )


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


def started_key(batch: str) -> str:
    """Holds the id of the worker that took a batch up."""
    return f"reverie:started:{batch}"


def dropped_key(batch: str) -> str:
    """Exists while nobody waits for a batch any more."""
    return f"reverie:dropped:{batch}"


def preview_key(call: str) -> str:
    """Holds a PNG of what a job's (or a waiting call's) unfinished pictures look like."""
    return f"reverie:preview:{call}"


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


class FireAndForgetClient:
    """Commands whose replies nobody waits for: `send` takes those of earlier ones, which have come meanwhile.

    For one thread. What is lost with a connection is seen at the next `send`; whoever waits has it sent again.
    """

    def __init__(self, client: redis.Redis) -> None:
        """Use a connection of this client's pool."""
        self._pool = client.connection_pool
        self._connection: Any = None
        self._owed = 0

    def send(self, *command: Any) -> None:
        """Send a command, on a new connection where the old one broke. Raises RedisError."""
        try:
            while self._owed:
                self._owed -= 1
                try:
                    self._connection.read_response()
                except redis.ResponseError as error:  # of an earlier command, whose sender has gone on
                    log.warning("command refused by the queue server", extra={"reason": str(error)})
            self._push(command)
        except (redis.ConnectionError, redis.TimeoutError):
            self._drop()
            self._push(command)

    def _push(self, command: tuple[Any, ...]) -> None:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        self._connection.send_command(*command)
        self._owed += 1

    def _drop(self) -> None:
        connection, self._connection, self._owed = self._connection, None, 0
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
