"""Health check of a worker's container: exit with 0 if a worker renews its heartbeat here and is
not still loading.

Workers write their state to `REVERIE_HEARTBEAT_FILE` after each heartbeat. Only the standard
library is imported, and nothing is sent over the network: the check takes some milliseconds, also
when the machine is busy. `celery inspect ping` would not do: a solo worker does not reply while it
computes.
"""

import os
import sys
import time

MAX_AGE_S = 10.0  # a heartbeat is published every 0.4 s, but a busy machine delays it


def is_alive(file: str, now_s: float) -> bool:
    """Return whether a worker wrote its heartbeat file at most `MAX_AGE_S` before `now_s`, and has
    loaded a model.
    """
    try:
        with open(file) as opened:  # noqa: PTH123 - pathlib takes longer to import than all else here
            return now_s - os.fstat(opened.fileno()).st_mtime <= MAX_AGE_S and opened.read() != "loading"
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not is_alive(os.environ.get("REVERIE_HEARTBEAT_FILE", ""), time.time()))
