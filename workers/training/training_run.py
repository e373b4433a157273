"""One training: its child process from start to exit, and the events that the job's clients see."""

import contextlib
import json
import logging
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import redis

from core.jobs.records import Event, Job
from workers.training.child_process import (
    EXIT_DIVERGED,
    EXIT_INTERRUPTED,
    EXIT_TOO_LARGE,
    LIMIT_CHECK_S,
    POLL_S,
    ChildProcesses,
    kill,
    stop,
)
from workers.training.context import JobContext, message_event
from workers.training.errors import ClaimLostError, TrainingFailedError, WorkerStoppingError
from workers.training.limits import check_free_disk, check_limits, raise_if_disk_was_full
from workers.training.run_folder import (
    checkpoint_step,
    describe_checkpoint,
    kill_orphan,
    last_error,
    modification_times,
    read_json,
    read_json_lines,
)

log = logging.getLogger(__name__)

MIN_PROGRESS_STEP = 0.002
"""The least progress, of 1, that makes an event of its own."""


@dataclass
class Reported:
    """What the job's events already say, so that a resumed run reports nothing twice."""

    epochs: int = 0
    checkpoint: dict[str, Any] | None = None
    furthest_step: float = 0.0
    progress: float = 0.0
    preview_time_ns: int = 0


@dataclass
class _Process:
    """A running child process: when it started, last passed its limits and last wrote something (monotonic clock)."""

    child: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    limits_checked: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    file_times: tuple[int, ...] = ()


class TrainingRun:
    """Runs one training job in its run folder, from its last checkpoint if there is one."""

    def __init__(self, context: JobContext, children: ChildProcesses, job: Job, devices: int) -> None:
        """Prepare; `devices` is how many this worker has."""
        self._context = context
        self._children = children
        self._devices = devices
        self.job = job
        self.request = job.request
        self.folder = context.paths.run(job.id)
        self.reported = Reported()

    def run(self) -> None:
        """Train until the child process succeeds.

        A process that is killed from outside is started again, up to `max_attempts` times without a
        new checkpoint. Raises TrainingFailedError, ClaimLostError or WorkerStoppingError.
        """
        check_free_disk(self._context.settings, self.folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "asked.json").write_text(json.dumps(self.request["recipe"]))
        kill_orphan(self.folder)
        self.restore_reported()
        step = checkpoint_step(self.folder) if (self.folder / "state.pt").exists() else None
        self._append_events(
            [message_event("training begins" if step is None else f"training resumes from step {step}")]
        )
        kills = 0
        while True:
            furthest = self.reported.furthest_step
            code, error = self._run_process()
            if code == 0:
                return
            if self._context.stopping.is_set():
                raise WorkerStoppingError
            code = -signal.SIGTERM if code == EXIT_INTERRUPTED else code
            if code > 0:
                self._raise_failure(code, error)
            # a signal killed it, possibly the kernel's for lack of memory: the recipe and the data need not be wrong
            signal_name = signal.Signals(-code).name
            kills = 1 if self.reported.furthest_step > furthest else kills + 1
            if kills >= self._context.settings.max_attempts:
                detail = f"the process was killed {kills} times ({signal_name}) without a new checkpoint"
                raise TrainingFailedError("Training process lost", f"{detail}; {describe_checkpoint(self.folder)}")
            self._append_events([message_event(f"the process was killed ({signal_name}); it is started again")])

    def _raise_failure(self, code: int, error: str) -> None:
        """Raise the TrainingFailedError that explains a positive exit code."""
        title = {EXIT_DIVERGED: "Training diverged", EXIT_TOO_LARGE: "Training too large"}.get(code)
        if title is None:
            title = "Training failed"
            raise_if_disk_was_full(self._context.settings, self.folder, error)
            if not error:
                detail = f"its process exited with code {code}, an internal error; {describe_checkpoint(self.folder)}"
                raise TrainingFailedError(title, detail, 500)
        raise TrainingFailedError(title, f"{error}; {describe_checkpoint(self.folder)}", 422)

    def restore_reported(self) -> None:
        """Read from the job's events what an earlier worker has reported."""
        self.reported = reported = Reported(progress=self.job.progress)
        for event in self._context.job_store.events(self.job.id):
            if event.name == "metrics":
                reported.epochs = max(reported.epochs, event.data["epoch"])
            elif event.name == "checkpoint":
                reported.checkpoint = event.data
                reported.furthest_step = reported.checkpoint["step_number"]

    # --- the child process ---

    def _command(self) -> list[str]:
        wanted = self.request.get("gpus", 1)
        recipe, folder = str(self.folder / "asked.json"), str(self.folder)
        command = self._children.command("train", recipe, "--out", folder, "--resume", *self._children.common_options())
        if min(wanted, self._devices) > 1:
            command += ["--gpus", str(min(wanted, self._devices))]
        elif wanted > 1:
            self._append_events([message_event(f"the recipe asks for {wanted} devices; this worker has one")])
        return command

    def _run_process(self) -> tuple[int, str]:
        """Run the child process to its exit. Returns its exit code and the error that it wrote, if any."""
        stall_s = self._context.settings.training_stall_s
        with self._children.start(self._command(), self.folder / "log") as child:
            process = _Process(child)
            while child.poll() is None:
                self.check_process(process)
                if self._idle_s(process) > stall_s:
                    kill(child)
                    event = message_event(f"no progress for {stall_s:.0f} s: the process was killed")
                    self._append_events([event], charge_attempt=True)
                    return -signal.SIGKILL, ""
                if self._context.stopping.is_set():
                    return stop(child), ""
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(POLL_S)
        if child.returncode == 0:
            self.report()
        return child.returncode, last_error(self.folder / "log")

    def check_process(self, process: _Process) -> None:
        """Report what a run has written, and stop it if the job was paused, cancelled or claimed by another worker.

        Raises ClaimLostError or TrainingFailedError, with the child process stopped.
        """
        now = time.monotonic()
        try:
            self.report()
            self._context.check_claim(self.job)
            if now >= process.limits_checked + LIMIT_CHECK_S:
                process.limits_checked = now
                check_limits(self._context.settings, self.folder, process.child.pid, now - process.started)
        except ClaimLostError:
            stop(process.child)
            raise
        except TrainingFailedError as error:
            stop(process.child)
            raise error.with_detail(describe_checkpoint(self.folder)) from error
        except redis.RedisError:
            log.warning("queue server unavailable; the training continues")
        except Exception:
            log.warning("run not checked; the training continues", exc_info=True)

    def _idle_s(self, process: _Process) -> float:
        """Return for how long a run has written nothing; one that hangs in native code writes nothing."""
        file_times = modification_times(self.folder)
        if file_times != process.file_times:
            process.file_times, process.written = file_times, time.monotonic()
        return time.monotonic() - process.written

    # --- events ---

    def report(self) -> None:
        """Write events of what the run has written since the last call. Raises ClaimLostError."""
        reported, further = self.reported, False
        events: list[Event] = []
        for line in read_json_lines(self.folder / "metrics.jsonl"):
            if line["epoch"] > reported.epochs:
                events.append(Event("metrics", line))
                reported.epochs = line["epoch"]
        state = read_json(self.folder / "progress.json")
        if state:
            checkpoint = state["checkpoint"]
            if checkpoint and (reported.checkpoint is None or checkpoint["steps"] > reported.checkpoint["step_number"]):
                further = checkpoint["steps"] > reported.furthest_step
                reported.furthest_step = max(reported.furthest_step, checkpoint["steps"])
                reported.checkpoint = {
                    "step_number": checkpoint["steps"],
                    **{name: checkpoint[name] for name in ("epoch", "seconds")},
                }
                events.append(Event("checkpoint", reported.checkpoint))
            progress = min(0.99, state["steps"] / max(1, state["steps_total"]))
            if events or progress - reported.progress >= MIN_PROGRESS_STEP:
                reported.progress = max(reported.progress, progress)
                data = {name: state[name] for name in ("epoch", "epochs", "step", "steps", "loss", "seconds")}
                events.append(Event("progress", {"progress": round(reported.progress, 4), **data}))
        if events:
            self._append_events(events, reset_attempts=further)
        self._report_preview()

    def _report_preview(self) -> None:
        file = self.folder / "preview.png"
        with contextlib.suppress(FileNotFoundError, redis.RedisError):
            written = file.stat().st_mtime_ns
            if written != self.reported.preview_time_ns:
                self._context.publish_preview(self.job.id, file.read_bytes())
                self.reported.preview_time_ns = written

    def _append_events(
        self, events: list[Event], *, reset_attempts: bool = False, charge_attempt: bool = False
    ) -> None:
        progress = self.reported.progress
        self._context.append_events(
            self.job, events, progress, reset_attempts=reset_attempts, charge_attempt=charge_attempt
        )
