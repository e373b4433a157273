"""How a worker divides its time between requests and the versions that it loads by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.catalog.registry import ModelVersion
from core.settings import Settings
from workers.inference.context import InferenceContext
from workers.inference.model_cache import ModelCache
from workers.inference.model_loader import ModelLoader

STEP_S = 0.02


@pytest.fixture
def context(tmp_path: Path, root: Path) -> InferenceContext:
    """The context of a worker with two versions, without a queue server."""
    shipped = tmp_path / "checkpoints"
    shipped.mkdir()
    for name in ("vae-mnist-2d", "bihm-dna"):
        (shipped / name).symlink_to(root / "checkpoints" / name)
    settings = Settings(checkpoints=shipped, state=tmp_path / "state", queue_url="redis://127.0.0.1:1/0")
    return InferenceContext(settings)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that each step of loading was for; a step takes `STEP_S`, and a model
    has a hundred.
    """
    taken: list[str] = []

    def loading(_cache: ModelCache, version: ModelVersion, **_more: Any) -> Iterator[None]:
        for _ in range(100):
            time.sleep(STEP_S)
            taken.append(version.name)
            yield

    monkeypatch.setattr(ModelCache, "loading", loading)
    return taken


def run_for(loader: ModelLoader, seconds: float) -> float:
    """Let a busy worker's loader run again and again for some seconds; return how long that took."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        loader.run(0)
        time.sleep(0.001)
    return time.monotonic() - started


def test_a_busy_worker_spends_little_time_on_versions_that_nobody_needs(
    context: InferenceContext, steps: list[str]
) -> None:
    """A busy worker loads other versions in about a fifth of its time, an idle one all the time."""
    loader = ModelLoader(context, lambda: None)
    took = run_for(loader, 1.0)
    assert 2 <= len(steps) <= 0.2 * took / STEP_S + 2
    steps.clear()
    loader.run(10 * STEP_S)
    assert len(steps) >= 5


def test_a_candidate_is_not_put_off(
    context: InferenceContext, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy worker that rests from loading a version goes on when there is a candidate, and loads
    the candidate without a rest.
    """
    loader = ModelLoader(context, lambda: None)
    loader.run(0)
    (other,) = set(steps)
    steps.clear()
    (candidate,) = (one for one in context.registry.active() if one.name != other)
    monkeypatch.setattr(type(context.registry), "candidates", lambda _: [candidate])
    for _ in range(150):
        loader.run(0)
    assert steps.count(other) == 99
    assert steps.count(candidate.name) > 40
