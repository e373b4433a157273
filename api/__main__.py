"""`python -m api`: one API process. On SIGTERM it is no longer ready, finishes its open requests and exits.

`python -m api keys` creates, lists, revokes and rotates API keys.
"""

import gc
import logging
import os
import resource
import sys
import threading
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api import keys_command
from api.app import create_app
from api.connection_limits import ConnectionLimits
from api.exposure import exit_if_refused
from api.http_protocol import limited_protocol
from core.startup import QueueGuard, bound_socket, check, errors_end_the_program, load_settings

log = logging.getLogger(__name__)

EXIT_S = 4.0
"""Seconds beyond `REVERIE_SHUTDOWN_GRACE_S` after which a process that still hangs is ended."""


class Server(uvicorn.Server):
    """A uvicorn server that sets `draining` when it begins to stop."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        """Serve `app`."""
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Report not ready from now on, and let uvicorn finish the open requests."""
        self._app.state.draining = True
        self._exit_later()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Stop as on SIGTERM; for other threads."""
        self._app.state.draining = True
        self._exit_later()
        self.should_exit = True

    def _exit_later(self) -> None:
        grace_s = (self.config.timeout_graceful_shutdown or 0) + EXIT_S

        def exit_now() -> None:
            log.error("still running after the grace period; ended", extra={"seconds": grace_s})
            os._exit(1)

        timer = threading.Timer(grace_s, exit_now)
        timer.daemon = True
        timer.start()


OTHER_FILES = 512
"""File descriptors beside connections: databases, the queue server, uploads, children."""


def allow_files(connections: int) -> int:
    """Raise the limit on open files as so many connections need it; return how many connections then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(8, min(connections, soft - min(OTHER_FILES, soft // 2)))


def main() -> None:
    """Serve until SIGTERM or SIGINT, or run a subcommand."""
    if sys.argv[1:2] == ["keys"]:
        sys.exit(keys_command.main(sys.argv[2:]))
    with errors_end_the_program():
        settings = load_settings()
        exit_if_refused(settings)
        listener = bound_socket(settings.host, settings.port, "REVERIE_HOST or REVERIE_PORT to another one")
        check(settings)
    app = create_app(settings)
    # all that is loaded now stays: without freeze, a full garbage collection scans it and takes 0.1 s
    gc.collect()
    gc.freeze()
    limits = replace(ConnectionLimits.of(settings), max_connections=allow_files(settings.max_connections))
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
        backlog=1024,
    )
    server = Server(config, app)
    guard = QueueGuard(settings, server.stop)
    guard.start()
    server.run(sockets=[listener])
    sys.exit(guard.exit_status())


if __name__ == "__main__":
    main()
