"""Hold what the batches and the jobs of an inference worker share: stores, models and counters."""

import hashlib
import json
import math
import os
import socket
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from uuid import uuid4

from core import tracing
from core.blobs import open_blobs
from core.broker.codec import Outcome
from core.broker.connection import FireAndForgetClient, connect
from core.broker.keys import preview_key
from core.catalog.model_names import may_load, parse_patterns
from core.catalog.operations import BY_METHOD
from core.catalog.registry import Registry
from core.histograms import HISTOGRAMS
from core.imaging.pictures import grid
from core.jobs.records import HOST_CHARACTERS
from core.jobs.store import JobStore
from core.log import best_effort
from core.settings import Settings
from core.shared import open_versions
from core.storage import ObjectStoreError, reason_of
from workers.inference import engine
from workers.inference.device_kind import device_kind
from workers.inference.engine import Options, SliceResult, Slices, State
from workers.inference.loaded_model import LoadedModel
from workers.inference.model_cache import ModelCache, NoRoomError
from workers.inference.preemption import Preemption
from workers.inference.watchdog import Watchdog

INLINE_BYTES = 256 << 10  # a larger result goes to the blob store, and its message or row names it

# Shortest time slice of tiles, about the time of one tile on a CPU: the state of an interrupted
# operation on tiles has megabytes.
MIN_TILE_SLICE_S = 0.25

# A forward pass of less than a time slice divided by this is too short to be interrupted.
_SHORT_SLICES = 4

# If a model's layers take longer than this on average, batches may also interrupt between functions.
_LONG_LAYER_S = 0.01

# Least time between two previews of one request, how many images they show, and how long the last
# one is kept.
PREVIEW_INTERVAL_S, PREVIEW_ROWS, PREVIEW_TTL_S = 0.4, 64, 600

_MAX_PREVIEW_TIMES = 32


class CannotRunError(Exception):
    """Raised if this worker cannot run a model version that another worker may be able to run."""


class InferenceContext:
    """The settings, stores, models and counters that the parts of one inference worker share."""

    def __init__(self, settings: Settings) -> None:
        """Open the job store and the blob store, and prepare a connection to the queue server.

        The connection is made by the first command that uses it.
        """
        self.settings = settings
        self.worker_id = f"{socket.gethostname()[:HOST_CHARACTERS]}-{os.getpid()}-{uuid4().hex[:8]}"
        self.queue_server = connect(settings)
        self.commands = FireAndForgetClient(self.queue_server)
        self.job_store = JobStore(settings.database)
        self.blobs = open_blobs(settings.blobs)
        versions = open_versions(settings, self.job_store.engine, self.blobs)
        self.registry = Registry(settings.checkpoints, versions)
        self.watchdog = Watchdog(settings.stall_s)
        self.model_cache = ModelCache(settings, self._finish_step, self.registry.is_current)
        self.models = parse_patterns(settings.models)
        self.device_kind = device_kind(self.model_cache.device, settings.threads)
        described = json.dumps([self.device_kind, self.models]).encode()
        self.group = f"group-{hashlib.sha256(described).hexdigest()[:12]}"
        self.preemption = Preemption(self.targets)
        self.counters: Counter[str] = Counter()
        self._preview_times: dict[str, float] = {}

    @property
    def targets(self) -> list[str]:
        """The targets in the names of this worker's queues: its id, its group, and maybe "".

        A group is all workers with the same device kind and the same setting `models`. The queues
        of "" have messages of earlier releases, for all models and devices. Only a worker that the
        setting `models` does not restrict reads them.
        """
        return [self.worker_id, self.group, *([] if self.models else [""])]

    def _finish_step(self) -> None:
        """Report progress to the watchdog, then let an interactive batch interrupt the work.

        The model cache calls this method after each step of an operation.
        """
        self.watchdog.advance()
        self.preemption.check()

    def may_load(self, ref: str) -> bool:
        """Return whether the setting `models` allows a version (`name@version`)."""
        return may_load(self.models, ref)

    def load_model(self, name: str, version: str, method: str) -> LoadedModel:
        """Return the model of a name and version, ready to run the operation `method`.

        If the model is not in memory, its checkpoint is loaded. If the operation has no batch sizes
        (batch plan) yet, they are chosen. Raises CannotRunError if this worker may not load the
        version, cannot read its file on this host, or lacks memory for it; ObjectStoreError if the
        object store cannot be used now; and any other exception that loading raises.
        """
        if not self.may_load(name):
            raise CannotRunError(f"REVERIE_MODELS of the worker leaves out {name}")
        model_version = self.registry.find(f"{name}@{version}")
        if model_version is None:  # it may have been published just now on another host
            self.registry.refresh(force=True)
            model_version = self.registry.find(f"{name}@{version}")
        if model_version is None:
            raise CannotRunError(f"the worker has no checkpoint of {name}@{version}")
        try:
            return self.model_cache.get(model_version, method)
        except NoRoomError as error:
            raise CannotRunError(str(error)) from error
        except ObjectStoreError:
            raise  # the store is the same for all workers
        except OSError as error:  # such as a full disk or a missing file, which another host may not have
            raise CannotRunError(f"the worker cannot read {name}@{version}: {reason_of(error)}") from error

    def run(
        self, model: LoadedModel, method: str, options: Options, slices: Slices, state: State | None, *, isolated: bool
    ) -> tuple[list[Outcome] | SliceResult, float]:
        """Run an operation for one time slice; return the result and the seconds it took.

        A time slice is the time that a worker gives to one batch before it receives the next
        message. `slices` has the rows of each request in the batch. The result is one outcome per
        request, or a SliceResult if the operation is unfinished. `method` names the model's method.
        `state` continues an operation: it is the state of the operation's last SliceResult, or None
        at the beginning. Interactive batches may interrupt long work, but never `isolated` work,
        which may crash the process and with it the batch that interrupts.
        """
        tiled, rows, clock = BY_METHOD[method].tiled, sum(one.rows for one in slices), self.preemption.clock
        takes_time = model.entry.card.operations[method].sliced or _SHORT_SLICES * rows > model.plans[method].slice_rows
        started = clock()
        ends = started + max(self.settings.time_slice_s, MIN_TILE_SLICE_S if tiled else 0.0)
        preemptible = (tiled or takes_time) and not isolated
        functions = tiled or rows >= model.long_layer_rows.get(method, math.inf)
        interruptions = self.preemption.preemptible(functions=functions) if preemptible else nullcontext()
        checks = self.preemption.checks
        with interruptions as checked, tracing.span("forward pass", attributes={"reverie.rows": rows}):
            result = engine.run(model, method, options, slices, state, lambda: clock() < ends)
        seconds = clock() - started
        if checked and not functions and seconds > _LONG_LAYER_S * (self.preemption.checks - checks):
            model.long_layer_rows[method] = rows
        self.counters[f"rows:{method}"] += rows
        self.counters["batches"] += 1
        self.counters["busy_us"] += int(seconds * 1e6)
        labels = (model.entry.name, method)
        HISTOGRAMS.observe("run_seconds", labels, seconds)
        HISTOGRAMS.observe("batch_rows", labels, rows)
        return result, seconds

    def publish_previews(self, slices: Slices, result: SliceResult) -> None:
        """Store a preview of each request's unfinished images on the queue server, as a PNG grid.

        API processes read the previews there. If the last preview of a request is less than
        `PREVIEW_INTERVAL_S` seconds old, no new one is stored. `slices` has the rows of each
        request in the batch, and `result` their unfinished images.
        """
        now = time.monotonic()
        for index, one in enumerate(slices):
            preview = result.preview_of(slices, index)
            if preview is None or now - self._preview_times.get(one.id, 0.0) < PREVIEW_INTERVAL_S:
                continue
            if len(self._preview_times) > _MAX_PREVIEW_TIMES:
                recent = {key: at for key, at in self._preview_times.items() if now - at < PREVIEW_INTERVAL_S}
                self._preview_times = recent
            self._preview_times[one.id] = now
            command = ("SET", preview_key(one.id), grid(preview[:PREVIEW_ROWS]), "EX", PREVIEW_TTL_S)
            best_effort(partial(self.commands.send, *command))


def unloadable_problem(error: Exception) -> dict[str, object]:
    """Return the problem (503) of requests whose model cannot be loaded because of `error`."""
    detail = f"the model cannot be loaded: {describe_load_error(error)}"
    return {"type": "about:blank", "title": "Model unavailable", "status": 503, "detail": detail}


def describe_load_error(error: Exception) -> str:
    """Return the text for clients of an error of loading a model; it has no paths of this host."""
    return reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
