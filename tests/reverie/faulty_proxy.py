"""A proxy that loses requests and responses, cuts bodies off or returns errors, as a test asks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.http_servers import serving

HOP = {"host", "connection", "transfer-encoding", "content-length", "server", "date"}


@dataclass(frozen=True)
class RecordedRequest:
    """A request that the proxy received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FaultyProxy:
    """Applies the next of `faults` to each request, in order; when there are none left, it
    forwards.

    "drop" loses the request, "lose" the response. A number cuts the response's body off after that
    many bytes. A pair of status and headers is returned instead of the service's response. `adds`
    are headers that are added to every request.
    """

    def __init__(self, url: str) -> None:
        self.seen: list[RecordedRequest] = []
        self.faults: list[str | int | tuple[int, dict[str, str]]] = []
        self.adds: dict[str, str] = {}
        self.upstream = httpx.Client(base_url=url, timeout=60)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextlib.contextmanager
    def open(self) -> Iterator[FaultyProxy]:
        """Run the proxy."""
        with self.upstream, serving(self._server):
            yield self


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def do(self) -> None:
        """Record the request; forward it unless a fault is due."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.proxy.seen.append(RecordedRequest(self.command, self.path, headers, body))
        fault = self.proxy.faults.pop(0) if self.proxy.faults else None
        self.close_connection = fault is not None
        if fault == "drop":
            return
        if isinstance(fault, tuple):
            self._send_head(fault[0], fault[1], 0)
            return
        forwarded = {name: value for name, value in headers.items() if name not in HOP} | self.proxy.adds
        with self.proxy.upstream.stream(self.command, self.path, headers=forwarded, content=body) as response:
            if fault != "lose":
                self._forward(response, fault if isinstance(fault, int) else None)

    do_GET = do_POST = do_PATCH = do_DELETE = do  # noqa: N815

    def _forward(self, response: httpx.Response, cut: int | None) -> None:
        length = response.headers.get("content-length")
        self.close_connection |= length is None
        self._send_head(response.status_code, dict(response.headers), None if length is None else int(length))
        remaining = cut
        for chunk in response.iter_raw():
            self.wfile.write(chunk[:remaining])
            remaining = None if remaining is None else remaining - len(chunk)
            if remaining is not None and remaining <= 0:
                return

    def _send_head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name not in HOP:
                self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")  # so that the client does not reuse the connection
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""
