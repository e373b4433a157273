"""A bad line to a real service: it loses requests and answers, cuts streams off and says it is busy, as a test asks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

HOP = {"host", "connection", "transfer-encoding", "content-length", "server", "date"}


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Rough:
    """The line and what it does to the next requests, in order; then it is a good one.

    "drop" loses the request, "lose" the answer, a number cuts the answer's body off after so many bytes, and a pair of
    status and headers is answered in the service's stead. Headers in `adds` go to the service with every request.
    """

    def __init__(self, url: str) -> None:
        self.seen: list[Seen] = []
        self.faults: list[str | int | tuple[int, dict[str, str]]] = []
        self.adds: dict[str, str] = {}
        self.line = httpx.Client(base_url=url, timeout=60)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"rough": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Rough]:
        """While it is up."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
            self.line.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    rough: Rough

    def do(self) -> None:
        """Note the request, and pass it on unless a fault is due."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.rough.seen.append(Seen(self.command, self.path, headers, body))
        fault = self.rough.faults.pop(0) if self.rough.faults else None
        self.close_connection = fault is not None
        if fault == "drop":
            return
        if isinstance(fault, tuple):
            self._head(fault[0], fault[1], 0)
            return
        sent = {name: value for name, value in headers.items() if name not in HOP} | self.rough.adds
        with self.rough.line.stream(self.command, self.path, headers=sent, content=body) as answer:
            if fault != "lose":
                self._pass(answer, fault if isinstance(fault, int) else None)

    do_GET = do_POST = do_PATCH = do_DELETE = do  # noqa: N815

    def _pass(self, answer: httpx.Response, cut: int | None) -> None:
        length = answer.headers.get("content-length")
        self.close_connection |= length is None
        self._head(answer.status_code, dict(answer.headers), None if length is None else int(length))
        left = cut
        for chunk in answer.iter_raw():
            self.wfile.write(chunk[:left])
            left = None if left is None else left - len(chunk)
            if left is not None and left <= 0:
                return

    def _head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name not in HOP:
                self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")  # or the client's next request may meet a connection that ends
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
