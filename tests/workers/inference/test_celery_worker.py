"""Celery's own commands: a worker started by `celery`, and remote control."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
import redis
from celery import Celery

from core.broker.address import QueueAddress
from core.broker.celery_app import RUN_BATCH, RUN_JOBS
from core.broker.keys import WORKERS
from core.settings import Settings
from tests.stack import FAMILIES, ROOT, Stack

CELERY = [sys.executable, "-m", "celery", "-A", "core.broker.celery_app"]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose worker was started by Celery's command, with remote control."""
    running = Stack(tmp_path_factory.mktemp("celery"), remote_control="true", extra_models=FAMILIES)
    try:
        running.start("queue")
        running.wait_queue()
        with (running.state / "inference.log").open("ab") as log:
            command = [*CELERY, "worker", "-P", "solo"]
            running.parts["inference"] = subprocess.Popen(
                command, cwd=ROOT, env=running.environment, stdout=log, stderr=log
            )
        running.start("api")
        running.wait_ready()
        yield running
    finally:
        running.down()


def inspect(stack: Stack, *words: str) -> str:
    """Return what `celery inspect` prints."""
    command = [*CELERY, "inspect", *words, "--timeout", "5"]
    done = subprocess.run(
        command, cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_worker_started_by_celery_works(stack: Stack) -> None:
    """A worker started by `celery` loads the models and serves requests."""
    answer = httpx.post(f"{stack.url}/v1/samples", json={"model": "vae-mnist-2d", "count": 2, "seed": 1}, timeout=60)
    assert answer.status_code == 200, answer.text


def test_remote_control_works(stack: Stack) -> None:
    """`celery inspect` reaches the worker, which has registered both tasks; Flower uses the same
    commands.
    """
    registered = inspect(stack, "registered")
    assert RUN_BATCH in registered
    assert RUN_JOBS in registered
    with Celery(broker=stack.queue_url, set_as_current=False) as app:  # needs no imports of another process
        app.conf.update(QueueAddress.parse(stack.queue_url).celery_configuration())
        app.conf.update(task_serializer="msgpack", accept_content=["msgpack"])
        control = app.control.inspect(timeout=5, limit=1)
        assert list((control.ping() or {}).values()) == [{"ok": "pong"}]
        assert control.active()


def test_it_stops_on_sigterm(stack: Stack) -> None:
    """On SIGTERM the worker exits with status 0, and its heartbeat is removed."""
    process = stack.parts["inference"]
    process.terminate()
    assert process.wait(30) == 0
    with redis.Redis.from_url(stack.queue_url) as client:
        assert client.hlen(WORKERS) == 0


def test_remote_control_is_off_by_default() -> None:
    """Remote control is off unless the setting enables it."""
    assert Settings().remote_control is False
