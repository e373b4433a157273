"""Wait for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 180.0
"""Long, because the machine may be busy with other tests; a condition that holds ends the wait at
once.
"""

FIRST_INTERVAL_S, LAST_INTERVAL_S = 0.01, 0.25


def wait_until(condition: Callable[[], T | None], what: str, timeout_s: float = TIMEOUT_S) -> T:
    """Return the first true value of `condition`; raise TimeoutError with `what` if none comes in
    time.

    The intervals between two calls grow, so that a long wait costs the tests beside it little.
    """
    deadline, interval_s = time.monotonic() + timeout_s, FIRST_INTERVAL_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(interval_s)
        interval_s = min(1.3 * interval_s, LAST_INTERVAL_S)
    return value
