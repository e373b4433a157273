"""Build the Redis commands that publish batches and wake-up messages to workers.

Celery's `send_task` blocks. In a thread beside a busy event loop it waits for the interpreter lock
at every step, which took most of a small request's time (docs/decisions.md). So this module builds
the message with the public API of Celery and kombu, and returns the command that stores it. The
caller sends the command on its own connection: `await connection.command(*publish_batch(...))` or
`client.execute_command(*publish_batch(...))`.

`benchmarks/messages.py` compares the cost with that of `send_task`. A test checks that the messages
are the same.
"""

from functools import cache
from typing import Any

import orjson
from celery.utils import uuid
from kombu.connection import Connection
from kombu.serialization import dumps
from kombu.transport import virtual

from core.broker.celery_app import RUN_BATCH, RUN_JOBS, app
from core.broker.keys import TRAINING_WAKEUP, QueueName, queue_key

Command = tuple[str | bytes, ...]  # words of a Redis command

# Wake-ups per job, for the threads of all training workers; most find nothing to do.
_TRAINING_WAKEUPS = 8


class _MessageChannel(virtual.Channel):
    """A channel of kombu that returns a message instead of sending it.

    The message is the JSON that kombu's Redis channel would push onto the list of a queue.
    """

    def _put(self, queue: str, message: dict[str, Any], **_options: Any) -> bytes:  # noqa: ARG002 - kombu's signature
        return orjson.dumps(message)


class _MessageTransport(virtual.Transport):
    """A transport of kombu without I/O: its channel returns messages instead of sending them."""

    Channel = _MessageChannel


@cache
def _channel() -> Any:
    return Connection(transport=_MessageTransport).channel()


# See docs/decisions.md#the-api-writes-celery-messages-itself
def task_message(task: str, key: str, *args: Any) -> bytes:
    """Return the Celery message that calls the task `task` with `args`, for the queue with this
    key.

    It has the format of kombu's Redis transport.
    """
    # without `argsrepr`, Celery would format the arguments for its log, which costs more than all
    # the rest
    message = app.amqp.as_task_v2(uuid(), task, args, ignore_result=True, argsrepr="", kwargsrepr="")
    content_type, content_encoding, body = dumps(message.body, serializer="msgpack")
    channel = _channel()
    properties = {**message.properties, "delivery_mode": 2}
    prepared = channel.prepare_message(body, 0, content_type, content_encoding, message.headers, properties)
    data: bytes = channel.basic_publish(prepared, exchange="", routing_key=key)
    return data


def publish_batch(queue: QueueName, batch: bytes, target: str = "") -> Command:
    """Return the Redis command that puts a packed batch on a queue of the inference workers.

    `target` is the id of a worker or of a worker group, as in `core.broker.keys.queue_key`.
    """
    key = queue_key(queue, target)
    return "LPUSH", key, task_message(RUN_BATCH, key, batch)


def wake_inference_workers(target: str = "") -> Command:
    """Return the Redis command that makes an inference worker look for a job in the job store.

    `target` is the id of a worker or of a worker group, as in `core.broker.keys.queue_key`.
    """
    key = queue_key("bulk", target)
    return "LPUSH", key, task_message(RUN_JOBS, key)


def wake_training_workers() -> tuple[Command, ...]:
    """Return the Redis commands that make idle training workers look for a job in the job store."""
    push: Command = ("LPUSH", TRAINING_WAKEUP, *["job"] * _TRAINING_WAKEUPS)
    return push, ("LTRIM", TRAINING_WAKEUP, "0", str(2 * _TRAINING_WAKEUPS - 1))
