"""A second API process for a running service, which wants keys: its workers and its jobs are the
same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.forked import ForkedProcess
from tests.stack import READY_S, ROOT, Stack, free_port, succeeds
from tests.waiting import wait_until


@contextlib.contextmanager
def keyed_api(stack: Stack, keys: Path) -> Iterator[str]:
    """Run an API process with the key file `keys`; yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {**stack.environment, "REVERIE_PORT": str(port), "REVERIE_API_KEYS": str(keys)}
    process = ForkedProcess("api", ROOT, environment, stack.state / f"api-{port}.log")
    try:
        wait_until(
            lambda: succeeds(lambda: httpx.get(f"{url}/readyz", timeout=5).status_code == 200),
            "the API process with keys is ready",
            READY_S,
        )
        yield url
    finally:
        process.terminate()
        process.wait(30)
