"""`python -m api`: one API process; on SIGTERM it turns readiness off, finishes what it has, and exits.

`python -m api keys` makes, lists, revokes and rotates API keys.
"""

import gc
import resource
import sys
from dataclasses import replace
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api import keys_command
from api.app import create_app
from api.exposure import exit_if_refused
from api.http_protocol import ConnectionLimits, limited_protocol
from workers.settings import settings


class Server(uvicorn.Server):
    """A uvicorn server that says so when it begins to drain."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        """Serve `app`."""
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Answer not ready from now on, and let uvicorn finish the open requests."""
        self._app.state.draining = True
        super().handle_exit(sig, frame)


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
    chosen = settings()
    exit_if_refused(chosen)
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
        timeout_graceful_shutdown=max(1, int(chosen.drain_s)),
        timeout_keep_alive=max(1, round(chosen.idle_timeout_s)),
        backlog=1024,
    )
    Server(config, app).run()


if __name__ == "__main__":
    main()
