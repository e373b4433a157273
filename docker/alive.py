"""Health check of a worker's container: exit with 0 if a worker on this host renews its heartbeat.

`celery inspect ping` would not do: a solo worker does not reply while it computes.
`docker/alive.py training` checks a training worker.
"""

import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.broker.connection import connect
from core.broker.keys import WORKERS
from core.catalog.recipes import TRAINING_WORKERS
from core.settings import HEARTBEAT_S, settings


def is_alive(host: str, *, training: bool = False) -> bool:
    """Return whether a heartbeat of `host` changes within three periods."""
    queue_server = connect(settings(), training=training)
    prefix = f"trainer-{host}-" if training else f"{host}-"

    def heartbeats() -> set[tuple[bytes, bytes]]:
        by_worker = queue_server.hgetall(TRAINING_WORKERS if training else WORKERS)
        return {(name, data) for name, data in by_worker.items() if name.startswith(prefix.encode())}

    before = heartbeats()
    time.sleep(3 * HEARTBEAT_S)
    return bool(heartbeats() - before)


if __name__ == "__main__":
    sys.exit(not is_alive(socket.gethostname(), training=sys.argv[1:] == ["training"]))
