"""Measure the time that Celery takes per message, and how much this service's shortcuts save.

    python benchmarks/messages.py

Building: `send_task` without its I/O, `task_message` (Celery's public API, what the service uses),
and a message written by hand. Receiving: Celery's default strategy, and `InlineTask`; each worker
takes messages that do nothing from a queue server of its own. Times in µs per message, the fastest
of several interleaved rounds.
"""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
import sys
import time
import timeit
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import msgpack
import orjson
import redis

sys.path.insert(0, str(Path(__file__).parents[1]))

from celery import Celery, Task
from kombu.connection import Connection
from kombu.messaging import Producer

from core.broker import publisher
from core.broker.celery_app import RUN_BATCH, app, configuration
from core.broker.keys import queue_key
from core.settings import Settings
from tests.stack import free_port
from workers.devserver import queue_command

ROUNDS, BUILT, RECEIVED = 9, 2000, 3000
BATCH = os.urandom(600)


def by_hand() -> bytes:
    """Write the fields that a worker reads, and no others."""
    task_id = str(uuid4())
    body = msgpack.packb(((BATCH,), {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}))
    return orjson.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary",
            "content-type": "application/x-msgpack",
            "headers": {"lang": "py", "task": RUN_BATCH, "id": task_id, "root_id": task_id, "ignore_result": True},
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue_key("interactive")},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": task_id,
            },
        }
    )


def time_building() -> dict[str, float]:
    """Time the three ways to build a message."""
    channel = Connection(transport=publisher._MessageTransport).channel()  # noqa: SLF001
    producer = Producer(channel, auto_declare=False)
    ways = {
        "send_task": lambda: app.send_task(RUN_BATCH, (BATCH,), queue=queue_key("interactive"), producer=producer),
        "task_message": lambda: publisher.task_message(RUN_BATCH, queue_key("interactive"), BATCH),
        "by hand": by_hand,
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = min(best[name], timeit.timeit(way, number=BUILT) / BUILT * 1e6)
    return best


def receive(base: type[Task]) -> None:
    """Run a worker whose task has the given class until it has received all messages.

    Prints the µs per message.
    """
    worker_app = Celery("benchmark")
    worker_app.add_defaults(configuration)
    times: list[float] = []

    @worker_app.task(name=RUN_BATCH, base=base)
    def count(_batch: bytes) -> None:
        times.append(time.perf_counter())
        if len(times) == RECEIVED:
            sys.stdout.write(f"{(times[-1] - times[0]) / (RECEIVED - 1) * 1e6}\n")
            sys.stdout.flush()
            os._exit(0)

    worker_app.Worker(quiet=True, without_gossip=True, without_mingle=True, without_heartbeat=True).start()


def time_receiving() -> dict[str, float]:
    """Time both task classes, each in worker processes of its own."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    best: dict[str, float] = {}
    with TemporaryDirectory() as folder:
        command = queue_command(Settings(state=Path(folder), queue_url=url))
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        environment = {**os.environ, "REVERIE_QUEUE_URL": url, "REVERIE_STATE": folder}
        try:
            time.sleep(1)
            for _ in range(ROUNDS // 2):
                for name in ("Task", "InlineTask"):
                    with redis.Redis.from_url(url) as client:
                        client.delete(queue_key("interactive"))
                        for _ in range(RECEIVED):
                            client.execute_command(*publisher.publish_batch("interactive", BATCH))
                    worker = [sys.executable, __file__, name]
                    done = subprocess.run(worker, env=environment, check=True, stdout=subprocess.PIPE, timeout=120)
                    best[name] = min(best.get(name, float("inf")), float(done.stdout.split()[-1]))
        finally:
            server.terminate()
            server.wait()
    return best


def main() -> None:
    """Print a table of the microseconds per message, by way of building and receiving it."""
    for verb, times in (("build", time_building()), ("receive", time_receiving())):
        for name, microseconds in times.items():
            print(f"{verb:<8}{name:<14}{microseconds:8.1f} µs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("receiver", nargs="?", choices=("Task", "InlineTask"), help="only receive, by this class")
    receiver = parser.parse_args().receiver
    if receiver:
        from workers.inference.inline_task import InlineTask

        receive({"Task": Task, "InlineTask": InlineTask}[receiver])
    else:
        main()
