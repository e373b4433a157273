"""Batch plans: the first one needs few forward passes, measuring it changes no bits, and files keep
it for a kind of machine.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import models
from core.broker.codec import BatchSlice
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion, Registry
from core.settings import Settings
from tests.stack import checkpoints
from tests.workers.inference.loading import load_and_measure
from workers.inference import engine, plan_store
from workers.inference.batch_planner import BatchPlanner
from workers.inference.loaded_model import LoadedModel
from workers.inference.model_cache import ModelCache

VAE, TINY = "vae-mnist-2d", "tiny"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a worker with an empty state folder."""
    families = Path(__file__).parents[2] / "families"
    yield Settings(checkpoints=checkpoints(tmp_path / "c"), extra_models=families, state=tmp_path / "state")
    models.__path__.remove(str(families))


def version(settings: Settings, name: str) -> ModelVersion:
    """The active version of a model."""
    entry = Registry(settings.checkpoints).find(name)
    assert entry is not None
    return entry


def result(model: LoadedModel, method: str, rows: int) -> dict[str, Any]:
    """The fields of one request for `rows` rows with the default options."""
    random, options = np.random.default_rng(0), dict(model.entry.operations[method].defaults)
    codes = model.entry.operations[method].codes
    images = random.integers(0, 256, (rows, *model.entry.image), np.uint8)
    item = images if codes is None else random.normal(size=(rows, codes.size(options))).astype(np.float32)
    inputs = dict.fromkeys(BY_METHOD[method].inputs, item)
    outcomes = engine.run(model, method, options, [BatchSlice("a", 5, 0, rows, inputs)], None, lambda: True)
    assert isinstance(outcomes, list)
    assert outcomes[0].fields is not None, outcomes[0].problem
    return dict(outcomes[0].fields)


def events(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    """The log records of an event."""
    return [record for record in caplog.records if record.message == event]


def test_a_first_request_waits_for_three_passes(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """One pass counts computed values, and two compare the places in a batch. Nothing is
    measured, and no other operation runs.
    """
    caplog.set_level(logging.INFO)
    model = ModelCache(settings).get(version(settings, VAE), "sample")
    (first,) = events(caplog, "first batch plan")
    assert first.method == "sample"
    assert first.passes == 3
    assert not events(caplog, "batch plan measured")
    assert list(model.plans) == ["sample"]
    assert result(model, "sample", 70)["images"].shape == (70, 1, 28, 28)


FEW_ROWS = (1, 20)
ROWS = {"sample": (1, 3, 20, 70)}
"""Numbers of rows of requests whose bits are compared, keyed by method."""


def test_measuring_changes_no_bits(settings: Settings) -> None:
    """The rows of a request have the same bits before and after, for any number of rows."""
    cache, entry = ModelCache(settings), version(settings, VAE)
    before: dict[tuple[str, int], dict[str, Any]] = {}
    for method in entry.operations:
        model = cache.get(entry, method)
        assert len(model.plans[method].batch_sizes) == 1
        most = BY_METHOD[method].rows(70, 70, entry.operations[method].defaults)
        before |= {(method, rows): result(model, method, rows) for rows in ROWS.get(method, FEW_ROWS) if rows <= most}
    model = load_and_measure(cache, entry)
    assert len(model.plans["sample"].batch_sizes) > 1
    for (method, rows), fields in before.items():
        for name, value in result(model, method, rows).items():
            np.testing.assert_array_equal(value, fields[name], err_msg=f"{method} {rows} {name}")


def test_measured_plans_are_stored(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """Another worker reads them from the files and measures nothing. Where a file is damaged, it
    measures again.
    """
    caplog.set_level(logging.INFO)
    entry = version(settings, TINY)
    measured = dict(load_and_measure(ModelCache(settings), entry).plans)
    files = list((settings.state / "plans").glob("*.json"))
    assert len(files) == len(measured) == len(events(caplog, "batch plan measured"))
    for file in files:
        file.write_text(json.dumps({**json.loads(file.read_text()), "slice_rows": 3}))
    caplog.clear()
    stored = load_and_measure(ModelCache(settings), entry).plans
    assert {plan.slice_rows for plan in stored.values()} == {3}
    assert {method: plan.batch_sizes for method, plan in stored.items()} == {
        method: plan.batch_sizes for method, plan in measured.items()
    }
    assert not events(caplog, "first batch plan")
    files[0].write_text("{")
    load_and_measure(ModelCache(settings), entry)
    assert len(events(caplog, "batch plan measured")) == 1


def test_plans_belong_to_a_kind_of_machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of another name shares them; another processor or library has plans of its own."""
    cache, entry = ModelCache(settings), version(settings, TINY)
    load_and_measure(cache, entry)

    def is_stored() -> bool:
        return cache._store.load(cache.get(entry, "sample"), "sample") is not None

    monkeypatch.setattr(platform, "node", lambda: "another-host")
    assert is_stored()
    monkeypatch.setattr(plan_store, "processor", lambda device: ["another"])
    assert not is_stored()
    monkeypatch.undo()
    monkeypatch.setattr(plan_store, "libraries", lambda: ["another"])
    assert not is_stored()


class Passes(BatchPlanner):
    """A planner whose passes have times and outputs that two functions of the size return."""

    def __init__(
        self, model: LoadedModel, seconds: Callable[[int], float], output: Callable[[int, bool], float]
    ) -> None:
        super().__init__(model, "sample", 0.04)
        self.sizes: list[int] = []
        self._time, self._output = seconds, output

    def run(self, size: int, *, first: int = 0, reverse: bool = False) -> list[torch.Tensor]:
        """Record the size instead of running the model."""
        self.sizes.append(size)
        self.passes += 1
        self._seconds[size] = self._pass_seconds[size] = self._time(size)
        return [torch.arange(first, first + size) + self._output(size, reverse)]


def _cpu_model(settings: Settings) -> LoadedModel:
    cache = ModelCache(settings.model_copy(update={"device": "cpu"}))  # a GPU has other reference sizes
    return cache.get(version(settings, VAE), "sample")


def _measured(planner: BatchPlanner) -> Any:
    steps = planner.measure()
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def test_growing_ends_when_rows_get_slower(settings: Settings) -> None:
    """No larger batches are tried then, and none above the reference size runs three times."""
    planner = Passes(_cpu_model(settings), lambda size: 1e-5 * size * max(1.0, size / 128), lambda size, reverse: 0.0)
    plan = _measured(planner)
    assert (plan.batch_sizes[0], plan.largest) == (1, 128)
    assert max(planner.sizes) == 512
    assert max(planner.sizes.count(size) for size in planner.sizes if size > 64) == 2


def test_slow_rows_are_tried_one_by_one_only(settings: Settings) -> None:
    """If a row takes half a second, no batch of two is tried."""
    planner = Passes(_cpu_model(settings), lambda size: 0.5 * size, lambda size, reverse: 0.0)
    planner._affordable_size = lambda: 1  # type: ignore[method-assign]
    assert _measured(planner).batch_sizes == (1,)
    assert planner.sizes == [1]


def test_a_size_with_other_bits_is_not_used(settings: Settings) -> None:
    """A plan has no sizes with other bits, and no reference size in which the bits of a row depend
    on its place.
    """
    model = _cpu_model(settings)
    planner = Passes(model, lambda size: 1e-5 * size, lambda size, reverse: 1.0 * (size < 4) + 2.0 * (size > 200))
    plan = _measured(planner)
    assert plan.batch_sizes == (4, 8, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128)
    planner = Passes(model, lambda size: 1e-5 * size, lambda size, reverse: 1.0 * (reverse and size > 16))
    assert planner.first_plan().batch_sizes == (16,)
    assert _measured(planner).largest == 16
