"""Published messages equal those of Celery's `send_task`."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import orjson
import pytest
import redis
from celery import Celery

from core.broker.celery_app import RUN_BATCH, RUN_JOBS, app
from core.broker.keys import queue_key
from core.broker.publisher import publish_batch, task_message, wake_inference_workers, wake_training_workers
from tests.stack import Stack

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A queue server."""
    stack = Stack(tmp_path_factory.mktemp("queue"))
    try:
        stack.start("queue")
        stack.wait_queue()
        yield stack
    finally:
        stack.down()


@pytest.mark.parametrize(("task", "arguments"), [(RUN_BATCH, (b"\x00packed\xff" * 50,)), (RUN_JOBS, ())])
def test_a_message_is_the_one_that_send_task_stores(queue: Stack, task: str, arguments: tuple[bytes, ...]) -> None:
    """A message has the fields and values of `send_task`, except random ids and what only Celery's
    logs and results use.
    """
    sender = Celery("sender", broker=queue.queue_url, set_as_current=False)
    sender.conf.task_serializer = "msgpack"
    sender.send_task(task, arguments, queue=queue_key("bulk"), ignore_result=True, retry=False)
    with redis.Redis.from_url(queue.queue_url) as client:
        stored: Any = client.rpop(queue_key("bulk"))
    assert _comparable(task_message(task, queue_key("bulk"), *arguments)) == _comparable(stored)


def _comparable(data: bytes) -> Any:
    """Return a message with its body unpacked, its id replaced, and without fields that may
    differ.
    """
    message = orjson.loads(data)
    message["body"] = msgpack.unpackb(base64.b64decode(message["body"]))
    task_id = message["headers"]["id"]
    headers = {name: "ID" if value == task_id else value for name, value in message["headers"].items()}
    properties = {name: "ID" if value == task_id else value for name, value in message["properties"].items()}
    assert headers.pop("origin").startswith("gen")
    del headers["argsrepr"], headers["kwargsrepr"], properties["reply_to"]
    assert len(properties.pop("delivery_tag")) == len(task_id)
    return {**message, "headers": headers, "properties": properties}


def test_commands_store_messages_in_their_queues(queue: Stack) -> None:
    """The commands add messages to their queues; wake-ups of training workers are limited in
    number.
    """
    with redis.Redis.from_url(queue.queue_url) as client:
        for command in (publish_batch("interactive", b"packed"), wake_inference_workers()):
            client.execute_command(*command)
        assert (client.llen(queue_key("interactive")), client.llen(queue_key("bulk"))) == (1, 1)
        for _ in range(5):
            for command in wake_training_workers():
                client.execute_command(*command)
        assert client.llen("reverie:trainings") == 16


def test_the_application_imports_no_torch() -> None:
    """An API process that builds messages loads neither torch nor the tasks."""
    program = (
        "import sys, core.broker.publisher as p; p.task_message('t', 'bulk'); "
        "print([name for name in ('torch', 'workers.inference.tasks') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"
    assert app.conf.include == ["workers.inference.tasks"]
