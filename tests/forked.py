"""Start `python -m MODULE` by forking a process that has imported its packages already.

The imports take about 3 s of CPU time for an API process or an inference worker, and the tests
start some hundred of them. The forked process has its own environment, session state and exit
code, and runs the module as `__main__`. Tests of the start itself use new interpreters.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

FORKING = multiprocessing.get_context("forkserver")
"""Starts processes that have imported the packages of a `Stack`, by multiprocessing's interface."""

FORKING.set_forkserver_preload(["tests.preloaded"])


class ForkedProcess:
    """A process with the part of `subprocess.Popen`'s interface that tests use."""

    def __init__(self, module: str, folder: Path, environment: dict[str, str], log: Path) -> None:
        """Run `module` in `folder`, with exactly this environment; output is appended to `log`."""
        self._log = log
        # read when numpy and torch are imported, so the first process of the server decides
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._process = FORKING.Process(target=_run, args=(module, folder, environment, log), name=module)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise subprocess.TimeoutExpired if it runs for longer."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Return the output, as text, once the process has ended; raise TimeoutExpired like `wait`."""
        self.wait(timeout)
        return self._log.read_text(), None

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal, unless the process has exited."""
        if self._process.exitcode is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(module: str, folder: Path, environment: dict[str, str], log: Path) -> None:
    """Run a module as `python -m` does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with log.open("ab") as opened:
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)
    sys.argv = [module]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing ends its processes without them
