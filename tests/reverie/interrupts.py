"""Commands of the command line that a test interrupts by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

from tests.reverie.faulty_proxy import FaultyProxy
from tests.stack import ROOT
from tests.waiting import wait_until


def start_command(url: str, *words: str) -> subprocess.Popen[str]:
    """Start the command `reverie --url URL WORDS…`, whose standard error is a pipe."""
    # a background shell, as in CI, starts its commands with SIGINT ignored
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, "-m", "reverie", "--url", url, *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed,  # noqa: PLW1509 - threads do not matter to a signal's default
    )


def interrupt_waiting(proxy: FaultyProxy, *words: str) -> tuple[int, str, str]:
    """Run a command through a proxy and interrupt it when it waits for its job.

    Every request becomes a job at once. Returns exit status, standard error and the job's id.
    """
    proxy.adds = {"prefer": "wait=0"}
    with start_command(proxy.url, *words) as command:
        waiting = wait_until(lambda: [seen.path for seen in proxy.seen if "/jobs/" in seen.path], "it waits")
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=60)
    return command.returncode, err, waiting[0].rpartition("/")[2]
