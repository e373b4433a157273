"""The HTTP server of one API process.

On SIGTERM it reports "not ready", accepts requests for `REVERIE_SHUTDOWN_DELAY_S` longer, finishes
its open requests and exits.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import threading
from types import FrameType
from typing import Any

import uvicorn

from api import malloc
from api.app import create_app
from api.http_protocol import limited_protocol
from core.settings import Settings
from core.startup import QueueGuard

log = logging.getLogger(__name__)

EXIT_S = 4.0  # seconds after `REVERIE_SHUTDOWN_GRACE_S` at which a process is killed
# File descriptors besides connections: databases, the queue server, uploads, large results, child
# processes.
OTHER_FILES = 1024


class Server(uvicorn.Server):
    """A uvicorn server that reports "not ready" (`/readyz`) while it stops."""

    def __init__(self, config: uvicorn.Config, shutdown_delay_s: float) -> None:
        """Set uvicorn's `config`, and how many seconds after SIGTERM new requests are accepted."""
        super().__init__(config)
        self._shutdown_delay_s = shutdown_delay_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle SIGTERM or SIGINT: report "not ready", finish the open requests, then exit.

        After the first SIGTERM, new requests are accepted until the shutdown delay has passed, so
        that load balancers see `/readyz` before connections are refused. A second SIGINT ends the
        wait for open requests.
        """
        app: Any = self.config.app
        if sig == signal.SIGTERM and self._shutdown_delay_s and not app.state.draining:
            app.state.draining = True
            loop = asyncio.get_running_loop()
            loop.call_soon_threadsafe(loop.call_later, self._shutdown_delay_s, self.handle_exit, sig, frame)
            return
        self._drain()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Stop the server as SIGTERM does. May be called from another thread."""
        self._drain()
        self.should_exit = True

    def _drain(self) -> None:
        """Report "not ready" from now on; set a timer that kills the process if it does not exit.

        The process may take `EXIT_S` seconds longer than the time that open requests have to
        finish.
        """
        app: Any = self.config.app  # the FastAPI application of `serve`
        app.state.draining = True
        grace_s = (self.config.timeout_graceful_shutdown or 0) + EXIT_S

        def exit_now() -> None:
            log.error("still running after the grace period; ended", extra={"seconds": grace_s})
            os._exit(1)

        timer = threading.Timer(grace_s, exit_now)
        timer.daemon = True
        timer.start()


def allow_files(connections: int) -> int:
    """Raise the process's limit on open files so that it allows `connections` connections.

    Returns the number of connections that the new limit allows, at most `connections`; it is
    smaller where the system does not allow a limit so high.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(8, min(connections, soft - min(OTHER_FILES, soft // 2)))


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve the API on the bound socket `listener` until SIGTERM or SIGINT, then exit."""
    malloc.return_freed_memory()
    app = create_app(settings)
    # the objects that exist now are never freed: without `freeze`, a full garbage collection scans
    # them for 0.1 s
    gc.collect()
    gc.freeze()
    limits = settings.model_copy(update={"max_connections": allow_files(settings.max_connections)})
    config = uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_s)),
        backlog=limits.max_connections,  # if this queue is full, Linux resets some of the connections that do not fit
    )
    server = Server(config, settings.shutdown_delay_s)
    guard = QueueGuard(settings, server.stop)
    guard.start()
    server.run(sockets=[listener])
    sys.exit(guard.exit_status)
