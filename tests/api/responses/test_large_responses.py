"""Large responses are complete, are sent in small pieces, and need bounded memory if clients do not
read.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.errors import FullError, OverloadedError
from api.http_protocol import limited_protocol
from api.responses.large_responses import (
    LARGE_BYTES,
    PIECE_BYTES,
    SENDING_BYTES,
    BodyFile,
    LargeResponses,
    LimitedFileResponse,
)
from core.settings import Settings
from tests.api.attack import MIB, answer, connect, status_of
from tests.stack import free_port
from tests.waiting import wait_until

BODY = os.urandom(8 * MIB)
LIMIT = 4 * MIB
CLIENTS = 30


def _write(out: BinaryIO) -> None:
    out.write(BODY)


def _files_without_name() -> int:
    """Return the number of open files of this process that have been unlinked."""
    links = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(path.readlink()))
    return sum("(deleted)" in link and "unfinished" in link for link in links)


class _Server:
    """A server with one path for each kind of large response."""

    def __init__(self, folder: Path) -> None:
        self.responses = LargeResponses(LIMIT, folder / "unfinished")
        self.file = folder / "weights"
        self.file.write_bytes(BODY)
        self.kinds: dict[str, Callable[[], Any]] = {
            "/memory": self._of_body,
            "/written": lambda: self.responses.written(_write, {}, "a/b"),
            "/pieces": self._of_pieces,
            "/file": self._of_file,
        }
        limits = Settings(state=folder, write_timeout_s=2)
        self.port = free_port()
        config = uvicorn.Config(
            self.application,
            http=limited_protocol(limits),
            port=self.port,
            lifespan="off",
            interface="asgi3",
            log_config=None,
        )
        self.server = uvicorn.Server(config)

    async def application(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response of the requested path."""
        try:
            response: Response = await self.kinds[scope["path"]]()
            await response(scope, receive, send)
        except OverloadedError as error:
            await error.response("id")(scope, receive, send)

    async def _of_body(self) -> Response:
        return self.responses.of_body(bytes(bytearray(BODY)), 200, {}, "a/b")

    async def _of_pieces(self) -> Response:
        return self.responses.of_pieces(lambda begin, end: BODY[begin:end], 0, len(BODY), 200, {}, "a/b")

    async def _of_file(self) -> Response:
        return LimitedFileResponse(self.responses, self.file, {}, "a/b", "weights")

    def unsent_bytes(self) -> int:
        """Return the bytes in the write buffers of all connections."""
        connections: Any = list(self.server.server_state.connections)
        return sum(connection.transport.get_write_buffer_size() for connection in connections)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_Server]:
    """A running server, in a thread."""
    running = _Server(tmp_path)
    thread = threading.Thread(target=running.server.run)
    thread.start()
    wait_until(lambda: running.server.started, "the server has started")
    yield running
    running.server.should_exit = True
    thread.join()


KINDS = ("/memory", "/written", "/pieces", "/file")


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_response_is_complete(server: _Server, kind: str) -> None:
    """Two large responses on one connection are complete, and no memory stays reserved after
    each.
    """
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        for _ in range(2):
            response = client.get(kind)
            assert response.headers["content-length"] == str(len(BODY))
            assert response.content == BODY
            wait_until(lambda: server.responses.held == 0, "nothing is held")


@pytest.mark.parametrize("kind", KINDS)
def test_clients_that_do_not_read_hold_a_bounded_memory(server: _Server, kind: str) -> None:
    """Clients that do not read reserve no more than the limit; further requests get 503 with
    `Retry-After`.

    After the write time-out, memory, connections and files are released.
    """
    request = f"GET {kind} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        _check_unread(server, request, stack)
        wait_until(lambda: server.responses.held == 0, "the time-out has passed", 20)
        wait_until(lambda: server.unsent_bytes() == 0, "the connections are closed")
        wait_until(lambda: _files_without_name() == 0, "the files are closed")
    assert httpx.get(f"http://127.0.0.1:{server.port}{kind}").content == BODY


def _check_unread(server: _Server, request: bytes, stack: contextlib.ExitStack) -> None:
    """Send a request on many connections that do not read; check the reserved memory, the write
    buffers and the statuses.
    """
    connections: list[socket.socket] = []
    heads = []
    for _ in range(CLIENTS):
        connection = stack.enter_context(connect(server.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(request)
        connections.append(connection)
    peak = 0
    for connection in connections:
        heads.append(connection.recv(300))
        peak = max(peak, server.unsent_bytes())
        assert server.responses.held <= LIMIT
    assert {status_of(head) for head in heads} == {200, 503}
    assert all(b"retry-after: 2" in head for head in heads if status_of(head) == 503)
    assert peak <= LIMIT


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_disconnects_holds_nothing(server: _Server, kind: str) -> None:
    """If the client disconnects, memory and files are released at once, not at the write
    time-out.
    """
    connection = connect(server.port)
    connection.sendall(f"GET {kind} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert status_of(connection.recv(300)) == 200
    wait_until(lambda: server.responses.held > 0, "the response is being sent")
    began = time.monotonic()
    connection.close()
    wait_until(lambda: server.responses.held == 0, "nothing is held")
    wait_until(lambda: _files_without_name() == 0, "the file is closed")
    assert time.monotonic() < began + 1.5  # before the write time-out


def test_a_slow_client_gets_all(server: _Server) -> None:
    """A client that pauses for less than the write time-out receives the complete response."""
    with connect(server.port) as connection:
        connection.sendall(b"GET /written HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        head = connection.recv(300)
        time.sleep(0.5)
        received = head + answer(connection)
    assert received.partition(b"\r\n\r\n")[2] == BODY


# --- without a server ---


class _Client:
    """Receives a response; it accepts data only while `reading` is set."""

    def __init__(self) -> None:
        self.reading = asyncio.Event()
        self.started = asyncio.Event()
        self.body = b""

    async def send(self, message: Message) -> None:
        self.started.set()
        await self.reading.wait()
        piece = message.get("body", b"")
        assert len(piece) <= PIECE_BYTES
        self.body += piece

    async def receive(self) -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    def task(self, response: Response) -> asyncio.Task[None]:
        """Start a task that sends the response to this client."""
        scope = {"type": "http", "asgi": {"spec_version": "2.3"}, "method": "GET", "headers": []}
        return asyncio.create_task(response(scope, self.receive, self.send))


def test_bodies_in_memory_leave_half_of_it_to_others(tmp_path: Path) -> None:
    """Bodies in memory take at most half of the budget; further ones are moved to files."""

    async def run() -> None:
        responses = LargeResponses(8 * MIB, tmp_path / "unfinished")
        clients = [_Client() for _ in range(4)]
        tasks = [client.task(responses.of_body(BODY[: 2 * MIB], 200, {}, "a/b")) for client in clients]
        await asyncio.gather(*(client.started.wait() for client in clients))
        assert responses.held == 2 * 2 * MIB + 2 * SENDING_BYTES
        assert _files_without_name() == 2
        for client in clients:
            client.reading.set()
        await asyncio.gather(*tasks)
        assert [client.body for client in clients] == [BODY[: 2 * MIB]] * 4
        assert responses.held == 0

    asyncio.run(run())
    assert _files_without_name() == 0


def test_a_full_disk_stops_no_response_that_fits_into_memory(tmp_path: Path) -> None:
    """On a full disk, a body that fits into memory is sent; a larger one raises before the status
    is sent.
    """

    async def run() -> None:
        responses = LargeResponses(8 * MIB, tmp_path / "unfinished")
        (tmp_path / "unfinished").write_text("in the way")
        client = _Client()
        client.reading.set()
        response = await responses.written(lambda out: out.write(BODY[: 2 * MIB]), {}, "a/b")
        await client.task(response)
        assert client.body == BODY[: 2 * MIB]
        with pytest.raises((FullError, OverloadedError)):
            await _Client().task(await responses.written(_write, {}, "a/b"))
        assert responses.held == 0

    asyncio.run(run())


def test_a_small_response_is_sent_at_once(tmp_path: Path) -> None:
    """A body of at most `LARGE_BYTES` is held in memory, also if it was written to a file."""

    async def run() -> None:
        responses = LargeResponses(8 * MIB, tmp_path / "unfinished")
        small = BODY[:LARGE_BYTES]
        written = await responses.written(lambda out: out.write(small), {}, "a/b")
        assert written.body == responses.of_body(small, 200, {}, "a/b").body == small

    asyncio.run(run())


def test_a_body_file_is_closed_when_it_is_released(tmp_path: Path) -> None:
    """A file of a body is closed when its last reference is gone."""
    responses = LargeResponses(8 * MIB, tmp_path / "unfinished")
    made = responses.write_file(_write)
    assert isinstance(made, BodyFile)
    assert made.read(5, 9) == BODY[5:9]
    assert _files_without_name() == 1
    del made
    assert _files_without_name() == 0
