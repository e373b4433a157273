"""Let the kernel end a process when its parent process ends."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Make the kernel send the signal `number` to this process when its parent process ends.

    `parent` is the process id of the parent. If the parent has ended already, this process exits.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before prctl
