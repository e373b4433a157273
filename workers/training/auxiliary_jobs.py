"""Run auxiliary jobs: dry runs, imports of checkpoints, publications, and downloads of datasets."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from core.catalog.versions import FILE, VersionRemovedError
from core.datasets.readers.base import ConversionOptions
from core.datasets.store import NameTakenError
from core.jobs.records import Job, import_key
from core.resources import NameOwnedError
from core.settings import Settings
from workers.training.child_process import ChildProcesses
from workers.training.context import JobContext, JobFailedError, message_event
from workers.training.dataset_download import download_dataset
from workers.training.publication import VersionPublisher
from workers.training.run_folder import RECIPE_FILE


class AuxiliaryJobs:
    """Runs the auxiliary jobs of a training worker, by one method for each kind of job.

    Each method completes its job. It raises JobFailedError if the job cannot be completed,
    ClaimLostError if the job's claim is lost, and WorkerStoppingError if this worker stops.
    """

    def __init__(self, context: JobContext, children: ChildProcesses, publisher: VersionPublisher) -> None:
        """Keep the worker's context, child processes and publisher; run nothing yet."""
        self._context = context
        self._children = children
        self._publisher = publisher

    def estimate(self, job: Job) -> None:
        """Estimate the memory and time of the training that the job's recipe describes.

        A child process times a few steps. The estimate becomes the result of the job.
        """
        folder = self._context.scratch_folder(job)
        recipe = folder / RECIPE_FILE
        recipe.write_text(json.dumps(job.request["recipe"]))
        command = self._children.command("estimate", str(recipe), *self._children.common_options(job))
        estimate = self._children.run_json(job, command, folder / "log", self._context.settings.estimate_s)
        self._context.complete(job, estimate)

    def import_file(self, job: Job) -> None:
        """Check a checkpoint that a client uploaded against its card; publish it as a version.

        The version becomes active if the model has no active version. If a crash interrupts this
        method, a second call for the same job continues with the same version number.
        """
        name, versions = job.model, self._context.versions
        folder = self._context.scratch_folder(job)
        file = folder / FILE  # written by the API, which may be on another host
        version = self._publisher.reserve_number(name, folder) if (folder / "version").exists() else ""
        if self._context.shared:
            version = self._publisher.reserve_number(name, folder)
        if not version or not versions.exists(name, version):
            if self._context.shared:
                self._context.blobs.copy_to(import_key(job.id), file)
            self._children.run(job, self._children.command("check", str(file)), folder / "log")
        version = self._publisher.reserve_number(name, folder)
        self._context.registry.refresh(force=True)
        active = self._context.registry.find(name)
        if active is not None and active.version == version:
            active = None  # published by an earlier attempt of this job
        if active is not None:
            versions.pin(name, active.version)
        if not versions.exists(name, version):
            self._publisher.confirm_owner(job, shared=job.request.get("shared"))
            versions.publish(file, name, version)
        if active is None:
            with suppress(VersionRemovedError):  # deleted by a client meanwhile
                versions.activate(name, version)
        self._context.complete(job, {"model": name, "version": version}, version)

    def publish(self, job: Job) -> None:
        """Publish the last checkpoint of the training that the job's request names.

        This training was paused, cancelled or failed; a training that succeeds publishes a version
        itself.
        """
        folder = self._context.paths.run(job.request["training"])
        if self._context.shared:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RECIPE_FILE).write_text(json.dumps(job.request["recipe"]))
            complete = self._context.runs.restore(job.request["training"], folder)
            if not complete and not (folder / "state.pt").exists():
                raise JobFailedError("Checkpoint missing", "files of the training's checkpoint are missing")
        self._publisher.publish(job, job.request, folder)

    def fetch_dataset(self, job: Job) -> None:
        """Download a public dataset by its name, or a file by its URL, and store it as a dataset.

        The job's request has the name or URL, and says how the file is converted. Raises
        JobFailedError (409) if a dataset with the requested name exists and has other content, or
        if the name belongs to another owner. See
        docs/decisions.md#datasets-known-by-name-are-fetched-by-a-job.
        """
        request = job.request
        source, name = request.get("source_url") or request["source"], request["name"]
        datasets = self._context.datasets
        with datasets.scratch_folder() as folder:
            self._context.append_events(job, [message_event(f"fetching {source}")], 0.05)
            if "source_url" in request:
                download_dataset(self._context, job, folder / "file")
            else:
                self._fetch_named(job, folder / "file")
            self._context.append_events(job, [message_event(f"converting {source}")], 0.7)
            about = self._convert(job, folder)
            confirm = partial(self._context.resources.confirm, "dataset", name, job.owner, shared=request.get("shared"))
            try:
                about, _ = datasets.add(folder / "made", name, {**about, "source": source}, confirm)
            except NameOwnedError as error:
                detail = f"the name {name} was taken by another dataset meanwhile; choose another name"
                raise JobFailedError("Not in this state", detail, 409) from error
            except NameTakenError as error:
                detail = f"there is a dataset {name} with other content; use another name, or delete that one first"
                raise JobFailedError("Not in this state", detail, 409) from error
        self._context.complete(job, about)

    def _fetch_named(self, job: Job, file: Path) -> None:
        """Download the public dataset that the job's request names, such as MNIST, to `file`."""
        data = ["--data-folder", str(self._context.settings.data.resolve())]
        command = self._children.command("dataset", job.request["source"], str(file), *data)
        try:
            self._children.run(job, command, self._log_file(job), *self._conversion_limits())
        except JobFailedError as error:
            raise error.with_detail("or upload the files of the dataset") from error

    def _convert(self, job: Job, folder: Path) -> dict[str, Any]:
        """Convert the file `folder / "file"` to a dataset, and return the dataset's description.

        The job's request has the options of the conversion. Raises JobFailedError if the file
        cannot be used as a dataset.
        """
        options = json.dumps(asdict(_conversion_options(job.request, self._context.settings)))
        command = [sys.executable, "-m", "core.datasets.convert", str(folder), options, str(os.getpid())]
        printed = self._children.run(job, command, self._log_file(job), *self._conversion_limits())
        about: dict[str, Any] = json.loads(printed)
        if problem := about.get("problem"):
            raise JobFailedError("Not possible", problem["detail"], problem["status"])
        return about

    def _log_file(self, job: Job) -> Path:
        """Return the path of the log of a job's child processes, in the job's scratch folder."""
        return self._context.scratch_folder(job) / "log"

    def _conversion_limits(self) -> tuple[float, str]:
        """Return a conversion's time limit in seconds, and advice for a client that exceeds it."""
        limit_s = self._context.settings.conversion_timeout_s
        return limit_s, "set REVERIE_CONVERSION_TIMEOUT_S, or upload the files of the dataset"


def _conversion_options(request: dict[str, Any], settings: Settings) -> ConversionOptions:
    """Return the options of a conversion that a job's request asks for.

    The API has checked the fields of the request already.
    """
    resize = request.get("resize")
    height, width = map(int, resize.split("x")) if resize else (0, 0)
    return ConversionOptions(
        format=request.get("format") or "",
        kind="photographs" if request.get("kind") == "photographs" else "",
        resize=(height, width) if resize else None,
        validation=request["validation"],
        test=request.get("test", ConversionOptions.test),
        unpacked_bytes=settings.max_unpacked_bytes,
        reserve_bytes=settings.min_free_disk_bytes,
    )
