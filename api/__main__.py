"""`python -m api`: one API process; on SIGTERM it turns readiness off, finishes what it has, and exits.

`python -m api keys` makes, lists, revokes and rotates API keys.
"""

import gc
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api import keys_command
from api.app import create_app
from api.exposure import exit_if_refused
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
    config = uvicorn.Config(
        app,
        host=chosen.host,
        port=chosen.port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, int(chosen.drain_s)),
        backlog=2048,
    )
    Server(config, app).run()


if __name__ == "__main__":
    main()
