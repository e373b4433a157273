"""HAProxy in front of the API processes of a cluster, and clients that send requests at a fixed rate."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest

from tests.cluster.jobs import picture
from tests.cluster.members import APIS, Cluster
from tests.stack import free_port, succeeds
from tests.waiting import wait_until

RATE = 100.0
"""Requests per second."""

WAITING_JOBS, JOB_EVERY = 40, 50
"""Jobs of two seconds that are created at first, and how often a request creates another one."""

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="NOT TESTED: apt-get install --no-install-recommends haproxy"
)


CONFIGURATION = """
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  retries 3
  option redispatch
frontend all
  bind 127.0.0.1:{port}
  default_backend reverie
backend reverie
  balance leastconn
  option httpchk
  http-check send meth GET uri /readyz hdr Host {host}
  http-check expect status 200
  default-server check inter 500ms fall 2 rise 1
{servers}
"""


@contextlib.contextmanager
def haproxy(cluster: Cluster, folder: Path) -> Iterator[str]:
    """Run HAProxy in front of both API processes; yield its URL."""
    port = free_port()
    addresses = [cluster.hosts[name].address for name in APIS]
    servers = "\n".join(f"  server {name} {address}:8000" for name, address in zip(APIS, addresses, strict=True))
    file = folder / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(port=port, host=addresses[0], servers=servers))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(["haproxy", "-f", str(file)], stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: succeeds(lambda: httpx.get(f"{url}/readyz").is_success), "HAProxy forwards requests", 30)
        yield url
    finally:
        process.terminate()
        process.wait(30)


class Load:
    """A thread that sends requests at a fixed rate, and counts statuses and other bytes than
    expected.

    Some of the requests create jobs.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._expected = b""
        self.jobs: list[str] = []
        self.statuses: Counter[str] = Counter()
        self.slowest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def check(self, cluster: Cluster) -> None:
        """Check that no request has failed, and that each job has ended once; print the figures."""
        print(dict(self.statuses), f"slowest {self.slowest_s:.2f} s, {len(self.jobs)} jobs")  # noqa: T201
        assert set(self.statuses) == {"200", "202"}, self.statuses
        assert self.statuses["200"] > 1000
        assert len(set(self.jobs)) == self.statuses["202"]
        with cluster.database() as connection:

            def statuses() -> list[str]:
                query = b"SELECT status FROM jobs WHERE id = ANY(%s)"
                return [row[0] for row in connection.execute(query, [self.jobs]).fetchall()]

            wait_until(lambda: not {"queued", "running"} & set(statuses()), "all jobs have ended")
            assert Counter(statuses()) == {"succeeded": len(self.jobs)}
            query = (
                b"SELECT job_id, count(*) FROM events WHERE data ~ '\"(succeeded|failed|cancelled)\"' "
                b"GROUP BY job_id HAVING count(*) <> 1"
            )
            assert not connection.execute(query).fetchall()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=5)
        async with httpx.AsyncClient(base_url=self._url, timeout=60, limits=limits) as client:
            self._expected = (await self._sample(client)).content
            pending = {asyncio.create_task(self._request(client, number)) for number in range(-WAITING_JOBS, 0)}
            began, number = time.monotonic(), 0
            while not self._stop.is_set():
                number += 1
                task = asyncio.create_task(self._request(client, number))
                pending.add(task)
                task.add_done_callback(pending.discard)
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            await asyncio.gather(*pending)

    async def _sample(self, client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "vae-mnist-2d", "seed": 7}
        return await client.post("/v1/samples", json=body, headers={"Accept": "image/png", "Prefer": "wait=30"})

    async def _create_job(self, client: httpx.AsyncClient, number: int) -> httpx.Response:
        # other options than other jobs have, so that no two of them share a forward pass
        options = {"k": 20, "seconds": 0.1 + (number + WAITING_JOBS) / 1e6}
        body = {"model": "faulty", "seed": 7, "images": [picture(0)], "options": options}
        headers = {"Prefer": "respond-async", "Idempotency-Key": f"{self._url}-{number}"}
        response = await client.post("/v1/likelihoods", json=body, headers=headers)
        if response.status_code == 202:
            self.jobs.append(response.json()["id"])
        return response

    async def _request(self, client: httpx.AsyncClient, number: int) -> None:
        began = time.monotonic()
        try:
            if number < 0 or number % JOB_EVERY == 0:
                response = await self._create_job(client, number)
            else:
                response = await self._sample(client)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        same = response.status_code != 200 or response.content == self._expected
        self.statuses[str(response.status_code) if same else "other bytes"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)


def restart_all(cluster: Cluster, names: tuple[str, ...]) -> None:
    """Stop members by SIGTERM and start them again, one after another."""
    for name in names:
        cluster.restart(name, signal.SIGTERM)
        for api in APIS:
            wait_until(lambda api=api: cluster.ready(api), f"{api} is ready after the restart of {name}")  # type: ignore[misc]
        time.sleep(2)  # HAProxy sees it, too
