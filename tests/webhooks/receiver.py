"""A receiver of webhooks: an HTTP server that appends each request to a file as a line of JSON.

As a program, `python -m tests.webhooks.receiver PORT FILE`, it can be killed; `Receiver` runs it in
a thread.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.http_servers import serving


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def serve(
    port: int, record: Callable[[dict[str, Any]], None], respond: Callable[[Any], None], host: str = "127.0.0.1"
) -> _Server:
    """Return a server that records each POST and then calls `respond` with its handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(size := int(self.headers["content-length"]))
            if len(body) < size:
                return  # the sender was killed within the request
            headers = {name.lower(): value for name, value in self.headers.items()}
            record({"path": self.path, "headers": headers, "body": body.decode(), "at": time.time()})
            respond(self)

        def log_message(self, *_: object) -> None:
            pass

    return _Server((host, port), Handler)


def accept(handler: Any) -> None:
    """Respond with 204."""
    handler.send_response(204)
    handler.end_headers()


class Receiver:
    """A receiver in a thread: it sends the next of `responses`, then accepts each request."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.requests: list[dict[str, Any]] = []
        self.responses: list[Callable[[Any], None]] = []
        self._server = serve(0, self.requests.append, self._respond, host)
        self.url = f"http://{host}:{self._server.server_port}/hook"

    def _respond(self, handler: Any) -> None:
        (self.responses.pop(0) if self.responses else accept)(handler)

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        """Serve while the block runs."""
        with serving(self._server):
            yield self


def main() -> None:
    """Write each request to a file until this process is killed."""
    port, path = int(sys.argv[1]), Path(sys.argv[2])
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    serve(port, lambda request: os.write(descriptor, json.dumps(request).encode() + b"\n"), accept).serve_forever(0.05)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
