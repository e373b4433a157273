"""What batches and jobs of an inference worker use: settings, stores, models, and what a worker counts."""

import os
import socket
import time
from collections import Counter
from functools import partial
from uuid import uuid4

from core.blobs import Blobs
from core.broker.codec import BatchSlice
from core.broker.connection import FireAndForgetClient, connect
from core.broker.keys import preview_key
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion, Registry
from core.imaging.pictures import grid
from core.jobs.store import JobStore
from core.log import best_effort
from core.paths import StatePaths
from core.settings import Settings
from workers.inference.engine import SliceResult
from workers.inference.model_cache import LoadedModel, ModelCache
from workers.inference.watchdog import Watchdog

INLINE_BYTES = 256 << 10
"""A larger result goes to the blob store, and its message or row names it."""

MIN_TILE_SLICE_S = 0.25
"""Shortest time slice of tiles, about what one tile takes on a CPU: their states have megabytes."""

PREVIEW_INTERVAL_S, PREVIEW_ROWS, PREVIEW_TTL_S = 0.4, 64, 600
"""Least time between two previews of one request, how many images they show, and how long the last one is kept."""

_MAX_PREVIEW_TIMES = 32


class InferenceContext:
    """Settings, stores and models of one worker process."""

    def __init__(self, settings: Settings) -> None:
        """Open the job store and the blob store; the queue server is connected to when it is needed."""
        self.settings = settings
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.queue_server = connect(settings)
        self.commands = FireAndForgetClient(self.queue_server)
        self.job_store = JobStore(settings.database)
        self.blobs = Blobs(settings.blobs)
        self.registry = Registry(settings.checkpoints, StatePaths(settings.state).checkpoints)
        self.watchdog = Watchdog(settings.stall_s)
        self.model_cache = ModelCache(settings, self.watchdog.advance)
        self.counters: Counter[str] = Counter()
        self._preview_times: dict[str, float] = {}

    def load_model(self, name: str, version: str) -> LoadedModel:
        """Return a model, loaded if it was not. Raises LookupError for an unknown one, and what loading raises."""
        return self.model_cache.get(self._model_version(name, version))

    def _model_version(self, name: str, version: str) -> ModelVersion:
        model_version = self.registry.find(f"{name}@{version}")
        if model_version is None:
            raise LookupError(f"no checkpoint of {name}@{version} here")
        return model_version

    def time_slice_s(self, method: str) -> float:
        """Return how long one time slice of an operation may take."""
        return max(self.settings.time_slice_s, MIN_TILE_SLICE_S if BY_METHOD[method].tiled else 0.0)

    def count(self, method: str, rows: int, seconds: float) -> None:
        """Count finished work, for the metrics."""
        self.counters[f"rows:{method}"] += rows
        self.counters["batches"] += 1
        self.counters["busy_us"] += int(seconds * 1e6)

    def publish_previews(self, slices: list[BatchSlice], result: SliceResult) -> None:
        """Store previews of unfinished images for the API processes."""
        now = time.monotonic()
        for index, one in enumerate(slices):
            preview = result.preview_of(slices, index)
            if preview is None or now - self._preview_times.get(one.id, 0.0) < PREVIEW_INTERVAL_S:
                continue
            if len(self._preview_times) > _MAX_PREVIEW_TIMES:
                self._preview_times = {
                    key: at for key, at in self._preview_times.items() if now - at < PREVIEW_INTERVAL_S
                }
            self._preview_times[one.id] = now
            command = ("SET", preview_key(one.id), grid(preview[:PREVIEW_ROWS]), "EX", PREVIEW_TTL_S)
            best_effort(partial(self.commands.send, *command))


def unloadable_problem(error: Exception) -> dict[str, object]:
    """Return the problem (503) of a request whose model cannot be loaded."""
    detail = f"the model cannot be loaded: {error}"
    return {"type": "about:blank", "title": "Model unavailable", "status": 503, "detail": detail}
