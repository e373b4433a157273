"""A memory budget for unfinished bodies: bodies that do not fit get 503, and the others are
read.
"""

import asyncio
import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from api.errors import OverloadedError, StalledError, TooLargeError
from api.request_bodies import UNCOUNTED_BYTES, RequestBodies
from core.settings import Settings
from tests.api.attack import MIB, STALL_S, BareApi, answer, connect, rss_bytes, send_all, status_of, watched
from tests.api.helpers import problem
from tests.waiting import wait_until

TEXT = {"Content-Type": "text/plain"}


def _open(api: BareApi, path: str, size: int, sent: int) -> socket.socket:
    """Send the head of a request and the first `sent` bytes of its body; return the connection."""
    connection = connect(api.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
    head += "Content-Type: application/octet-stream\r\n\r\n"
    connection.sendall(head.encode())
    connection.settimeout(5)
    with contextlib.suppress(TimeoutError):
        send_all(connection, bytes(sent))
    return connection


@pytest.mark.slow
@pytest.mark.timing
def test_unfinished_bodies_take_a_bounded_memory(tmp_path: Path) -> None:
    """Of thirty unfinished bodies of 31 MiB some are held until their time-out and the rest get
    503; small requests are served.
    """
    with BareApi(tmp_path, max_inflight_body_bytes=64 * MIB, body_timeout_s=6) as api:
        rss = rss_bytes(api.process.pid)
        with watched(api.url) as latencies, ThreadPoolExecutor(30) as pool:
            size = 31 * MIB
            opened = list(pool.map(lambda _: _open(api, "/v1/upscales", size, size - 9), range(30)))
            assert rss_bytes(api.process.pid) < rss + 100 * MIB
            small = httpx.post(f"{api.url}/v1/samples", content=b" " * UNCOUNTED_BYTES, headers=TEXT)
            assert small.status_code == 415
            responses = list(pool.map(answer, opened))
        statuses = [status_of(response) for response in responses]
        assert set(statuses) <= {408, 503, 0}, statuses  # a reset may come before the response is read
        assert statuses.count(503) >= 1
        assert not latencies.failures
        assert latencies.worst < 2 * STALL_S
        for connection in opened:
            connection.close()
        wait_until(lambda: rss_bytes(api.process.pid) <= rss + 48 * MIB, "the memory is given back", 20)
        assert httpx.post(f"{api.url}/v1/samples", content=bytes(30 * MIB), headers=TEXT).status_code == 415


@pytest.mark.timing
def test_some_of_many_large_bodies_pass(tmp_path: Path) -> None:
    """Bodies beyond the budget get 503 with `Retry-After`; uploads to the disk do not count."""
    with BareApi(tmp_path, max_inflight_body_bytes=64 * MIB) as api:
        held = _open(api, "/v1/datasets?name=x", 200 * MIB, 100 * MIB)

        def send(_: int) -> httpx.Response:
            return httpx.post(f"{api.url}/v1/samples", content=bytes(20 * MIB), headers=TEXT, timeout=60)

        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(send, range(8)))
        statuses = [response.status_code for response in responses]
        assert set(statuses) <= {415, 503}
        assert statuses.count(415) >= 2, statuses
        for response in responses:
            if response.status_code == 503:
                problem(response, 503, "at a time")
                assert response.headers["retry-after"] == "2"
        held.close()


def _read(messages: list[Message], path: str = "/v1/samples", **settings: float) -> tuple[RequestBodies, list[object]]:
    bodies = RequestBodies(Settings(**settings))  # type: ignore[arg-type]
    seen: list[object] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(60)
        raise AssertionError

    async def read() -> None:
        reader = bodies.reader("POST", path, [(b"transfer-encoding", b"chunked")], receive)
        try:
            while (message := await reader()).get("more_body"):
                seen.append(len(message["body"]))
            seen.append(bodies.memory.held)
        except (OverloadedError, StalledError, TooLargeError) as error:
            seen.append(type(error))
        reader.release()

    asyncio.run(read())
    return bodies, seen


def _pieces(count: int, size: int) -> list[Message]:
    return [{"type": "http.request", "body": bytes(size), "more_body": number < count - 1} for number in range(count)]


@pytest.mark.parametrize(
    ("path", "last"), [("/v1/samples", 6 * MIB - UNCOUNTED_BYTES), ("/v1/datasets", 0), ("/v1/models/x/versions", 0)]
)
def test_held_memory_is_counted_and_given_back(path: str, last: int) -> None:
    """The budget counts a body, except its first bytes and uploads to the disk, and is released
    afterwards.
    """
    bodies, seen = _read(_pieces(6, MIB), path)
    assert seen == [MIB] * 5 + [last]
    assert bodies.memory.held == 0


def test_a_body_without_a_length_is_limited() -> None:
    """A body without Content-Length is limited by its route's size, the memory budget and the
    time-out.
    """
    assert _read(_pieces(6, MIB), max_body_bytes=2 * MIB)[1][-1] is TooLargeError
    assert _read(_pieces(6, MIB), max_inflight_body_bytes=2 * MIB)[1][-1] is OverloadedError
    assert _read(_pieces(6, MIB)[:3], body_total_timeout_s=0.1)[1][-1] is StalledError
    assert _read(_pieces(6, 20 << 10), "/v1/trainings")[1][-1] is TooLargeError
