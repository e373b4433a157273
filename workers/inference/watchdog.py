"""Ends a worker whose work has not advanced for too long: a forward pass that hangs in native code never returns.

The timer is faulthandler's, a thread in C that needs no interpreter lock: it ends the process also where the code that
hangs holds that lock. The heartbeat thread winds it up anew while the worker is idle or has advanced; it is not wound
up for a worker that hangs, nor by one whose heartbeat thread cannot run.
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
    """A limit on how long a piece of work may take without `advance` being called."""

    def __init__(self, timeout_s: float, file: TextIO = sys.stderr) -> None:
        """Watch nothing before `check` is called; tracebacks of all threads go to `file` before the end."""
        self._timeout_s = timeout_s
        self._file = file
        self._steps = 0
        self._work: tuple[str, ...] = ()
        self._busy = threading.Event()
        self._checked = -1
        self._advanced_at = time.monotonic()
        self._warned = False

    def advance(self) -> None:
        """A step of the work has ended."""
        self._steps += 1

    @contextmanager
    def working(self, *work: str) -> Iterator[None]:
        """What runs in this block must advance; `work` names it in the log."""
        self._work = work
        self._steps += 1
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()
            self._steps += 1

    def check(self) -> None:
        """Called at every heartbeat: wind the timer up again if the worker is idle or has advanced since."""
        now = time.monotonic()
        steps = self._steps
        if steps != self._checked or not self._busy.is_set():
            self._checked, self._advanced_at, self._warned = steps, now, False
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=self._file)
        elif not self._warned and now - self._advanced_at > self._timeout_s / 2:
            self._warned = True
            seconds = {"seconds": round(now - self._advanced_at, 1), "limit_s": self._timeout_s}
            log.error("work does not advance; the worker ends at the limit", extra={"work": self._work, **seconds})

    @staticmethod
    def stop() -> None:
        """End nothing any more."""
        faulthandler.cancel_dump_traceback_later()
