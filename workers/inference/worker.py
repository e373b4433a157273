"""Implement the inference worker: its start and end, its heartbeat, and the loading of models."""

import gc
import logging
import os
import platform
import resource
import threading
from collections.abc import Callable, Iterator

import torch

from core.broker.codec import pack
from core.broker.connection import server_time
from core.broker.keys import WORKERS
from core.catalog.registry import ModelVersion
from core.histograms import HISTOGRAMS
from core.log import best_effort
from core.settings import HEARTBEAT_S, Settings
from models.kit import memory
from workers.inference.batches import BatchRunner
from workers.inference.context import InferenceContext
from workers.inference.jobs import JobRunner

log = logging.getLogger(__name__)


class InferenceWorker:
    """A process that runs batches and jobs on one device, and reports its state by heartbeats.

    A crash loses nothing: the API processes and the job store give the same batches and jobs to
    another worker.
    """

    def __init__(self, settings: Settings) -> None:
        """Open the job store and the blob store; load no model yet."""
        self.context = InferenceContext(settings)
        self.batches = BatchRunner(self.context)
        self.jobs = JobRunner(self.context)
        self.candidates = CandidateLoader(self.context, self._publish_heartbeat)
        self.state = "warming"
        self._beat = 0
        self._stopped = threading.Event()
        # apart, so that a job store that does not reply delays no heartbeat
        self._heartbeat = threading.Thread(target=self._run_heartbeat, name="heartbeat", daemon=True)
        self._leases = threading.Thread(target=self._renew_leases, name="leases", daemon=True)

    def start(self, check_stop: Callable[[], None]) -> None:
        """Start the heartbeat, load the active models, and report "ready" in the heartbeat.

        `check_stop` is called between the steps of loading; it may raise an exception to end the
        start.
        """
        torch.set_num_threads(1)
        memory.keep_freed_memory()
        # before any work: a pass that holds the interpreter lock also stops the heartbeat thread
        self.context.watchdog.check()
        self._heartbeat.start()
        self._leases.start()
        with self.context.watchdog.working("loading models"):
            for _ in self.context.model_cache.load_all(self.context.registry.active()):
                check_stop()
        # what is loaded by now stays: a full collection of it would stop the process for a tenth of
        # a second
        gc.collect()
        # See docs/decisions.md#objects-loaded-at-start-are-excluded-from-garbage-collection
        gc.freeze()
        self.state = "ready"
        best_effort(self._publish_heartbeat)

    def drain(self) -> None:
        """Report "draining" in the heartbeat, and let no more batches interrupt the work.

        Celery itself stops the reception of messages.
        """
        self.state = "draining"
        self.context.preemption.consumer = None

    def stop(self) -> None:
        """Stop the heartbeat and the watchdog; delete the last heartbeat on the queue server."""
        self._stopped.set()
        self.context.watchdog.stop()
        for thread in (self._heartbeat, self._leases):
            if thread.ident is not None:
                thread.join(2)
        best_effort(lambda: self.context.queue_server.hdel(WORKERS, self.context.worker_id))

    def _run_heartbeat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            self.context.watchdog.check()
            best_effort(self._publish_heartbeat)

    def _renew_leases(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            self.jobs.renew_leases()

    def _publish_heartbeat(self) -> None:
        self._beat += 1
        model_cache = self.context.model_cache
        heartbeat = {
            "beat": self._beat,
            "at": server_time(self.context.queue_server),
            "state": self.state,
            "host": platform.node(),
            "pid": os.getpid(),
            "device": str(model_cache.device),
            "running": list(self.batches.running),
            "capacity": model_cache.capacity(),
            "refused": dict(self.candidates.refused),
            "counters": dict(self.context.counters),
            "histograms": HISTOGRAMS.snapshot(),
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        self.context.queue_server.hset(WORKERS, self.context.worker_id, pack(heartbeat))


class CandidateLoader:
    """Loads candidates, the versions that are to become active, while the worker does its work.

    `refused` has the error of each candidate that could not be loaded, keyed by `name@version`.
    """

    def __init__(self, context: InferenceContext, publish_heartbeat: Callable[[], None]) -> None:
        """Keep the worker's context, which has the registry and the models; load nothing yet.

        `publish_heartbeat` is called after each version that was loaded or could not be loaded.
        """
        self._context = context
        self._publish_heartbeat = publish_heartbeat
        self._loading: tuple[ModelVersion, Iterator[None]] | None = None
        self.refused: dict[str, str] = {}

    def load_step(self) -> None:
        """Run one step of loading a candidate; do nothing if all candidates are loaded or refused.

        A step is short, and the worker receives messages between two steps. If a version cannot be
        loaded, the error is stored in `refused`, and the version is not tried again while it is a
        candidate.
        """
        if self._loading is None and (candidate := self._next_candidate()) is not None:
            self._loading = (candidate, self._context.model_cache.loading(candidate))
        if self._loading is None:
            return
        candidate, steps = self._loading
        try:
            with self._context.watchdog.working("loading", candidate.ref):
                next(steps)
        except StopIteration:
            self._finish()
        except Exception as error:
            log.exception("version cannot be loaded", extra={"model": candidate.ref})
            self.refused[candidate.ref] = f"{type(error).__name__}: {error}"
            self._finish()

    def _next_candidate(self) -> ModelVersion | None:
        candidates = {version.ref: version for version in self._context.registry.candidates()}
        self.refused = {ref: reason for ref, reason in self.refused.items() if ref in candidates}
        holds = self._context.model_cache.holds
        return next((one for ref, one in candidates.items() if ref not in self.refused and not holds(ref)), None)

    def _finish(self) -> None:
        self._loading = None
        best_effort(self._publish_heartbeat)
