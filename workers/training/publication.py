"""Publish checkpoints as versions: measure them on the test split, store them and activate them."""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import redis

from core.catalog.cards import is_better, metrics_from_json
from core.catalog.rollout import (
    Heartbeats,
    drain_reason,
    has_loaded,
    is_loaded,
    load_error,
    missing_workers,
    slow_workers,
)
from core.catalog.versions import VersionRemovedError
from core.files import write_durably
from core.jobs.records import Job
from core.log import best_effort
from core.resources import NameOwnedError
from workers.training.child_process import POLL_S, ChildProcesses
from workers.training.context import (
    ClaimLostError,
    JobContext,
    JobFailedError,
    WorkerStoppingError,
    message_event,
)
from workers.training.run_folder import read_json

PROGRESS = 0.99  # progress of a job while its version is measured and activated
SUPERSEDED = "another version was chosen meanwhile"

Figures = list[dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """Metrics on the test split: `figures` of a new version, `against` of the active version."""

    figures: Figures = field(default_factory=list)
    against: Figures = field(default_factory=list)


# See docs/decisions.md#the-first-figure-of-a-card-decides-which-version-is-better
class VersionPublisher:
    """Publishes checkpoints of trainings as versions, and activates them as the request says."""

    def __init__(self, context: JobContext, children: ChildProcesses) -> None:
        """Keep the worker's context and child processes; publish nothing yet."""
        self._context = context
        self._children = children
        self.timeout_s = context.settings.rollout_timeout_s
        """Time in which workers must load a version that becomes active."""

    def publish(self, job: Job, request: dict[str, Any], folder: Path) -> None:
        """Measure the last checkpoint in the run folder `folder`, and publish it as a version.

        `request["serve"]` says when the version becomes active: "always", "never" or, by default,
        "if better" than the active version. The job then succeeds; its result has the version and
        its metrics. If a crash interrupts this method, a second call continues with the same
        version, whose number and metrics are kept in `folder`. When the version is stored, the
        job's failed attempts are counted from 0 again.
        """
        name, scratch = job.model, folder / job.id
        scratch.mkdir(exist_ok=True)
        version = self.reserve_number(name, scratch)
        self._context.registry.refresh(force=True)
        active = self._context.registry.find(name)
        if active is not None and active.version == version:
            active = None
        measured = scratch / "measured.json"
        if not self._context.versions.exists(name, version) or not measured.exists():
            event = message_event(f"measuring version {version} on the test split")
            self._context.append_events(job, [event], PROGRESS)
            options = request.get("evaluation", {})
            words = ["--checkpoints", str(scratch), "--version", version, "--job", job.id]
            words += [f"--count={options.get('count', 1000)}", f"--k={options.get('k', 100)}"]
            words += self._children.common_options(job, device=False)
            words += ["--against", str(active.file())] if active else []
            command = self._children.command("publish", str(folder), *words)
            printed = self._children.run_json(job, command, folder / "log")
            measured.write_bytes(orjson.dumps(printed))
            if active is not None:
                self._context.versions.pin(name, active.version)
            self.confirm_owner(job, shared=request.get("shared"))
            with contextlib.suppress(FileExistsError):
                self._context.versions.publish(Path(printed["path"]), name, version)
        printed = read_json(measured)
        measurement = Measurement(printed.get("figures", []), printed.get("against", []))
        policy = request.get("serve", "if better")
        # from here on this worker only waits for others: if it dies, that is not due to the job
        self._context.append_events(job, [], PROGRESS, reset_attempts=True)
        self.apply_policy(job, policy, version, measurement, None if active is None else active.version)
        self._context.complete(job, {"model": name, "version": version, "figures": measurement.figures}, version)

    def confirm_owner(self, job: Job, *, shared: bool | None) -> None:
        """Make sure that a model's first version is stored for the job's owner, before it is stored.

        `shared` is that of the job's request. Raises JobFailedError (409) if the model does not
        exist and its name belongs to another owner.
        """
        self._context.registry.refresh(force=True)
        if self._context.registry.find(job.model) is not None:
            return
        try:
            self._context.resources.confirm("model", job.model, job.owner, shared=shared)
        except NameOwnedError as error:
            detail = f"the name {job.model} was taken by another model meanwhile; choose another name"
            raise JobFailedError("Not in this state", detail, 409) from error

    def reserve_number(self, name: str, folder: Path) -> str:
        """Reserve a version number of the model `name` and return it.

        The number is stored in `folder`: a second call with the same folder returns the same
        number.
        """
        file = folder / "version"
        if not file.exists():
            self._context.registry.scan()
            write_durably(
                file, self._context.versions.reserve(name, self._context.registry.versions(name), folder.name)
            )
        return file.read_text()

    def apply_policy(self, job: Job, policy: str, version: str, measurement: Measurement, active: str | None) -> None:
        """Activate a published version if `policy` says so, and append an event with the decision.

        `policy` is "if better" (than the version `active`), "always" or "never". If the model has
        no active version (`active` is None), the version is activated whatever the policy.
        """
        improved = is_better(metrics_from_json(measurement.figures), metrics_from_json(measurement.against))
        text = f"version {version} is published"
        if active is None or policy == "always" or (policy == "if better" and improved):
            problem = self.activate(job, version, active)
            text += f", but not active: {problem}" if problem else " and active"
        elif policy == "if better":
            reason = "the new figure is no better" if improved is not None else "the figures cannot be compared"
            text += f"; version {active} stays active: {reason}"
        else:
            text += f"; version {active} stays active"
        self._context.append_events(job, [message_event(text, version=version, **vars(measurement))], PROGRESS)

    def activate(self, job: Job, version: str, active: str | None) -> str:
        """Wait until the inference workers have loaded a version, then make it active.

        After `timeout_s` seconds, workers that have not loaded the version are stopped, and the
        version becomes active on the others; an event says so. Returns "", or the reason why the
        version did not become active: a worker could not load it, no worker has loaded it and the
        model has another active version, `active`, or it was deleted or another version has been
        chosen meanwhile. Raises WorkerStoppingError if this worker stops, and ClaimLostError if
        this worker's claim on the job is lost; then the version does not become active.
        """
        versions = self._context.versions
        try:
            versions.stage(job.model, version)
        except VersionRemovedError:
            return "it was deleted meanwhile"
        try:
            problem = self._roll_out(job, version, active)
        except ClaimLostError:
            best_effort(lambda: self._unstage_unless_running(job, version))
            raise
        except Exception:
            best_effort(lambda: versions.unstage(job.model, version))
            raise
        if problem:
            versions.unstage(job.model, version)
        return problem

    def _roll_out(self, job: Job, version: str, active: str | None) -> str:
        """Activate a staged version as `activate` does; return "" or why it is not active."""
        name, ref, versions = job.model, f"{job.model}@{version}", self._context.versions
        workers, problem = self._wait_until_loaded(job, version)
        if problem:
            return problem
        if active is not None and not has_loaded(workers, ref):
            return f"{missing_workers(workers, ref)}; version {active} stays active, PATCH /v1/models/{name} switches"
        self._context.check_claim(job)
        if (
            has_loaded(workers, ref)
            and (slow := slow_workers(workers, ref))
            and not versions.is_superseded(name, version)
        ):
            reason = drain_reason(workers, ref, self.timeout_s)
            self._context.append_events(job, [message_event(reason, version=version)], PROGRESS)
            self._context.drain_workers(slow, reason)
        return "" if versions.activate_candidate(name, version) else SUPERSEDED

    def _wait_until_loaded(self, job: Job, version: str) -> tuple[Heartbeats, str]:
        """Wait until each inference worker has loaded a staged version, or `timeout_s` has passed.

        Returns the last heartbeats of the workers, and "" or the reason why the version must not
        become active.
        """
        name, ref, waiting_for = job.model, f"{job.model}@{version}", ""
        workers: Heartbeats = {}
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            if self._context.stopping.is_set():
                raise WorkerStoppingError
            if self._context.versions.is_superseded(name, version):
                return workers, SUPERSEDED
            try:
                workers = self._context.inference_workers()
            except (redis.RedisError, OSError):
                workers = {}
                time.sleep(POLL_S)
                continue
            if is_loaded(workers, ref):
                return workers, load_error(workers, ref)
            if (missing := missing_workers(workers, ref)) != waiting_for:
                waiting_for = missing
                text = f"waiting, at most {self.timeout_s:.0f} s, for version {version} to be loaded: {missing}"
                self._context.append_events(job, [message_event(text)], PROGRESS)
            time.sleep(0.1)
        return workers, load_error(workers, ref)

    def _unstage_unless_running(self, job: Job, version: str) -> None:
        """Unstage a version, unless another worker has claimed the job and activates it."""
        state = self._context.job_store.states([job.id]).get(job.id)
        if state is None or state.status != "running":
            self._context.versions.unstage(job.model, version)
