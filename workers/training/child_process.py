"""Run the child processes of a training worker: `python -m models COMMAND`.

They import torch; the training worker itself does not.
"""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from core.jobs.records import Job
from workers.training.context import JobContext, JobFailedError, WorkerStoppingError
from workers.training.limits import check_memory, raise_if_disk_was_full
from workers.training.run_folder import last_error

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
# exit codes of `python -m models`: stopped after a checkpoint, diverged, above its memory limit
EXIT_INTERRUPTED, EXIT_DIVERGED, EXIT_TOO_LARGE = 3, 4, 5
POLL_S = 0.25  # interval at which a running child process is polled
# Interval at which its limits are checked; a scan of all processes takes some milliseconds.
LIMIT_CHECK_S = 1.0
STOP_S = 20.0  # seconds in which a child process must write its checkpoint and exit
QUERY_TIMEOUT_S = 300.0  # for a list of families or devices
_REMEDY = "a smaller network, batch or number of samples takes less"


class ChildProcesses:
    """Builds the command lines of child processes, starts them, and waits for their end."""

    def __init__(self, context: JobContext) -> None:
        """Keep the context of a worker, which has its settings; start no child process yet."""
        self._context = context

    def command(self, *words: str) -> list[str]:
        """Return the command line of `python -m models WORDS`, with niceness and a memory limit.

        With its option `--parent`, the child process exits if this process dies.
        """
        settings = self._context.settings
        extra = ["--extra-models", str(settings.extra_models.resolve())] if settings.extra_models else []
        nice = ["nice", "-n", str(settings.training_nice)] if shutil.which("nice") else []
        limits = ["--parent", str(os.getpid()), "--memory-bytes", str(settings.training_memory_bytes)]
        return [*nice, sys.executable, "-m", "models", *words, *limits, *extra]

    def common_options(self, job: Job, *, device: bool = True) -> list[str]:
        """Return the options of every command that reads the dataset of a job: threads and data
        folder.

        With `device`, the option for the training device is included. Blocks while a dataset in the
        blob store is downloaded.
        """
        settings, context = self._context.settings, self._context
        folder = context.datasets.data_folder(job.request.get("dataset", ""), context.paths.auxiliary_job(job.id))
        options = ["--threads", str(settings.training_threads), "--data-folder", str(folder)]
        return [*options, "--device", settings.training_device] if device else options

    def query(self, command: str) -> bytes | None:
        """Run `python -m models COMMAND` without arguments and return its standard output.

        If the command fails or takes longer than `QUERY_TIMEOUT_S` seconds, log an error and return
        None.
        """
        options: dict[str, Any] = {"cwd": ROOT, "env": _environment(1), "timeout": QUERY_TIMEOUT_S}
        try:
            done = subprocess.run(self.command(command), capture_output=True, check=True, **options)  # noqa: S603
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            stderr = (error.stderr or b"").decode()[-2000:]
            log.exception("child process failed", extra={"command": command, "stderr": stderr})
            return None
        return bytes(done.stdout)

    @contextlib.contextmanager
    def start(self, command: list[str], log_file: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Start a child process for a `with` block, at whose end it is stopped if it still runs.

        The child process has a process group of its own. Its standard error is appended to
        `log_file`; its standard output is discarded, unless the command prints a result.
        """
        env = _environment(self._context.settings.training_threads)
        captured = not {"publish", "estimate", "core.datasets.convert"}.isdisjoint(command)
        stdout = subprocess.PIPE if captured else subprocess.DEVNULL
        with log_file.open("ab") as file:
            child = subprocess.Popen(  # noqa: S603 - our own program
                command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=file, start_new_session=True
            )
        try:
            yield child
        finally:
            if child.poll() is None:
                stop(child)
                kill(child)  # also the processes that it has started
            if child.stdout:
                child.stdout.close()

    def run(
        self, job: Job, command: list[str], log_file: Path, timeout_s: float | None = None, remedy: str = _REMEDY
    ) -> bytes:
        """Run a command for a job to its end, and return its standard output.

        Raises JobFailedError if the command fails, uses more memory than a training may, or takes
        longer than `timeout_s` seconds (by default the setting `evaluation_timeout_s`). `remedy` is
        the advice in the error for a time-out. Raises ClaimLostError if the job's claim is lost,
        and WorkerStoppingError if this worker stops. Before an exception is raised, the child
        process is stopped.
        """
        settings, stopping = self._context.settings, self._context.stopping
        limit_s = timeout_s or settings.evaluation_timeout_s
        deadline, check_at = time.monotonic() + limit_s, 0.0
        with self.start(command, log_file) as child:
            while child.poll() is None:
                if stopping.is_set():
                    raise WorkerStoppingError
                self._context.check_claim(job)
                if time.monotonic() > deadline:
                    raise JobFailedError("Too long", f"it took more than {limit_s:g} s; {remedy}", 422)
                if time.monotonic() > check_at:
                    check_memory(settings, child.pid, "Too large")
                    check_at = time.monotonic() + LIMIT_CHECK_S
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
            printed = child.stdout.read() if child.stdout else b""
        if child.returncode:
            self._raise_failure(job, child.returncode, log_file)
        return printed

    def run_json(self, job: Job, command: list[str], log_file: Path, timeout_s: float | None = None) -> dict[str, Any]:
        """Run a command for a job; return the JSON object in the last line of its standard output.

        Raises JobFailedError if the command fails, uses more memory than a training may, or takes
        longer than `timeout_s` seconds (by default the setting `evaluation_timeout_s`);
        ClaimLostError if the job's claim is lost; and WorkerStoppingError if this worker stops.
        Before an exception is raised, the child process is stopped.
        """
        return dict(orjson.loads(self.run(job, command, log_file, timeout_s).splitlines()[-1]))

    def _raise_failure(self, job: Job, code: int, log_file: Path) -> None:
        """Raise a JobFailedError for a child process that ended with `code`, which is not 0.

        A negative code is the number of the signal that killed the process. Otherwise the error's
        detail is the last line of `log_file`, if the process wrote an error there, or else the
        code.
        """
        if code < 0:
            detail = f"its process was killed ({signal.Signals(-code).name}), possibly for its memory; try again"
            raise JobFailedError("Process lost", detail, 503)
        error = last_error(log_file)
        raise_if_disk_was_full(self._context.settings, log_file.parent, error)
        if not error:
            text = log_file.read_text(errors="replace")[-2000:]
            log.error("child process failed", extra={"job": job.id, "stderr": text})
        detail = error or f"the process exited with code {code}"
        raise JobFailedError("Not possible", detail, 422 if error else 500)


def stop(child: subprocess.Popen[bytes]) -> int:
    """Send SIGTERM to a child process and wait for its end; return its exit code.

    After SIGTERM a training writes a checkpoint and exits. A process that still runs after `STOP_S`
    seconds is killed with its process group. If SIGTERM ended a process that did not handle the
    signal yet, the result is `EXIT_INTERRUPTED`, as for a training that has written its checkpoint.
    """
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        kill(child)
    return EXIT_INTERRUPTED if child.returncode == -signal.SIGTERM else child.returncode


def kill(child: subprocess.Popen[bytes]) -> None:
    """Kill all processes in the process group of a child process, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _environment(threads: int) -> dict[str, str]:
    """Return the environment variables of a child process: this process's without `REVERIE_*`.

    `threads` is the number of its OpenMP threads.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}
    return {**kept, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
