"""Every process is restarted in turn behind HAProxy, and no request fails."""

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

from tests.cluster.members import APIS, INFERENCE, TRAINING, Cluster
from tests.stack import free_port, succeeds
from tests.waiting import wait_until

RATE = 100.0
"""Requests per second."""

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
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self.statuses: Counter[str] = Counter()
        self.slowest_s = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50, keepalive_expiry=5)
        async with httpx.AsyncClient(base_url=self._url, timeout=60, limits=limits) as client:
            self._expected = (await self._post(client)).content
            pending: set[asyncio.Task[None]] = set()
            began, number = time.monotonic(), 0
            while not self._stop.is_set():
                task = asyncio.create_task(self._request(client))
                pending.add(task)
                task.add_done_callback(pending.discard)
                number += 1
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            await asyncio.gather(*pending)

    async def _post(self, client: httpx.AsyncClient) -> httpx.Response:
        body = {"model": "vae-mnist-2d", "seed": 7}
        return await client.post("/v1/samples", json=body, headers={"Accept": "image/png", "Prefer": "wait=30"})

    async def _request(self, client: httpx.AsyncClient) -> None:
        began = time.monotonic()
        try:
            response = await self._post(client)
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        same = response.status_code != 200 or response.content == self._expected
        self.statuses[str(response.status_code) if same else "other bytes"] += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)


@pytest.mark.timeout(900)
@pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="NOT TESTED: apt-get install --no-install-recommends haproxy"
)
def test_no_request_fails_while_every_process_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    """At 100 requests per second, each API, inference and training process is stopped by SIGTERM
    and started again: all responses are 200 with the same bytes.
    """
    with haproxy(cluster, tmp_path) as url, Load(url) as load:
        time.sleep(3)
        for name in (*APIS, *INFERENCE, *TRAINING):
            cluster.stop(name, signal.SIGTERM)
            cluster.start(name)
            for api in APIS:
                wait_until(lambda api=api: cluster.ready(api), f"{api} is ready after the restart of {name}")  # type: ignore[misc]
            time.sleep(2)  # HAProxy sees it, too
    print(dict(load.statuses), f"slowest {load.slowest_s:.2f} s")  # noqa: T201
    assert set(load.statuses) == {"200"}, load.statuses
    assert load.statuses["200"] > 1000
