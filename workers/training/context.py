"""Hold what the jobs of a training worker share: settings, stores and methods to write to a job."""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import redis

from core.blobs import open_blobs
from core.broker.codec import pack, unpack
from core.broker.connection import connect, server_time
from core.broker.keys import DRAIN_TTL_S, JOB_UPDATES, STREAM_LENGTH, WORKERS, drain_key, preview_key
from core.catalog.registry import Registry
from core.instance import is_shared
from core.jobs.records import Event, Job
from core.jobs.store import JobStore
from core.log import best_effort
from core.resources import ResourceStore
from core.settings import Settings, StatePaths
from core.shared import open_datasets, open_runs, open_versions
from core.storage import INSUFFICIENT_STORAGE

log = logging.getLogger(__name__)

PREVIEW_TTL_S = 600
POSTPONE_S = 10.0  # after so long, a job that waits for another process is claimed again
HEARTBEAT_AGE_S = 5.0  # an inference worker with an older heartbeat counts as dead


class WorkerStoppingError(Exception):
    """Raised to end a job because this worker stops; the job is then requeued."""


class ClaimLostError(Exception):
    """Raised if this worker's claim on a job (its lease and fencing token) is no longer valid.

    The job was cancelled or paused, or its lease expired and another worker may have claimed it.
    """


class JobPostponedError(Exception):
    """Raised if a job must wait for another process; its message is the reason for the client."""


class JobFailedError(Exception):
    """Raised if a job cannot be completed; `problem` is the error for the client (RFC 9457)."""

    def __init__(self, title: str, detail: str, status: int = 500) -> None:
        super().__init__(detail)
        self.title, self.status = title, status
        self.problem: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}

    def with_detail(self, more: str) -> "JobFailedError":
        """Return a copy of this error with "; " and `more` appended to its detail."""
        return JobFailedError(self.title, f"{self}; {more}", self.status)


def disk_full_error(reason: str) -> JobFailedError:
    """Return the error (507) of a job that the disk has no room for; its detail is `reason`."""
    detail = f"{reason}; delete trainings or datasets that are not needed"
    return JobFailedError("Disk full", detail, INSUFFICIENT_STORAGE)


def message_event(text: str, **more: Any) -> Event:
    """Return a "message" event with a text for people; `more` are further fields of its data."""
    return Event("message", {"level": "info", "message": text, **more})


class JobContext:
    """The settings and stores of all jobs of a training worker, and methods to write to a job.

    `stopping` is set when the worker has to stop. A write to a job takes effect only while this
    worker's claim on the job (its lease and fencing token) is valid.
    """

    def __init__(self, settings: Settings) -> None:
        """Open the job store and the store of versions; prepare the queue server's connection.

        The connection is made by the first command that uses it.
        """
        self.settings = settings
        self.paths = StatePaths(settings.state.resolve())
        self.job_store = JobStore(settings.database)
        self.blobs = open_blobs(settings.blobs)
        engine = self.job_store.engine
        self.versions = open_versions(settings, engine, self.blobs)
        self.datasets = open_datasets(settings, engine, self.blobs)
        self.resources = ResourceStore(engine)
        self.runs = open_runs(settings, engine, self.blobs)
        self.shared = is_shared(settings)
        self.registry = Registry(settings.checkpoints, self.versions)
        self.queue_server = connect(settings)
        self.stopping = threading.Event()

    def check_claim(self, job: Job) -> None:
        """Raise ClaimLostError if this worker's claim on the job (its lease) is not valid."""
        if not self.job_store.is_held(job.claim):
            raise ClaimLostError

    def append_events(self, job: Job, events: Sequence[Event], progress: float, **attempts: bool) -> None:
        """Store events and the progress (0 to 1) of a job, and notify the API processes.

        With `reset_attempts=True` in `attempts`, the number of the job's failed attempts becomes 0;
        with `charge_attempt=True` it increases by one; with `unblock=True`, the job waits for no
        disk or process any more. Raises ClaimLostError, and stores nothing, if this worker's claim
        on the job is lost.
        """
        if not self.job_store.append_events(job.claim, events, progress, **attempts):
            raise ClaimLostError
        with contextlib.suppress(redis.RedisError):
            self.publish_job_update(job.id)

    def complete(self, job: Job, result: dict[str, Any], version: str | None = None) -> None:
        """Record that a job has succeeded, with its result.

        `version` is the model version that the job made, or None. If the job store is not writable,
        the write is repeated until it succeeds or this worker stops.
        """
        self._retry(lambda: self.job_store.finish(job.claim, result=pack(result), version=version))

    def fail(self, job: Job, error: JobFailedError) -> None:
        """Record that a job has failed, with the problem of `error`.

        If the job store is not writable, the write is repeated until it succeeds or this worker
        stops.
        """
        self._retry(lambda: self.job_store.finish(job.claim, problem=error.problem))

    def defer(self, job: Job, problem: dict[str, Any]) -> None:
        """Return a job to its queue for a later try, because a disk or database is not writable.

        A job that is deferred again `storage_wait_s` seconds after its first deferral fails with
        `problem`.
        """
        log.warning("job deferred until the disk has room", extra={"job": job.id, "reason": problem["detail"]})
        self._retry(lambda: self.job_store.defer(job.claim, problem, self.settings.storage_wait_s))

    def postpone(self, job: Job, reason: str) -> None:
        """Return a job to its queue for `POSTPONE_S` seconds, because it waits for another process.

        The job never fails for that reason, which is a text for the client.
        """
        log.warning("job postponed", extra={"job": job.id, "reason": reason})
        self._retry(lambda: self.job_store.postpone(job.claim, reason, POSTPONE_S))

    def _retry(self, write: Callable[[], object]) -> None:
        """Call `write`, which writes to the job store, until it succeeds or this worker stops.

        There is a second between two calls.
        """
        while True:
            try:
                write()
            except Exception:
                log.exception("job store not writable; retrying")
                if self.stopping.wait(1.0):
                    return
            else:
                return

    def publish_job_update(self, job_id: str) -> None:
        """Notify the API processes that a job has changed.

        Raises RedisError if the queue server cannot be reached.
        """
        self.queue_server.xadd(JOB_UPDATES, {"ids": pack([job_id])}, maxlen=STREAM_LENGTH, approximate=True)

    def publish_preview(self, job_id: str, image: bytes) -> None:
        """Store a preview on the queue server: a PNG of images that a training's model generated.

        It expires after `PREVIEW_TTL_S` seconds. Raises RedisError if the queue server cannot be
        reached.
        """
        self.queue_server.set(preview_key(job_id), image, ex=PREVIEW_TTL_S)

    def inference_workers(self) -> dict[str, dict[str, Any]]:
        """Return the last heartbeat of each live inference worker, keyed by worker id.

        A worker is live if its heartbeat is younger than `HEARTBEAT_AGE_S` seconds. Raises
        RedisError if the queue server cannot be reached.
        """
        packed: Any = self.queue_server.hgetall(WORKERS)
        now = server_time(self.queue_server)
        heartbeats = {name.decode(): unpack(data) for name, data in packed.items()}
        return {name: one for name, one in heartbeats.items() if now - one["at"] < HEARTBEAT_AGE_S}

    def drain_workers(self, worker_ids: list[str], reason: str) -> None:
        """Make the inference workers `worker_ids` stop as at SIGTERM; supervisors start new ones.

        `reason` is a text for their logs. If the queue server cannot be reached, the workers
        continue to run.
        """
        for worker_id in worker_ids:
            best_effort(partial(self.queue_server.set, drain_key(worker_id), reason, ex=DRAIN_TTL_S))

    def scratch_folder(self, job: Job) -> Path:
        """Create the folder for the temporary files of an auxiliary job; return its path.

        The worker deletes the folder when the job has ended.
        """
        folder = self.paths.auxiliary_job(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
