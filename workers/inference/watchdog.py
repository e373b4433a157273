"""End a worker process that makes no progress, for example because native code hangs.

The timer is faulthandler's, a thread in C that needs no interpreter lock; it therefore also ends a
process whose hanging code holds that lock. The worker's heartbeat thread restarts the timer while
the worker is idle or makes progress, and lets it expire while the worker hangs.
"""

import faulthandler
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

log = logging.getLogger(__name__)


# See docs/decisions.md#a-faulthandler-timer-ends-a-hung-worker
class Watchdog:
    """Ends the process if its work makes no progress for `timeout_s` seconds."""

    def __init__(self, timeout_s: float, file: TextIO = sys.stderr) -> None:
        """Set the time-out, but do not start the timer; the first call of `check` does.

        The tracebacks of all threads are written to `file` when the process is ended.
        """
        self._timeout_s = timeout_s
        self._file = file
        self._steps = 0
        self._work: tuple[str, ...] = ()
        self._busy = threading.Event()
        self._checked = -1
        self._advanced_at = time.monotonic()
        self._warned = False

    def advance(self) -> None:
        """Report that a step of the work is done; the time-out begins anew."""
        self._steps += 1

    @contextmanager
    def working(self, *work: str) -> Iterator[None]:
        """Return a context manager in which `advance` must be called at least once per time-out.

        Otherwise the process is ended. Context managers may be nested. `work` has the names of what
        runs inside, for the log.
        """
        before, self._work = self._work, work
        self._steps += 1
        self._busy.set()
        try:
            yield
        finally:
            self._work = before
            if not before:
                self._busy.clear()
            self._steps += 1

    def check(self) -> None:
        """Restart the timer if the worker is idle or has made progress since the last call.

        If not, the timer continues, and a warning is logged once half of the time-out has passed.
        """
        now = time.monotonic()
        steps = self._steps
        if steps != self._checked or not self._busy.is_set():
            self._checked, self._advanced_at, self._warned = steps, now, False
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)
        elif not self._warned and now - self._advanced_at > self._timeout_s / 2:
            self._warned = True
            seconds = {"seconds": round(now - self._advanced_at, 1), "limit_s": self._timeout_s}
            log.error("no progress; the worker ends at the limit", extra={"work": self._work, **seconds})

    @staticmethod
    def stop() -> None:
        """Stop the timer, so that the process is no longer ended."""
        faulthandler.cancel_dump_traceback_later()
