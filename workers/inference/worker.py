"""Implement the inference worker: its start and stop, and its heartbeat."""

import gc
import hashlib
import logging
import os
import platform
import resource
import signal
import threading
import time

import torch

from core.broker.codec import pack
from core.broker.connection import server_time
from core.broker.keys import QUEUES, WORKERS, catalog_key, drain_key, queue_key
from core.files import replace_text
from core.histograms import HISTOGRAMS
from core.log import best_effort
from core.settings import HEARTBEAT_S, Settings
from models.kit import memory
from workers.inference.batches import BatchRunner
from workers.inference.context import InferenceContext
from workers.inference.jobs import JobRunner
from workers.inference.model_loader import ModelLoader

log = logging.getLogger(__name__)

# The list of versions in a worker's catalog is stored for so long, and again after this time.
_CATALOG_TTL_S, _CATALOG_REFRESH_S = 3600, 900


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
        self.loader = ModelLoader(self.context, self._publish_heartbeat)
        self.receiving = False
        """Whether Celery's consumer has started to receive messages."""
        self._draining = False
        self._catalog, self._catalog_scans, self._catalog_until = "", -1, 0.0
        self._beat = 0
        self._stopped = threading.Event()
        # apart, so that a job store that does not reply delays no heartbeat
        self._heartbeat = threading.Thread(target=self._run_heartbeat, name="heartbeat", daemon=True)
        self._leases = threading.Thread(target=self._renew_leases, name="leases", daemon=True)

    @property
    def state(self) -> str:
        """The state that the heartbeat reports: "loading", "ready" or "draining".

        The worker is ready as soon as it receives messages and one active model is loaded. Other
        models are loaded when a request needs them, or by `ModelLoader` when the worker is idle.
        """
        if self._draining:
            return "draining"
        loaded = bool(self.context.model_cache.capacity()) or not self.loader.loading
        return "ready" if self.receiving and loaded else "loading"

    def start(self) -> None:
        """Start the heartbeat, which reports "loading" until a model is loaded."""
        torch.set_num_threads(1)
        memory.keep_freed_memory()
        # the objects of imported modules stay: collections need not look at them
        gc.freeze()
        gc.enable()
        # before any work: a pass that holds the interpreter lock also stops the heartbeat thread
        self.context.watchdog.check()
        self._heartbeat.start()
        self._leases.start()

    def drain(self) -> None:
        """Report "draining" in the heartbeat, and let no more batches interrupt the running one.

        Celery itself stops the reception of messages.
        """
        self._draining = True
        self.context.preemption.consumer = None

    def stop(self) -> None:
        """Stop the heartbeat and the watchdog; delete the last heartbeat on the queue server."""
        self._stopped.set()
        self.context.watchdog.stop()
        for thread in (self._heartbeat, self._leases):
            if thread.ident is not None:
                thread.join(2)
        best_effort(lambda: self.context.queue_server.hdel(WORKERS, self.context.worker_id))
        best_effort(self._hand_over)

    def _hand_over(self) -> None:
        """Move the messages in this worker's own queues to the queues of its worker group.

        Other workers of the group (same device kind and same setting `models`) then receive them.
        """
        client, worker_id, group = self.context.queue_server, self.context.worker_id, self.context.group
        for queue in QUEUES:
            while client.rpoplpush(queue_key(queue, worker_id), queue_key(queue, group)) is not None:
                pass

    def _run_heartbeat(self) -> None:
        """Publish the heartbeat every `HEARTBEAT_S` seconds until `stop`."""
        while not self._stopped.wait(HEARTBEAT_S):
            self.context.watchdog.check()
            best_effort(self._report)

    def _renew_leases(self) -> None:
        """Renew the leases of this worker's jobs every `HEARTBEAT_S` seconds until `stop`."""
        while not self._stopped.wait(HEARTBEAT_S):
            self.jobs.renew_leases()

    def _report(self) -> None:
        """Publish the heartbeat, stop if that was requested, and write the state for health checks.

        The state is written to the file that the setting `heartbeat_file` names.
        """
        self._publish_heartbeat()
        self._check_drain()
        if file := self.context.settings.heartbeat_file:
            replace_text(file, self.state)

    def _check_drain(self) -> None:
        """Send SIGTERM to this process if its `drain_key` is set on the queue server.

        Another process sets the key if this worker has not loaded a new version in time.
        """
        reason = None if self._draining else self.context.queue_server.get(drain_key(self.context.worker_id))
        if reason is not None:
            log.warning("stopping", extra={"reason": reason.decode() if isinstance(reason, bytes) else str(reason)})
            self.drain()
            os.kill(os.getpid(), signal.SIGTERM)

    def _store_catalog(self) -> None:
        """Store the list of versions that this worker may load, under the list's digest.

        The list is on the queue server, and the heartbeat has only its digest. The list is stored
        again if it has changed or may expire soon.
        """
        registry, now = self.context.registry, time.monotonic()
        if registry.scans == self._catalog_scans and now < self._catalog_until:
            return
        scans = registry.scans
        refs = [ref for ref in registry.refs() if self.context.may_load(ref)]
        digest = hashlib.sha256("\n".join(refs).encode()).hexdigest()[:24]
        self.context.queue_server.set(catalog_key(digest), pack(refs), ex=_CATALOG_TTL_S)
        self._catalog, self._catalog_scans, self._catalog_until = digest, scans, now + _CATALOG_REFRESH_S

    def _publish_heartbeat(self) -> None:
        """Write the heartbeat (state, models, batch sizes, counters) to the queue server."""
        self._store_catalog()
        self._beat += 1
        model_cache = self.context.model_cache
        heartbeat = {
            "beat": self._beat,
            "at": server_time(self.context.queue_server),
            "state": self.state,
            "host": platform.node(),
            "pid": os.getpid(),
            "device": str(model_cache.device),
            "device_kind": self.context.device_kind,
            "group": self.context.group,
            "models": list(self.context.models),
            "catalog": self._catalog,
            "free_bytes": model_cache.free_bytes,
            "running": list(self.batches.running),
            "capacity": model_cache.capacity(),
            "loading": list(self.loader.loading),
            "refused": dict(self.loader.refused),
            "counters": dict(self.context.counters),
            "histograms": HISTOGRAMS.snapshot(),
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        self.context.queue_server.hset(WORKERS, self.context.worker_id, pack(heartbeat))
