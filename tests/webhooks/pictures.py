"""A file server for tests of inputs by URL."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.http_servers import serving


class FileServer:
    """Serves `files` by path; a value may also be a function that handles the request."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Callable[[Any], None]] = {}
        self.requests: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                file = outer.files.get(self.path, b"")
                if callable(file):
                    file(self)
                    return
                self.send_response(200 if file else 404)
                self.send_header("Content-Length", str(len(file)))
                self.end_headers()
                self.wfile.write(file)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[FileServer]:
        """Serve while the block runs."""
        with serving(self._server):
            yield self


def endless(handler: Any, announced: int | None = None) -> None:
    """Send zeros until the client closes the connection."""
    handler.send_response(200)
    if announced is not None:
        handler.send_header("Content-Length", str(announced))
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        pass


def redirect(location: str) -> Callable[[Any], None]:
    """Return a function that responds with a redirect."""

    def respond(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return respond


def stalled(handler: Any) -> None:
    """Send the headers, and no body for 20 s."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.flush()
    time.sleep(20)
