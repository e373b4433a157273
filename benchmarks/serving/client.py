"""Load and checks: wrk loads one server, a second client samples its responses and decodes them."""

import base64
import contextlib
import http.client
import io
import json
import secrets
import shutil
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

LUA = Path(__file__).with_name("samples.lua")
SAMPLES_PER_S = 5


@dataclass(frozen=True)
class Target:
    """The address of a server, and the form in which it expects a seed: a
    field, or a list of one.
    """

    url: str
    shape: str
    model: str

    def inference_request(self, connection: http.client.HTTPConnection, seed: int) -> tuple[int, bytes]:
        """Send one request on an open connection; return status and body."""
        fields = {"seeds": [seed]} if self.shape == "list" else {"model": self.model, "count": 1, "seed": seed}
        path = urllib.parse.urlsplit(self.url).path
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()

    def connection(self, timeout_s: float = 60) -> "contextlib.closing[http.client.HTTPConnection]":
        """Open a connection to the server, closed at the end of the block."""
        return contextlib.closing(http.client.HTTPConnection(urllib.parse.urlsplit(self.url).netloc, timeout=timeout_s))


@dataclass(frozen=True)
class Load:
    """One wrk run: successful requests per second, latencies in milliseconds, and errors."""

    connections: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    non_2xx: int
    socket_errors: int
    bytes_per_answer: float


@dataclass(frozen=True)
class Samples:
    """Numbers of responses by how they compare with local results.

    `exact`: equal to the bit; `near`: within one grey level; `bad`: otherwise.
    """

    taken: int
    exact: int
    near: int
    bad: int
    first_fault: str

    def __add__(self, other: "Samples") -> "Samples":
        """Return the sum of both counts."""
        return Samples(
            self.taken + other.taken,
            self.exact + other.exact,
            self.near + other.near,
            self.bad + other.bad,
            self.first_fault or other.first_fault,
        )


NO_SAMPLES = Samples(0, 0, 0, 0, "")


def wrk_path() -> str:
    """Return the path of wrk; exit with instructions if it is not installed."""
    path = shutil.which("wrk")
    if path is None:
        raise SystemExit("wrk is not installed: `apt-get install -y wrk` on Debian, `brew install wrk` on macOS")
    return path


def drive(target: Target, connections: int, seconds: float) -> Load:
    """Keep `connections` requests in flight for `seconds`.

    Each request has a seed that was not used before in this run.
    """
    command = [wrk_path(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "30s"]
    command += ["-s", str(LUA), target.url, "--", str(1_000_000 + secrets.randbelow(2**40)), target.model, target.shape]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds + 60).stdout
    found = json.loads(text.partition("RESULT ")[2])
    well = found["requests"] - found["non_2xx"]
    return Load(
        connections,
        1e6 * well / found["duration_us"],
        found["p50_us"] / 1000,
        found["p99_us"] / 1000,
        found["max_us"] / 1000,
        found["non_2xx"],
        found["connect"] + found["read"] + found["write"] + found["timeout"],
        found["bytes"] / max(1, found["requests"]),
    )


def settle(target: Target) -> None:
    """Wait until the server has processed a load, that is, until a few single requests succeed."""
    with target.connection() as connection:
        for _ in range(3):
            target.inference_request(connection, 0)
    time.sleep(0.2)


def drive_and_check(
    target: Target, connections: int, seconds: float, expected: Sequence[Mapping[str, Any]]
) -> tuple[Load, Samples]:
    """Drive a load and check samples of its responses.

    They are checked during the load, or with a single connection after it.
    """
    if connections == 1:
        return drive(target, connections, seconds), sample(target, expected, threading.Event(), most=10)
    stop, found = threading.Event(), list[Samples]()
    beside = threading.Thread(target=lambda: found.append(sample(target, expected, stop, most=len(expected))))
    beside.start()
    try:
        load = drive(target, connections, seconds)
    finally:
        stop.set()
        beside.join()
    return load, found[0] if found else Samples(1, 0, 0, 1, "the side client got no answer at all")


def sample(target: Target, expected: Sequence[Mapping[str, Any]], stop: threading.Event, most: int) -> Samples:
    """Send a few requests per second until `stop` is set or `most` are sent; then
    check the responses.
    """
    answers: list[tuple[int, int, bytes]] = []
    with target.connection() as connection:
        for seed in range(min(most, len(expected))):
            try:
                answers.append((seed, *target.inference_request(connection, seed)))
            except (OSError, http.client.HTTPException) as error:
                answers.append((seed, 0, repr(error).encode()))
                connection.close()
            if stop.wait(1 / SAMPLES_PER_S):
                break
    total = NO_SAMPLES
    for seed, status, body in answers:
        total += judge(status, body, expected[seed], target.shape)
    return total


def judge(status: int, body: bytes, expected: Mapping[str, Any], shape: str) -> Samples:
    """Compare one response with the local result.

    Fields must be equal; pixels may differ by one grey level.
    """
    try:
        apart = _apart(status, body, expected, shape)
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        return Samples(1, 0, 0, 1, f"seed {expected['seed']}: {error}")
    return Samples(1, int(apart == 0), int(apart == 1), 0, "")


def _apart(status: int, body: bytes, expected: Mapping[str, Any], shape: str) -> int:
    """Return the difference of a response's pixels in grey levels; raises for a wrong response."""
    if status != http.HTTPStatus.OK:
        raise ValueError(f"status {status}: {body[:200]!r}")
    answer = json.loads(body)
    found = answer[0] if shape == "list" else answer
    for name in ("model", "version", "seed"):
        if found[name] != expected[name]:
            raise ValueError(f"{name} is {found[name]!r}, not {expected[name]!r}")
    if len(found["images"]) != 1:
        raise ValueError(f"{len(found['images'])} images instead of one")
    apart = _distance(found["images"][0], expected["images"][0])
    if apart > 1:
        raise ValueError(f"a pixel is {apart} grey levels away")
    return apart


def _distance(found: str, expected: str) -> int:
    """Return the largest difference of two base64 PNGs of 28 × 28 grey pixels."""
    left, right = (Image.open(io.BytesIO(base64.b64decode(text, validate=True))) for text in (found, expected))
    if left.format != "PNG" or left.mode != "L" or left.size != (28, 28):
        raise ValueError(f"a {left.format} of mode {left.mode} and size {left.size}")
    return max(ImageChops.difference(left, right).tobytes())


def wait_until_answering(target: Target, ready_path: str, alive: Callable[[], bool], timeout_s: float) -> float:
    """Poll until the server responds to a real request; return the seconds it took.

    Raises RuntimeError if the server died or did not respond in time.
    """
    start = time.monotonic()
    while time.monotonic() - start < timeout_s:
        if not alive():
            raise RuntimeError("the server exited before it was ready")
        with contextlib.suppress(OSError, http.client.HTTPException), target.connection(timeout_s=3) as connection:
            if _ready(connection, ready_path) and target.inference_request(connection, 0)[0] == http.HTTPStatus.OK:
                return time.monotonic() - start
        time.sleep(0.1)
    raise RuntimeError(f"the server was not ready after {timeout_s:.0f} s")


def _ready(connection: http.client.HTTPConnection, path: str) -> bool:
    """Return whether the server's readiness endpoint reports ready; True without an endpoint."""
    if not path:
        return True
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status == http.HTTPStatus.OK
