"""Exits 0 if a worker of this container renewed its heartbeat while this ran; a solo worker answers no ping at work."""

import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workers.queue import WORKERS, connect
from workers.settings import HEARTBEAT_S, settings


def beating(host: str) -> bool:
    """Whether a heartbeat of `host` changes within three of its periods."""
    queue = connect(settings())

    def beats() -> set[tuple[bytes, bytes]]:
        return {(name, said) for name, said in queue.hgetall(WORKERS).items() if name.startswith(f"{host}-".encode())}

    before = beats()
    time.sleep(3 * HEARTBEAT_S)
    return bool(beats() - before)


if __name__ == "__main__":
    sys.exit(not beating(socket.gethostname()))
