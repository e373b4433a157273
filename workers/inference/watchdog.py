"""End a worker that makes no progress, for example because a forward pass hangs in native code.

The timer is faulthandler's: a thread in C that needs no interpreter lock, so it also ends a process
whose hanging code has that lock. The heartbeat thread restarts the timer while the worker is idle
or makes progress, but not while the worker hangs.
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
    """Ends the process if work makes no progress for the time-out, a number of seconds."""

    def __init__(self, timeout_s: float, file: TextIO = sys.stderr) -> None:
        """Set the time-out in seconds; the first `check` starts the timer.

        `file` gets the tracebacks of all threads when the process is ended.
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
        """Record that a step of the work is done, so that the time-out begins anew."""
        self._steps += 1

    @contextmanager
    def working(self, *work: str) -> Iterator[None]:
        """Require progress while the block runs: a call of `advance` within each time-out.

        Blocks may be nested. `work` names what runs, for the log.
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

        Otherwise, after half of the time-out, log a warning once.
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
