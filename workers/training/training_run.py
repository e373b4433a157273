"""Run the child process of a training, enforce its limits, and append events with its progress."""

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
from workers.training import child_process, limits, run_folder
from workers.training.context import (
    ClaimLostError,
    JobContext,
    JobFailedError,
    JobPostponedError,
    WorkerStoppingError,
    message_event,
)
from workers.training.run_folder import describe_checkpoint
from workers.training.run_upload import RunUploader

log = logging.getLogger(__name__)

MIN_PROGRESS_STEP = 0.002  # least increase of the progress, which is 0 to 1, for another event


@dataclass
class ReportedProgress:
    """What the events of a training's job have reported so far, so that nothing is reported twice.

    `epochs` is the number of epochs whose metrics are reported. `checkpoint` is the data of the
    last checkpoint event, and `furthest_step` the largest optimizer step of any checkpoint.
    `progress` is from 0 to 1. `preview_time_ns` is the modification time of the last preview that
    was published.
    """

    epochs: int = 0
    checkpoint: dict[str, Any] | None = None
    furthest_step: float = 0.0
    progress: float = 0.0
    preview_time_ns: int = 0


@dataclass
class _Process:
    """A running child process, and the times of its start, last check and last written file.

    `started` is its start, `limits_checked` the last check of its limits, and `written` the last
    time at which one of its files was seen to change, all on the monotonic clock in seconds.
    `file_times` are the modification times (ns) that the files had then.
    """

    child: subprocess.Popen[bytes]
    started: float = field(default_factory=time.monotonic)
    limits_checked: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)
    file_times: tuple[int, ...] = ()


class TrainingRun:
    """Runs the training of one job in a run folder, from the last checkpoint there, if any."""

    def __init__(self, context: JobContext, children: child_process.ChildProcesses, job: Job, devices: int) -> None:
        """Keep what the run needs; no child process is started yet.

        `devices` is the number of devices (GPUs) of this worker, at least 1.
        """
        self._context = context
        self._children = children
        self._devices = devices
        self.job = job
        self.request = job.request
        self.folder = context.paths.run(job.id)
        self.reported = ReportedProgress()
        self._unsure = False  # whether an event may or may not have been written
        self._uploader = RunUploader(context, job, self.folder)

    def run(self) -> None:
        """Run the child process of the training until it succeeds.

        A child process that is killed by a signal is started again. Raises JobFailedError if it is
        killed `max_attempts` times without a new checkpoint, if the training fails, or if it
        exceeds a limit; ClaimLostError if the job's claim is lost; JobPostponedError if another
        process works in the run folder; and WorkerStoppingError if this worker stops.
        """
        with self._uploader:
            self._run()

    def _run(self) -> None:
        """Prepare the run folder, then run child processes until one succeeds; see `run`."""
        limits.check_free_disk(self._context.settings, self.folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / run_folder.RECIPE_FILE).write_text(json.dumps(self.request["recipe"]))
        run_folder.kill_orphan(self.folder)
        complete = self._context.runs.restore(self.job.id, self.folder)
        self.restore_reported()
        step = run_folder.checkpoint_step(self.folder) if (self.folder / "state.pt").exists() else None
        text = "training begins" if step is None else f"training resumes from step {step}"
        if not complete:
            text += "; files of the stored checkpoint are missing, as in a backup made while the training ran"
        self._append_events([message_event(text)])
        kills = 0
        while True:
            furthest = self.reported.furthest_step
            code, error = self._run_process()
            if code == 0:
                return
            if self._context.stopping.is_set():
                raise WorkerStoppingError
            code = -signal.SIGTERM if code == child_process.EXIT_INTERRUPTED else code
            if code > 0:
                self._raise_failure(code, error)
            # it was killed by a signal, perhaps for lack of memory: the recipe and the data may be
            # valid
            signal_name = signal.Signals(-code).name
            kills = 1 if self.reported.furthest_step > furthest else kills + 1
            if kills >= self._context.settings.max_attempts:
                detail = f"the process was killed {kills} times ({signal_name}) without a new checkpoint"
                raise JobFailedError("Training process lost", f"{detail}; {describe_checkpoint(self.folder)}")
            self._append_events([message_event(f"the process was killed ({signal_name}); it is started again")])

    def _raise_failure(self, code: int, error: str) -> None:
        """Raise a JobFailedError for a child process that exited with `code`, which is above 0.

        Raises JobPostponedError instead if another process had locked the run folder.

        `error` is the message that the child process wrote; "" if it wrote none, which is an
        internal error.
        """
        titles = {child_process.EXIT_DIVERGED: "Training diverged", child_process.EXIT_TOO_LARGE: "Training too large"}
        title = titles.get(code)
        if error.startswith(run_folder.LOCKED_ERROR):
            raise JobPostponedError(f"{error}; the training waits until that process ends")
        if title is None:
            title = "Training failed"
            limits.raise_if_disk_was_full(self._context.settings, self.folder, error)
            if not error:
                detail = f"its process exited with code {code}, an internal error; {describe_checkpoint(self.folder)}"
                raise JobFailedError(title, detail, 500)
        raise JobFailedError(title, f"{error}; {describe_checkpoint(self.folder)}", 422)

    def restore_reported(self) -> None:
        """Set `reported` from the job's stored events, as an earlier worker left them."""
        reported = ReportedProgress(progress=self.job.progress)
        for event in self._context.job_store.events(self.job.id):
            if event.name == "metrics":
                reported.epochs = max(reported.epochs, event.data["epoch"])
            elif event.name == "checkpoint":
                reported.checkpoint = event.data
                reported.furthest_step = reported.checkpoint["step_number"]
        self.reported, self._unsure = reported, False

    # --- the child process ---

    def _command(self) -> list[str]:
        """Return the command line of the child process.

        If the recipe asks for several devices and this worker has one, an event says so.
        """
        gpus = self.request.get("gpus", 1)
        recipe, folder = str(self.folder / run_folder.RECIPE_FILE), str(self.folder)
        command = self._children.command(
            "train", recipe, "--out", folder, "--resume", *self._children.common_options(self.job)
        )
        if min(gpus, self._devices) > 1:
            command += ["--gpus", str(min(gpus, self._devices))]
        elif gpus > 1:
            self._append_events([message_event(f"the recipe asks for {gpus} devices; this worker has one")])
        return command

    def _run_process(self) -> tuple[int, str]:
        """Run the child process once; return its exit code and its error message, "" without one.

        If this worker stops, the child process is stopped after a checkpoint. If it has written no
        file for `training_stall_s` seconds, it is killed, which counts as a failed attempt of the
        job.
        """
        stall_s = self._context.settings.training_stall_s
        with self._children.start(self._command(), self.folder / "log") as child:
            process = _Process(child)
            while child.poll() is None:
                self.check_process(process)
                if self._idle_s(process) > stall_s:
                    child_process.kill(child)
                    event = message_event(f"no progress for {stall_s:.0f} s: the process was killed")
                    self._append_events([event], charge_attempt=True)
                    return -signal.SIGKILL, ""
                if self._context.stopping.is_set():
                    return child_process.stop(child), ""
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(child_process.POLL_S)
        if child.returncode == 0:
            self.report()
        return child.returncode, run_folder.last_error(self.folder / "log")

    def check_process(self, process: _Process) -> None:
        """Append events for the progress of the training, and check the job's claim and limits.

        The claim is lost if the training was paused or cancelled, or if its lease has expired: the
        child process is stopped after a checkpoint and ClaimLostError is raised. If a limit is
        exceeded, the child process is stopped likewise and JobFailedError is raised. Other errors
        are logged, and the training continues.
        """
        now = time.monotonic()
        try:
            self._context.check_claim(self.job)  # first: without the claim, no preview is published
            self.report()
            if now >= process.limits_checked + child_process.LIMIT_CHECK_S:
                process.limits_checked = now
                limits.check_limits(self._context.settings, self.folder, process.child.pid, now - process.started)
        except ClaimLostError:
            child_process.stop(process.child)
            raise
        except JobFailedError as error:
            child_process.stop(process.child)
            raise error.with_detail(describe_checkpoint(self.folder)) from error
        except redis.RedisError:
            log.warning("queue server unavailable; the training continues")
        except Exception:
            log.warning("run not checked; the training continues", exc_info=True)

    def _idle_s(self, process: _Process) -> float:
        """Return the seconds since the child process was last seen to have written a file."""
        file_times = run_folder.modification_times(self.folder)
        if file_times != process.file_times:
            process.file_times, process.written = file_times, time.monotonic()
        return time.monotonic() - process.written

    # --- events ---

    def report(self) -> None:
        """Append events for new metrics, checkpoints and progress, and publish a new preview.

        These are read from files in the run folder. Raises ClaimLostError if this worker's claim on
        the job is no longer valid.
        """
        if self._unsure:
            self.restore_reported()
        reported, further = self.reported, False
        events: list[Event] = []
        for line in run_folder.read_json_lines(self.folder / "metrics.jsonl"):
            if line["epoch"] > reported.epochs:
                events.append(Event("metrics", line))
                reported.epochs = line["epoch"]
        state = run_folder.read_json(self.folder / "progress.json")
        if state:
            checkpoint = state["checkpoint"]
            if checkpoint and (reported.checkpoint is None or checkpoint["steps"] > reported.checkpoint["step_number"]):
                further = checkpoint["steps"] > reported.furthest_step
                reported.furthest_step = max(reported.furthest_step, checkpoint["steps"])
                position = {name: checkpoint[name] for name in ("epoch", "seconds")}
                reported.checkpoint = {"step_number": checkpoint["steps"], **position}
                events.append(Event("checkpoint", reported.checkpoint))
                self._uploader.request()
            progress = min(0.99, state["steps"] / max(1, state["steps_total"]))
            if events or progress - reported.progress >= MIN_PROGRESS_STEP:
                reported.progress = max(reported.progress, progress)
                data = {name: state[name] for name in ("epoch", "epochs", "step", "steps", "loss", "seconds")}
                events.append(Event("progress", {"progress": round(reported.progress, 4), **data}))
        if events:
            self._unsure = True  # until the job store has replied
            self._append_events(events, reset_attempts=further, unblock=further)
            self._unsure = False
        self._report_preview()

    def _report_preview(self) -> None:
        """Publish the newest preview if it has changed since the last call."""
        file = self.folder / "preview.png"
        with contextlib.suppress(FileNotFoundError, redis.RedisError):
            written = file.stat().st_mtime_ns
            if written != self.reported.preview_time_ns:
                self._context.publish_preview(self.job.id, file.read_bytes())
                self.reported.preview_time_ns = written
                self._uploader.request()

    def _append_events(self, events: list[Event], **attempts: bool) -> None:
        """Append events to the job, with its reported progress; see `JobContext.append_events`."""
        self._context.append_events(self.job, events, self.reported.progress, **attempts)
