"""Load models for tests as a worker that has had the time to measure their batch plans."""

from __future__ import annotations

from core.catalog.registry import ModelVersion
from workers.inference.loaded_model import LoadedModel
from workers.inference.model_cache import ModelCache


def load_and_measure(cache: ModelCache, entry: ModelVersion) -> LoadedModel:
    """Return a model whose operations all have measured or stored batch plans."""
    for _ in cache.loading(entry):
        pass
    while cache.measure_step():
        pass
    return cache.get(entry, next(iter(entry.operations)))
