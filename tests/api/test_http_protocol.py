"""Excessive connections: large heads, chunks, pipelines and slow clients. Other requests are served
and memory stays bounded.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import httpx
import orjson
import pytest
import uvicorn
from uvicorn.server import ServerState

from api.http_protocol import MAX_HEADERS, MAX_PIPELINED, limited_protocol
from api.transfer_limits import StalledWrites
from core.settings import Settings
from tests.api.attack import (
    MIB,
    STALL_S,
    BareApi,
    answer,
    connect,
    cpu_seconds,
    paused,
    rss_bytes,
    send_all,
    status_of,
    watched,
)
from tests.waiting import wait_until

pytestmark = pytest.mark.timing

POST = b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareApi]:
    """An API process with short time-outs."""
    times = {"header_timeout_s": 1, "idle_timeout_s": 2, "body_timeout_s": 1, "write_timeout_s": 1}
    with BareApi(tmp_path_factory.mktemp("protocol"), **times) as running:
        yield running


def _raw(api: BareApi, data: bytes, timeout_s: float = 30) -> bytes:
    with connect(api.port) as connection:
        send_all(connection, data)
        return answer(connection, timeout_s)


@pytest.mark.parametrize(
    ("make", "status"),
    [
        (lambda: b"GET /" + b"a" * (40 * MIB) + b" HTTP/1.1\r\n\r\n", 414),
        (lambda: b"GET /?" + b"a=b&" * (10 * MIB) + b" HTTP/1.1\r\n\r\n", 414),
        (lambda: GET + b"X: " + b"a" * (40 * MIB) + b"\r\n\r\n", 431),
        (lambda: GET + b"a" * (40 * MIB) + b": x\r\n\r\n", 431),
        (lambda: GET + b"a:\r\n" * 1_000_000 + b"\r\n", 431),
        (lambda: GET + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431),
        (lambda: GET + b"Cookie: a=b\r\n" * 8000 + b"\r\n", 431),
        (lambda: CHUNKED + b"1\r\na\r\n0\r\nX: " + b"a" * (40 * MIB) + b"\r\n\r\n", 431),
        (lambda: CHUNKED + b"1\r\na\r\n0\r\n" + b"a:\r\n" * 1_000_000 + b"\r\n", 431),
        (lambda: CHUNKED + b"1;" + b"a" * (40 * MIB) + b"\r\na\r\n0\r\n\r\n", 431),
        (lambda: CHUNKED + b"1\r\n \r\n" * 5_000_000, 400),
        (lambda: GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (lambda: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(MIB), 400),
        (lambda: bytes(range(256)) * (80 * 1024), 400),
        (lambda: b"CONNECT localhost:80 HTTP/1.1\r\n\r\n", 400),
    ],
    ids=[
        *("path", "query", "value", "name", "many headers", "a few headers too many", "cookies", "trailer", "trailers"),
        *("chunk extension", "chunks of one byte", "two lengths", "TLS", "garbage", "CONNECT"),
    ],
)
def test_an_excessive_request_is_rejected_at_once(api: BareApi, make: Callable[[], bytes], status: int) -> None:
    """An excessive or malformed request is rejected with a problem at little cost of CPU and
    memory; other requests stay fast.

    `make` returns the request; each process that collects the tests would otherwise hold all of
    them.
    """
    data = make()
    rss, cpu = rss_bytes(api.process.pid), cpu_seconds(api.process.pid)
    with watched(api.url) as latencies:
        response = _raw(api, data)
    assert status_of(response) == status, response[:300]
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head.lower()
    found = orjson.loads(body)
    assert found["status"] == status
    assert 10 < len(found["detail"]) < 300
    assert found["request_id"].encode() in head
    assert not latencies.failures
    assert latencies.worst < STALL_S
    assert rss_bytes(api.process.pid) < rss + 16 * MIB
    assert cpu_seconds(api.process.pid) < cpu + 0.5


def test_headers_just_within_the_limit_are_read(api: BareApi) -> None:
    """63 kB of headers, or of a query, are accepted, however they are cut into packets."""
    for data in (
        GET + b"X: " + b"a" * 63_000 + b"\r\nConnection: close\r\n\r\n",
        b"GET /healthz?" + b"a" * 63_000 + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ):
        for step in (len(data), 9000):
            with connect(api.port) as connection:
                for at in range(0, len(data), step):
                    connection.sendall(data[at : at + step])
                    time.sleep(0.005)
                assert status_of(answer(connection)) == 200


def test_responses_to_pipelined_requests_keep_their_order(api: BareApi) -> None:
    """Pipelined responses are in order; a client that pipelines 300 000 requests without reading is
    cut off.
    """
    few = _raw(
        api, GET + b"\r\n" + b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET + b"Connection: close\r\n\r\n"
    )
    assert [int(part[:3]) for part in few.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]
    rss = rss_bytes(api.process.pid)
    with watched(api.url) as latencies:
        many = _raw(api, (GET + b"\r\n") * 300_000)
    assert 1 <= many.count(b"HTTP/1.1 200") <= MAX_PIPELINED + 2
    assert many.count(b"HTTP/1.1 ") == many.count(b"HTTP/1.1 200")
    assert latencies.worst < STALL_S
    assert rss_bytes(api.process.pid) < rss + 16 * MIB


def test_a_long_body_before_a_long_head_is_no_long_head(api: BareApi) -> None:
    """Bytes of a body do not count toward the limit of the next request's head in the same
    packet.
    """
    body = b" " * 60_000
    first = POST + b"Content-Length: 60000\r\n\r\n" + body
    second = GET + b"X: " + b"a" * 50_000
    with connect(api.port) as connection:
        connection.sendall(first + second[:20_000])
        time.sleep(0.2)
        connection.sendall(second[20_000:] + b"\r\nConnection: close\r\n\r\n")
        response = answer(connection)
    assert [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]] == [400, 200]


def test_another_protocol_is_declined(api: BareApi) -> None:
    """An upgrade to WebSocket or HTTP/2 is ignored; the connection closes after such a request with
    a body.
    """
    for offer in (b"websocket", b"h2c"):
        upgrade = b"Connection: Upgrade\r\nUpgrade: " + offer + b"\r\n"
        last = GET + b"Connection: close\r\n\r\n"
        for body in (b"Content-Length: 3\r\n\r\n[1]", b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1]\r\n0\r\n\r\n"):
            response = _raw(api, POST + upgrade + body + last)
            statuses = [int(part[:3]) for part in response.split(b"HTTP/1.1 ")[1:]]
            assert statuses == [400], response
            assert b"connection: close" in response
            assert b"must be a JSON object" in response
        assert _raw(api, GET + upgrade + b"\r\n" + last).count(b"HTTP/1.1 200") == 2


def test_http_1_0_and_continue_work(api: BareApi) -> None:
    """HTTP/1.0 closes after the response; `Expect: 100-continue` gets 100, or an error before the
    body is sent.
    """
    assert status_of(_raw(api, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
    expect = b"Expect: 100-continue\r\nConnection: close\r\n"
    with connect(api.port) as connection:
        connection.sendall(POST + expect + b"Content-Length: 3\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"[1]")
        assert status_of(answer(connection)) == 400
    assert status_of(_raw(api, POST + expect + b"Content-Length: 99999999\r\n\r\n")) == 413


# --- time-outs ---


def test_headers_that_do_not_arrive_time_out(api: BareApi) -> None:
    """A request head that is incomplete after the time-out gets 408; a connection without any bytes
    is closed.
    """
    with connect(api.port) as silent, connect(api.port) as half, connect(api.port) as later, connect(api.port) as drip:
        half.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        drip.sendall(b"GET /")
        later.sendall(GET + b"\r\n" + b"GET /")
        until = time.monotonic() + 2.5
        drip.settimeout(0.1)
        dripped = b""
        while time.monotonic() < until and b"\r\n\r\n" not in dripped:
            try:
                drip.sendall(b"G" if not dripped else b"")
                dripped += drip.recv(1000)
            except TimeoutError:
                continue
        assert status_of(answer(half, 1)) == 408
        assert answer(later, 1).count(b"HTTP/1.1 408") == 1
        assert answer(silent, 1) == b""
        assert status_of(dripped) == 408


def test_bodies_that_trickle_are_not_waited_for(api: BareApi, subtests: pytest.Subtests) -> None:
    """A body that stops, or comes byte by byte, gets 408 on every route that takes one."""
    paths = ("/v1/samples", "/v1/upscales", "/v1/trainings", "/v1/datasets?name=slow", "/v1/models/some/versions")
    cases = [(path, pause_s) for path in paths for pause_s in (0.2, 60)]
    with ThreadPoolExecutor(len(cases)) as pool:
        responses = list(pool.map(lambda case: _trickle(api, *case), cases))
    for (path, pause_s), response in zip(cases, responses, strict=True):
        with subtests.test(path, pause_s=pause_s):
            assert status_of(response) == 408, response


def _trickle(api: BareApi, path: str, pause_s: float) -> bytes:
    """Send a body one byte at a time; return what arrives within 4 s."""
    kind = "application/zip" if "datasets" in path else "application/octet-stream"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
    with connect(api.port) as connection:
        connection.sendall(head.encode())
        connection.settimeout(min(pause_s, 4))
        received, until = b"", time.monotonic() + 4
        while time.monotonic() < until and not received:
            try:
                connection.sendall(b"x")
                received = connection.recv(1000)
            except TimeoutError:
                continue
        return received


def test_a_slow_honest_upload_goes_on(api: BareApi) -> None:
    """An upload above the minimum rate is accepted although it takes several times the time-out."""
    size = 60 * 400
    head = f"POST /v1/datasets?name=honest HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"
    head += "Content-Type: application/zip\r\n\r\n"
    with connect(api.port) as connection:
        connection.sendall(head.encode())
        for _ in range(60):
            connection.sendall(bytes(400))
            time.sleep(0.05)
        connection.settimeout(20)
        assert status_of(connection.recv(1000)) == 422  # complete, but no ZIP


def test_an_idle_connection_is_closed(api: BareApi) -> None:
    """A connection is closed after the idle time-out, also if the last request's body is
    incomplete.
    """
    unfinished = GET + b"Content-Length: 10\r\n\r\n12345"
    with connect(api.port) as idle, connect(api.port) as early:
        idle.sendall(GET + b"\r\n")
        early.sendall(unfinished)
        began = time.monotonic()
        assert status_of(answer(idle, 10)) == 200
        assert 1.5 < time.monotonic() - began < 5
        assert status_of(answer(early, 10)) == 200


def test_time_in_which_the_api_did_not_read_does_not_count(api: BareApi) -> None:
    """Requests that arrive while the API is stopped for longer than its time-outs get responses."""
    closing = b"Connection: close\r\n\r\n"
    with connect(api.port) as new, connect(api.port) as idle, connect(api.port) as uploading:
        send_all(idle, GET + b"\r\n")
        send_all(uploading, POST + b"Content-Length: 9\r\nConnection: close\r\n\r\n" + b"x" * 8)
        assert status_of(idle.recv(1 << 16)) == 200
        with paused(api):
            send_all(new, GET + closing)
            send_all(idle, GET + closing)
            send_all(uploading, b"x")
            time.sleep(3)
        assert status_of(answer(new)) == 200
        assert status_of(answer(idle)) == 200
        assert status_of(answer(uploading)) == 400  # not JSON


def test_a_client_that_stops_reading_is_cut_off(api: BareApi) -> None:
    """A client that stops reading is cut off; a slow one that goes on reading gets all
    responses.
    """
    paths = ["/docs/static/swagger-ui-bundle.js"] * 40
    inference_request = b"".join(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths)
    size = len(httpx.get(api.url + paths[0]).content)
    with socket.socket() as stalled, socket.socket() as slow:
        for client in (stalled, slow):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
            client.connect(("127.0.0.1", api.port))
            client.sendall(inference_request)
        received, until = 0, time.monotonic() + 4
        while time.monotonic() < until:
            received += len(slow.recv(8192))
            time.sleep(0.01)
        received += sum(len(piece) for piece in iter(lambda: slow.recv(1 << 20) if received < size * 40 else b"", b""))
        assert "client stopped reading" in api.log
        assert len(answer(stalled)) < 40 * size


def test_clients_that_read_too_slowly_share_a_bounded_memory(tmp_path: Path) -> None:
    """If unread responses exceed the memory limit, the connections stalled for longest are cut off
    before the write time-out.
    """
    path = "/docs/static/swagger-ui-bundle.js"
    with contextlib.ExitStack() as opened:
        api = opened.enter_context(BareApi(tmp_path, max_inflight_response_bytes=MIB, write_timeout_s=60))
        whole = httpx.get(api.url + path).content
        for _ in range(40):
            client = opened.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", api.port))
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 20)
        wait_until(lambda: "client reads too slowly" in api.log, "some are cut off", 20)
        assert httpx.get(api.url + path).content == whole


@pytest.mark.parametrize("limit", [3, 10])
def test_the_write_buffers_of_all_connections_are_limited(limit: int) -> None:
    """`add` returns the connections to close, stalled for longest first, once all buffers exceed
    the limit.
    """
    stalled = StalledWrites(limit)
    buffers = [cast("asyncio.Transport", _Buffer(size)) for size in (2, 1, 2, 4)]
    excess = [one for buffer in buffers for one in stalled.add(buffer)]
    assert excess == {3: [buffers[0], buffers[1], buffers[2], buffers[3]], 10: []}[limit]
    assert stalled.held == {3: 0, 10: 9}[limit]
    assert stalled.add(buffers[2]) == []  # counted once
    for buffer in buffers:
        stalled.remove(buffer)
    assert stalled.held == 0


class _Buffer:
    """A transport with a write buffer of a given size."""

    def __init__(self, size: int) -> None:
        self._size = size

    def get_write_buffer_size(self) -> int:
        return self._size


# --- many connections ---


def test_idle_connections_make_room_for_new_ones(tmp_path: Path) -> None:
    """At the limit of connections, idle and unfinished ones are closed for new ones; if all have
    requests, a new one gets 503.
    """
    with BareApi(tmp_path, max_connections=100, header_timeout_s=30, body_timeout_s=30) as api:
        rss = rss_bytes(api.process.pid)
        starts = (b"", b"GET / HT", POST + b"Content-Length: 9\r\n\r\n", GET + b"\r\n")
        held = []
        with httpx.Client(base_url=api.url) as known:
            assert known.get("/healthz").status_code == 200
            for number in range(600):
                connection = connect(api.port)
                send_all(connection, starts[number % 2])
                held.append(connection)
                if number % 20 == 0:
                    assert httpx.get(f"{api.url}/healthz").status_code == 200
        assert rss_bytes(api.process.pid) < rss + 16 * MIB
        for connection in held:
            connection.close()
        working = [connect(api.port) for _ in range(110)]  # none of these is idle, so a further one gets 503
        for connection in working:
            send_all(connection, starts[2] + b"x" * 8)
        time.sleep(0.5)
        with connect(api.port) as refused:
            response = answer(refused, 5)
        assert status_of(response) == 503
        assert b"retry-after" in response
        for connection in working:
            connection.close()
        time.sleep(0.5)
        assert httpx.get(f"{api.url}/healthz").status_code == 200


def test_connections_wait_for_an_api_that_is_late(tmp_path: Path) -> None:
    """Two thousand clients can connect while the API is suspended, and get their responses."""
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    if most < 4096:
        pytest.skip(f"the kernel lets {most} connections wait, not 4096; see the sysctl net.core.somaxconn")
    with BareApi(tmp_path) as api, contextlib.ExitStack() as opened:
        with paused(api):
            clients = [opened.enter_context(connect(api.port)) for _ in range(2000)]
            for client in clients:
                send_all(client, GET + b"Connection: close\r\n\r\n")
        assert {status_of(answer(client)) for client in clients} == {200}


@pytest.mark.parametrize("unsent_bytes", [0, 10])
def test_a_connection_whose_response_is_not_sent_is_not_closed_for_new_ones(unsent_bytes: int) -> None:
    """At the limit of connections, the one that has been idle for longest is closed, unless a part of
    its response is still in the write buffer.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def connections() -> list[Mock]:
        protocol_type = limited_protocol(Settings(max_connections=8))
        config = uvicorn.Config(app, http=protocol_type, ws="none", log_config=None, access_log=False)
        config.load()
        state, transports = ServerState(), [Mock(asyncio.Transport) for _ in range(9)]
        for number, transport in enumerate(transports):
            transport.get_write_buffer_size.return_value = unsent_bytes if number == 0 else 0
            transport.is_closing.return_value = False
            protocol = protocol_type(config, state, {})
            protocol.connection_made(transport)
            protocol.data_received(GET + b"\r\n")
            await asyncio.gather(*state.tasks)
        return transports

    aborted = [transport.abort.called for transport in asyncio.run(connections())]
    assert aborted.index(True) == (1 if unsent_bytes else 0)
    assert sum(aborted) == 1
