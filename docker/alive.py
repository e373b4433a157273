"""Exits 0 if a worker of this container renewed its heartbeat while this ran; a solo worker answers no ping at work.

`docker/alive.py training` looks for a training worker.
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


def beating(host: str, *, training: bool = False) -> bool:
    """Whether a heartbeat of `host` changes within three of its periods."""
    chosen = settings()
    queue = connect(chosen, training=training)
    begins = f"trainer-{host}-" if training else f"{host}-"

    def beats() -> set[tuple[bytes, bytes]]:
        found = queue.hgetall(TRAINING_WORKERS if training else WORKERS)
        return {(name, said) for name, said in found.items() if name.startswith(begins.encode())}

    before = beats()
    time.sleep(3 * HEARTBEAT_S)
    return bool(beats() - before)


if __name__ == "__main__":
    sys.exit(not beating(socket.gethostname(), training=sys.argv[1:] == ["training"]))
