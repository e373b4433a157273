"""Every webhook is delivered although API and receiver are killed: 30 here, 1 000 in `make
test-slow`.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.service.jobs import report
from tests.stack import ROOT, Stack, free_port
from tests.waiting import wait_until
from tests.webhooks.test_jobs import verified

SIZES = [pytest.param(30, 4, id="small"), pytest.param(1000, 60, id="full", marks=pytest.mark.slow)]
"""Webhooks, and the number of kills, of the API and the receiver in turn."""


class ReceiverProcess:
    """A receiver in its own process, which writes each request to a file before it responds."""

    def __init__(self, folder: Path) -> None:
        self.port, self.file = free_port(), folder / "received"
        self.url = f"http://127.0.0.1:{self.port}/hook"

    def start(self) -> None:
        """Start the process and wait until it listens."""
        command = [sys.executable, "-m", "tests.webhooks.receiver", str(self.port), str(self.file)]
        self._process = subprocess.Popen(command, cwd=ROOT)
        wait_until(self._listens, "the receiver listens")

    def _listens(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(self.url, timeout=5).status_code == 501
        return False

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()

    @property
    def requests(self) -> list[dict[str, str]]:
        """The requests that were received so far."""
        lines = self.file.read_bytes().splitlines(keepends=True) if self.file.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose API is killed and whose webhooks may be sent to this machine."""
    settings = {"allowed_networks": "127.0.0.0/8", "webhook_retry_s": "0.2", "log_level": "warning"}
    with Stack(tmp_path_factory.mktemp("webhook-chaos"), workers=["inference"], **settings) as running:
        yield running


def create_jobs(stack: Stack, url: str, count: int) -> set[str]:
    """Create `count` jobs with a webhook, retrying while the API is down; return their ids."""
    ids = set()
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        for seed in range(1000, 1000 + count):
            body = {"model": "faulty", "seed": seed, "seconds": 0.0, "webhook": {"url": url}}
            headers = {"Idempotency-Key": uuid4().hex, "Prefer": "respond-async"}

            def created(body: object = body, headers: dict[str, str] = headers) -> str | None:
                with contextlib.suppress(httpx.HTTPError):
                    response = client.post("/v1/samples", json=body, headers=headers)
                    if response.status_code in {200, 202}:
                        location = response.headers.get("location") or response.headers["content-location"]
                        return str(location.split("/")[3])
                return None

            ids.add(wait_until(created, "the job is accepted"))
    return ids


@pytest.mark.parametrize(("jobs", "kills"), SIZES)
def test_every_webhook_arrives_although_api_and_receiver_are_killed(
    broken: Stack, tmp_path: Path, jobs: int, kills: int
) -> None:
    """Every webhook arrives at least once, always with the same id and a valid signature."""
    receiver = ReceiverProcess(tmp_path)
    receiver.start()
    rng = random.Random(0)
    accepted: set[str] = set()
    creator = threading.Thread(target=lambda: accepted.update(create_jobs(broken, receiver.url, jobs)))
    creator.start()
    blows: list[Callable[[], None]] = [lambda: kill_api(broken), lambda: kill_receiver(receiver, rng)]
    try:
        for number in range(kills):
            wait_until(lambda: len(receiver.requests) >= number * jobs // (2 * kills), "some have arrived")  # noqa: B023
            time.sleep(rng.uniform(0, 0.3))
            blows[number % 2]()
        creator.join()
        assert len(accepted) == jobs

        def arrived() -> bool:
            return {json.loads(one["body"])["data"]["id"] for one in receiver.requests} >= accepted

        wait_until(arrived, "every webhook has arrived", 600)
    finally:
        receiver.kill()
        creator.join()
    ids = defaultdict(set)
    for request in receiver.requests:
        body = verified(broken, request)
        assert body["type"] == "job.succeeded"
        ids[body["data"]["id"]].add(request["headers"]["webhook-id"])  # type: ignore[index]
    assert ids.keys() == accepted
    assert all(len(one) == 1 for one in ids.values())
    report("webhooks", jobs=jobs, kills=kills, requests=len(receiver.requests))


def kill_api(stack: Stack) -> None:
    """Kill the API and start it again."""
    stack.kill("api")
    stack.start("api")
    stack.wait_ready()


def kill_receiver(receiver: ReceiverProcess, rng: random.Random) -> None:
    """Kill the receiver and start it again after a moment."""
    receiver.kill()
    time.sleep(rng.uniform(0, 1.5))
    receiver.start()
