"""Let the kernel end a process when its parent process ends.

`python -m core.process SECONDS COMMAND …` runs a command, after a delay, that ends with its parent.
It needs nothing but the standard library, so it starts at once.
"""

import ctypes
import os
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Make the kernel send the signal `number` to this process when its parent process ends.

    `parent` is the process id of the parent. If the parent has ended already, this process exits.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before prctl


def main() -> None:
    """Wait, then replace this process by a command, which gets SIGTERM when its parent ends.

    The arguments are the seconds to wait and the command.
    """
    parent, delay_s, command = os.getppid(), float(sys.argv[1]), sys.argv[2:]
    end_with_parent(signal.SIGTERM, parent)
    time.sleep(delay_s)
    os.execvp(command[0], command)  # noqa: S606 - the command replaces this process


if __name__ == "__main__":
    main()
