"""Helpers for tests of hostile clients: an API process alone, raw connections, the memory of a
process, and the latency of other requests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx

from tests.forked import ForkedProcess
from tests.stack import ROOT, free_port, succeeds
from tests.waiting import wait_until

MIB = 1 << 20

STALL_S = 0.5
"""The most that another request may take during an attack: many times its usual latency, because
other tests run at the same time.
"""


class BareApi:
    """An API process without workers or queue server, for requests that do not reach them."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "OMP_NUM_THREADS": "1",
            "REVERIE_PORT": str(self.port),
            "REVERIE_QUEUE_URL": f"redis://127.0.0.1:{free_port()}/0",
            "REVERIE_STATE": str(folder / "state"),
            "REVERIE_CHECKPOINTS": str(ROOT / "checkpoints"),
            **{f"REVERIE_{name.upper()}": str(value) for name, value in settings.items()},
        }

    def __enter__(self) -> Self:
        self.process = ForkedProcess("api", ROOT, self._environment, self._folder / "api.log")
        wait_until(lambda: succeeds(lambda: httpx.get(f"{self.url}/healthz", timeout=5).is_success), "the API is up")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)

    @property
    def log(self) -> str:
        """The text that the process has written to its log."""
        return (self._folder / "api.log").read_text()


@contextlib.contextmanager
def paused(api: BareApi) -> Iterator[None]:
    """Suspend the API process while the block runs."""
    api.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        api.process.send_signal(signal.SIGCONT)


def connect(port: int) -> socket.socket:
    """Open a TCP connection to a port of this machine."""
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def answer(connection: socket.socket, timeout_s: float = 30) -> bytes:
    """Return all bytes that arrive until the server closes the connection; a reset counts as
    closing.
    """
    connection.settimeout(timeout_s)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


def send_all(connection: socket.socket, data: bytes) -> None:
    """Send the data; stop without an error if the server closes the connection."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def status_of(response: bytes) -> int:
    """Return the status code of a raw HTTP response; 0 if there is none."""
    return int(response.split(b" ", 2)[1]) if response.startswith(b"HTTP/1.1 ") else 0


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Latencies:
    """Latencies, in seconds, of one request that is repeated on one connection."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.failures: list[str] = []

    @property
    def worst(self) -> float:
        """The longest latency."""
        return max(self.seconds)

    @property
    def median(self) -> float:
        """The median latency."""
        return sorted(self.seconds)[len(self.seconds) // 2]


@contextlib.contextmanager
def watched(url: str, method: str = "GET", path: str = "/healthz", body: object = None) -> Iterator[Latencies]:
    """Repeat a request every 10 ms while the block runs, and record its latencies.

    A status other than 200 and a connection error are recorded as failures.
    """
    found = Latencies()
    stop = threading.Event()

    def inference_request() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while True:
                began = time.perf_counter()
                try:
                    response = client.request(method, path, json=body)
                    if response.status_code != 200:
                        found.failures.append(response.text[:200])
                except httpx.HTTPError as error:
                    found.failures.append(repr(error))
                found.seconds.append(time.perf_counter() - began)
                if stop.wait(0.01):
                    return

    thread = threading.Thread(target=inference_request)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()
