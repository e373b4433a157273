"""Processes that must not outlive the process that started them."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Make the kernel send a signal to this process when its parent process ends, even if killed.

    `parent` is the id that the parent process must have. If it has ended already, exit.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before prctl
