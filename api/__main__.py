"""`python -m api`: one API process; on SIGTERM it turns readiness off, finishes what it has, and exits.

`python -m api keys` makes, lists, revokes and rotates API keys.
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
from api.exposure import exit_if_refused
from api.http_protocol import ConnectionLimits, limited_protocol
from core.startup import QueueGuard, bound_socket, check, errors_end_the_program, load_settings

log = logging.getLogger(__name__)

EXIT_S = 4.0
"""Seconds beyond `REVERIE_SHUTDOWN_GRACE_S` after which a stopping API that still hangs somewhere ends all the same."""


class Server(uvicorn.Server):
    """A uvicorn server that says so when it begins to drain."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        """Serve `app`."""
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer not ready from now on, and let uvicorn finish the open requests."""
        self._app.state.draining = True
        self._end_later()
        super().handle_exit(sig, frame)

    def stop(self) -> None:
        """Stop as on SIGTERM; for other threads."""
        self._app.state.draining = True
        self._end_later()
        self.should_exit = True

    def _end_later(self) -> None:
        grace_s = (self.config.timeout_graceful_shutdown or 0) + EXIT_S

        def end() -> None:
            log.error("still running after the grace period; ended", extra={"seconds": grace_s})
            os._exit(1)

        timer = threading.Timer(grace_s, end)
        timer.daemon = True
        timer.start()


OTHER_FILES = 512
"""File descriptors beside connections: databases, the queue server, uploads, children."""


def allow_files(connections: int) -> int:
    """Raise the limit on open files as far as so many connections need; answers how many connections then fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(8, min(connections, soft - min(OTHER_FILES, soft // 2)))


def main() -> None:
    """Listen until told to stop, or run a subcommand."""
    if sys.argv[1:2] == ["keys"]:
        sys.exit(keys_command.main(sys.argv[2:]))
    with errors_end_the_program():
        chosen = load_settings()
        exit_if_refused(chosen)
        listener = bound_socket(chosen.host, chosen.port, "REVERIE_HOST or REVERIE_PORT to another one")
        check(chosen)
    app = create_app(chosen)
    # what is loaded by now stays: a full collection that walks all of it stops the process for a tenth of a second
    gc.collect()
    gc.freeze()
    limits = replace(ConnectionLimits.of(chosen), max_connections=allow_files(chosen.max_connections))
    config = uvicorn.Config(
        app,
        http=limited_protocol(limits),
        ws="none",
        host=chosen.host,
        port=chosen.port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(chosen.shutdown_grace_s)),
        timeout_keep_alive=max(1, round(chosen.idle_timeout_s)),
        backlog=1024,
    )
    server = Server(config, app)
    guard = QueueGuard(chosen, server.stop)
    guard.start()
    server.run(sockets=[listener])
    sys.exit(guard.exit_status())


if __name__ == "__main__":
    main()
