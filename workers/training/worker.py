"""Claim trainings and auxiliary jobs from the job store and run them in threads.

One thread runs trainings, the others auxiliary jobs, which are short. A job exists only in the job
store; a message on the queue server only wakes an idle worker, so that it looks there. The state of
a training is in its run folder, so that another worker can resume it from its last checkpoint, with
a bit-identical result.
"""

import logging
import os
import platform
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import redis

from core import tracing
from core.blobs import remove_tree
from core.broker.codec import pack
from core.broker.connection import connect, server_time
from core.broker.keys import TRAINING_WAKEUP
from core.catalog.families import FAMILIES_KEY
from core.catalog.recipes import TRAINING_WORKERS
from core.files import replace_text, write_durably
from core.histograms import HISTOGRAMS
from core.jobs.leases import LeaseReaper
from core.jobs.records import AUXILIARY_KINDS, HOST_CHARACTERS, TERMINAL, TRAINING, Job, import_key
from core.log import best_effort, set_up
from core.settings import HEARTBEAT_S, Settings
from core.startup import QueueGuard
from core.storage import INSUFFICIENT_STORAGE, STORES_UNAVAILABLE, lacks_space, reason_of, storage_problem
from workers.training.auxiliary_jobs import AuxiliaryJobs
from workers.training.child_process import ChildProcesses
from workers.training.context import (
    ClaimLostError,
    JobContext,
    JobFailedError,
    JobPostponedError,
    WorkerStoppingError,
    disk_full_error,
)
from workers.training.local_folders import LOCAL_CLEANUP_S, LocalFolders, training_of
from workers.training.publication import VersionPublisher
from workers.training.training_run import TrainingRun

log = logging.getLogger(__name__)

CLEANUP_S = 1.0
QUICK_AUXILIARY_KINDS = ("import", "publication")
# If none of these exists, there is no GPU. Then no child process is started to count GPUs.
GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


# See docs/decisions.md#the-training-worker-imports-neither-torch-nor-celery
class TrainingWorker:
    """A training worker: a thread for trainings, several for auxiliary jobs, and one for heartbeats."""

    def __init__(self, settings: Settings) -> None:
        """Open the stores, and prepare connections to the queue server; start no thread yet."""
        self.context = JobContext(settings)
        self.children = ChildProcesses(self.context)
        self.publisher = VersionPublisher(self.context, self.children)
        self.folders = LocalFolders(self.context)
        self.auxiliary = AuxiliaryJobs(self.context, self.children, self.publisher)
        self.id = f"trainer-{socket.gethostname()[:HOST_CHARACTERS]}-{os.getpid()}-{uuid4().hex[:8]}"
        self.state = "ready"
        self.devices: int | None = None
        self._running: dict[str, Job] = {}
        self._claim_lock = threading.Lock()
        self._reaper = LeaseReaper(self.context.job_store, settings.job_lease_s, settings.max_attempts)
        self._training_queue = connect(settings, training=True)
        self._cleaned_up = 0.0
        self._ended = threading.Event()

    # --- life ---

    def start(self) -> None:
        """Claim and run jobs until `stop` is called; return when all threads have ended.

        Meanwhile the calling thread renews the leases of these jobs. At the end, jobs that this
        worker still holds are requeued.
        """
        auxiliary_threads = self.context.settings.auxiliary_workers
        kinds_by_thread: list[tuple[str, ...]] = [(TRAINING,), *[AUXILIARY_KINDS] * auxiliary_threads]
        if auxiliary_threads > 1:
            # one thread runs no dry runs, which are slow, so that imports need not wait
            kinds_by_thread[-1] = QUICK_AUXILIARY_KINDS
        threads = [threading.Thread(target=self._run_jobs, args=(kinds,)) for kinds in kinds_by_thread]
        threads.append(threading.Thread(target=self.discover_devices, name="discover-devices"))
        if self.context.shared:
            threads.append(threading.Thread(target=self._remove_unneeded_folders, name="local-folders"))
        for thread in threads:
            thread.start()
        # a thread of its own: a queue server that hangs must not delay the renewal of leases
        heartbeat = threading.Thread(target=self._run_heartbeat, name="heartbeat")
        heartbeat.start()
        while any(thread.is_alive() for thread in threads):
            best_effort(self._maintain)
            time.sleep(HEARTBEAT_S / 4 if self.context.stopping.is_set() else HEARTBEAT_S)
        self._ended.set()
        heartbeat.join()
        best_effort(lambda: self.context.job_store.release(self.id, "its holder stopped"))
        best_effort(lambda: self._training_queue.hdel(TRAINING_WORKERS, self.id))

    def stop(self) -> None:
        """Ask all threads to stop, so that `start` returns; do not wait for that.

        Running child processes first write their checkpoints.
        """
        self.state = "draining"
        self.context.stopping.set()

    def _run_heartbeat(self) -> None:
        """Publish the heartbeat every `HEARTBEAT_S` seconds until all other threads have ended."""
        while True:
            best_effort(self._publish_heartbeat)
            if self._ended.wait(HEARTBEAT_S):
                return

    def _maintain(self) -> None:
        """Renew the leases of this worker's jobs.

        Every `CLEANUP_S` seconds, also requeue the jobs of all workers whose lease has expired, and
        release the datasets of jobs that have ended, so that they can be deleted.
        """
        job_store = self.context.job_store
        if running := list(self._running):
            best_effort(lambda: job_store.renew_leases(self.id, self.context.settings.job_lease_s, running))
        if time.monotonic() - self._cleaned_up >= CLEANUP_S:
            self._cleaned_up = time.monotonic()
            for job_id in self._reaper.reap():
                log.warning("lease lapsed", extra={"job": job_id})
            self._release_datasets()

    def _publish_heartbeat(self) -> None:
        """Write the heartbeat to the queue server, and the state to the file for health checks."""
        heartbeat = {
            "at": server_time(self._training_queue),
            "state": self.state,
            "host": platform.node(),
            "pid": os.getpid(),
            "running": list(self._running),
            "devices": self.devices,
            "histograms": HISTOGRAMS.snapshot(),
        }
        self._training_queue.hset(TRAINING_WORKERS, self.id, pack(heartbeat))
        if file := self.context.settings.heartbeat_file:
            replace_text(file, self.state)

    def _release_datasets(self) -> None:
        """End the protection of datasets by jobs that have ended or do not exist."""
        for dataset, job_id in self.context.datasets.uses():
            job = self.context.job_store.get(job_id)
            if job is None or job.ended:
                self.context.datasets.release(dataset, job_id)

    def _remove_unneeded_folders(self) -> None:
        """Remove the folders of jobs that need none on this host, now and every `LOCAL_CLEANUP_S`
        seconds until this worker stops.

        An API process, whose cleanup does so, may be on other hosts only.
        """
        while not self.context.stopping.is_set():
            self.folders.remove_unneeded()
            self.context.stopping.wait(LOCAL_CLEANUP_S)

    # --- what this worker can train ---

    def discover_devices(self) -> None:
        """Set `devices` to the number of GPUs, and store descriptions of extra model families.

        The API reads the descriptions. Errors are logged. Without a GPU, or if counting fails,
        `devices` becomes 1.
        """
        best_effort(self._write_families)
        best_effort(self._count_devices)
        if self.devices is None and not self.context.stopping.is_set():
            self.devices = 1

    def _count_devices(self) -> None:
        """Set `devices` to the number of GPUs.

        Sets 1 if there is no GPU, or if the setting `training_device` names a single device.
        """
        device = self.context.settings.training_device
        several = device in {"auto", "cuda"} and any(Path(file).exists() for file in GPU_DEVICE_FILES)
        printed = self.children.query("devices") if several else None
        self.devices = int(orjson.loads(printed)["devices"]) if printed else 1

    def _write_families(self) -> None:
        """Write the descriptions of all families, including the extra ones, to a file or blob for
        the API.

        Does nothing if the setting `extra_models` names no folder.
        """
        file = self.context.paths.families
        if self.context.settings.extra_models is None or (printed := self.children.query("families")) is None:
            return
        if self.context.shared:
            self.context.blobs.put(FAMILIES_KEY, printed)
        else:
            write_durably(file, printed.decode())

    # --- jobs ---

    def _run_jobs(self, kinds: tuple[str, ...]) -> None:
        """Claim and run jobs of the given kinds, one at a time, until this worker stops."""
        while not self.context.stopping.is_set():
            try:
                job = self._claim(kinds)
            except Exception:
                log.exception("job store not readable")
                job = None
            if job is None:
                self._wait_for_wakeup()
                continue
            labels, started = (job.kind, str(job.request.get("family", ""))), time.monotonic()
            if job.token == 1:
                waited_s = (job.started_at or job.created_at) - job.created_at
                HISTOGRAMS.observe("training_queue_seconds", labels, waited_s)
                tracing.record("queue", job.traceparent or "", job.created_at, job.started_at)
            try:
                with tracing.span(
                    f"run {job.kind}", job.traceparent or "", kind="consumer", attributes={"reverie.job_id": job.id}
                ):
                    self.run_job(job)
            finally:
                HISTOGRAMS.observe("training_run_seconds", labels, time.monotonic() - started)
                del self._running[job.id]
                best_effort(lambda: self.remove_scratch(job))  # noqa: B023 - called at once
                best_effort(lambda: self.context.publish_job_update(job.id))  # noqa: B023 - called at once

    def _claim(self, kinds: tuple[str, ...]) -> Job | None:
        """Claim the next job of one of the given kinds; return None if there is none.

        A lock lets one thread claim at a time, because the limit on an owner's running auxiliary
        jobs counts the jobs of all threads.
        """
        with self._claim_lock:
            lease_s = self.context.settings.job_lease_s
            skip_owners = self._saturated_owners(kinds)
            for job in self.context.job_store.claim(self.id, lease_s, kinds=kinds, skip_owners=skip_owners):
                self._running[job.id] = job
                return job
            return None

    def _saturated_owners(self, kinds: tuple[str, ...]) -> list[str]:
        """Return the owners that already run as many auxiliary jobs on this worker as an owner may.

        An owner may use all auxiliary threads but two, and at least one. The owner "", which all
        jobs have without API keys, is not limited. The list is empty if `kinds` includes trainings,
        which are not limited.
        """
        if TRAINING in kinds:
            return []
        limit = max(1, self.context.settings.auxiliary_workers - 2)
        running = Counter(job.owner for job in list(self._running.values()) if job.kind in AUXILIARY_KINDS)
        return [owner for owner, count in running.items() if owner and count >= limit]

    def _wait_for_wakeup(self) -> None:
        """Wait at most a second for the message on the queue server that announces a new job.

        Because a message can be lost, the caller looks for jobs in either case.
        """
        try:
            self._training_queue.blpop([TRAINING_WAKEUP], timeout=1)
        except (redis.RedisError, OSError):
            self.context.stopping.wait(1.0)

    def run_job(self, job: Job) -> None:
        """Run a claimed job and record its result, or return the job to its queue.

        A job returns to its queue for a later try if the disk is full, if the database, the object
        store or the queue server is not available, or if another process works in its run folder,
        and at once if this worker stops. If this worker's claim on the job is no longer valid,
        nothing is recorded. After any other exception the job fails.
        """
        run: dict[str, Any] = {
            TRAINING: self.train,
            "estimate": self.auxiliary.estimate,
            "import": self.auxiliary.import_file,
            "publication": self.auxiliary.publish,
            "dataset": self.auxiliary.fetch_dataset,
        }
        try:
            with self.folders.locked(job):
                run[job.kind](job)
        except ClaimLostError:
            log.info("claim lost", extra={"job": job.id})
        except WorkerStoppingError:
            best_effort(lambda: self.context.job_store.requeue(job.claim, "its worker stopped"))
        except JobPostponedError as error:
            self.context.postpone(job, str(error))
        except JobFailedError as error:
            if error.status == INSUFFICIENT_STORAGE:
                self.context.defer(job, error.problem)
            else:
                self.context.fail(job, error)
        except (*STORES_UNAVAILABLE, redis.RedisError) as error:
            log.warning("job interrupted", extra={"job": job.id}, exc_info=True)
            self.context.defer(job, storage_problem(error, "the job runs, but its state"))
        except Exception as error:
            if isinstance(error, OSError) and lacks_space(error):
                self.context.defer(job, disk_full_error(f"the disk is full ({reason_of(error)})").problem)
                return
            log.exception("job failed", extra={"job": job.id})
            reason = reason_of(error) if isinstance(error, OSError) else str(error)
            detail = f"an internal error: {type(error).__name__}: {reason}"
            self.context.fail(job, JobFailedError("Training failed", detail))

    def train(self, job: Job) -> None:
        """Run the training of a job to its end, then publish its last checkpoint as a version."""
        run = TrainingRun(self.context, self.children, job, self.devices or 1)
        run.run()
        self.publisher.publish(job, run.request, run.folder)

    def remove_scratch(self, job: Job) -> None:
        """Delete the scratch folder of a job, and the file that it imports, if the job has ended.

        If the job was requeued, its next run needs the files, and they are kept. If hosts share a
        blob store, the folders are also deleted if another worker may run the job.
        """
        state = self.context.job_store.states([job.id]).get(job.id)
        ended = state is None or state.status in TERMINAL
        if not self.context.shared:
            if ended:
                remove_tree(self.context.paths.auxiliary_job(job.id))
            return
        if ended and job.kind == "import":
            self.context.blobs.delete(import_key(job.id))
        for job_id in {job.id, training_of(job)}:
            self.folders.remove(job_id)


def run(settings: Settings) -> None:
    """Run a training worker until SIGTERM or SIGINT, then exit.

    The exit status is not 0 if the queue server turned out to belong to another instance of the
    service.
    """
    set_up(settings.log_level, "training")
    tracing.set_up(settings, "training")
    worker = TrainingWorker(settings)
    guard = QueueGuard(settings, worker.stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_arguments: worker.stop())
    guard.start()
    worker.start()
    sys.exit(guard.exit_status)
