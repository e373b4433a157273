"""What all jobs of a training worker use: its settings and stores, and how a job's state is written."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import redis

from core.broker.codec import pack, unpack
from core.broker.connection import connect
from core.broker.keys import JOB_UPDATES, STREAM_LENGTH, WORKERS, preview_key
from core.catalog.registry import Registry
from core.catalog.versions import Versions
from core.jobs.records import Event, Job
from core.jobs.store import JobStore
from core.paths import StatePaths
from core.settings import Settings
from workers.training.errors import ClaimLostError, TrainingFailedError

log = logging.getLogger(__name__)

PREVIEW_TTL_S = 600
HEARTBEAT_AGE_S = 5.0
"""Age in seconds of a heartbeat after which an inference worker counts as dead."""


def message_event(text: str, **more: Any) -> Event:
    """Return an event that tells the client something in words."""
    return Event("message", {"level": "info", "message": text, **more})


class JobContext:
    """Settings and stores of a training worker, and the writes that need a valid claim."""

    def __init__(self, settings: Settings) -> None:
        """Open the job store and the folders. `stopping` is set when the worker is to stop."""
        self.settings = settings
        self.paths = StatePaths(settings.state.resolve())
        self.job_store = JobStore(settings.database)
        self.versions = Versions(self.paths.checkpoints)
        self.registry = Registry(settings.checkpoints, self.paths.checkpoints)
        self.queue_server = connect(settings)
        self.stopping = threading.Event()

    def check_claim(self, job: Job) -> None:
        """Raise ClaimLostError if the claim on a job no longer holds."""
        if not self.job_store.is_held(job.claim):
            raise ClaimLostError

    def append_events(
        self,
        job: Job,
        events: Sequence[Event],
        progress: float,
        *,
        reset_attempts: bool = False,
        charge_attempt: bool = False,
    ) -> None:
        """Write events of a job and its progress, 0 to 1. Raises ClaimLostError."""
        if not self.job_store.append_events(
            job.claim, events, progress, reset_attempts=reset_attempts, charge_attempt=charge_attempt
        ):
            raise ClaimLostError
        with contextlib.suppress(redis.RedisError):
            self.publish_job_update(job.id)

    def complete(self, job: Job, result: dict[str, Any], version: str | None = None) -> None:
        """End a job with its result. `version`: the model version that it has made."""
        packed = pack(result)
        self._retry(lambda: self.job_store.finish(job.claim, result=packed, version=version))

    def fail(self, job: Job, error: TrainingFailedError) -> None:
        """End a job with a problem."""
        self._retry(lambda: self.job_store.finish(job.claim, problem=error.problem))

    def defer(self, job: Job, problem: dict[str, Any]) -> None:
        """Requeue a job until the disk has room; after `storage_wait_s` it fails with the problem."""
        log.warning("job deferred until the disk has room", extra={"job": job.id, "reason": problem["detail"]})
        wait_s = self.settings.storage_wait_s
        self._retry(lambda: self.job_store.defer(job.claim, problem, wait_s))

    def _retry(self, write: Callable[[], object]) -> None:
        """Write to the job store, again and again until it succeeds or this worker stops."""
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
        """Tell the API processes that a job has changed. Raises RedisError."""
        self.queue_server.xadd(JOB_UPDATES, {"ids": pack([job_id])}, maxlen=STREAM_LENGTH, approximate=True)

    def publish_preview(self, job_id: str, image: bytes) -> None:
        """Store a PNG of a training's images for the API processes. Raises RedisError."""
        self.queue_server.set(preview_key(job_id), image, ex=PREVIEW_TTL_S)

    def inference_workers(self) -> dict[str, dict[str, Any]]:
        """Return the recent heartbeats of inference workers, by worker id. Raises RedisError."""
        packed: Any = self.queue_server.hgetall(WORKERS)
        heartbeats = {name.decode(): unpack(data) for name, data in packed.items()}
        return {name: one for name, one in heartbeats.items() if time.time() - one["at"] < HEARTBEAT_AGE_S}

    def scratch_folder(self, job: Job) -> Path:
        """Create and return the folder of an auxiliary job's files. It is removed when the job has ended."""
        folder = self.paths.auxiliary_job(job.id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
