"""Interactive batches that preempt long work, received by a real kombu channel in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kombu.connection import Connection
from kombu.messaging import Consumer

import models
from core.broker.codec import BatchSlice, Outcome
from core.broker.keys import queue_key
from core.settings import Settings
from tests.stack import checkpoints, share_plans
from tests.workers.inference.loading import load_and_measure
from workers.inference import context as context_module
from workers.inference import preemption as module
from workers.inference.context import InferenceContext
from workers.inference.engine import SliceResult
from workers.inference.loaded_model import LoadedModel

TASK = "reverie.run_batch"


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceContext]:
    """The context of a worker with the shipped two-dimensional VAE and the models of the tests."""
    folder = tmp_path_factory.mktemp("preemption")
    families = Path(__file__).parents[2] / "families"
    settings = Settings(checkpoints=checkpoints(folder / "c"), extra_models=families, state=folder)
    share_plans(folder, folder)
    made = InferenceContext(settings)
    for name in ("vae-mnist-2d", "enlarge", "tiny"):
        entry = made.registry.find(name)
        assert entry is not None
        load_and_measure(made.model_cache, entry)
    made.settings = settings.model_copy(update={"time_slice_s": 0.5})
    yield made
    models.__path__.remove(str(families))


class Queue:
    """The interactive queue; the worker calls `act` for each message."""

    def __init__(self, context: InferenceContext, act: Any) -> None:
        self._context, self._act = context, act
        self._connection = Connection("memory://")
        self._channel = self._connection.channel()
        with self._connection.SimpleQueue(queue_key("interactive")) as queue:
            queue.clear()
        consumer = Consumer(self._channel, queues=[], accept=["json"])
        context.preemption.consumer = SimpleNamespace(task_consumer=consumer, strategies={TASK: self._handle})
        self.handled = 0

    def _handle(self, message: Any) -> None:
        assert message.payload == {}
        self.handled += 1
        self._act()

    def send(self, times: int = 1) -> None:
        """Put `times` messages on the queue."""
        with self._connection.SimpleQueue(queue_key("interactive"), serializer="json") as queue:
            for _ in range(times):
                queue.put({}, headers={"task": TASK})

    def close(self) -> None:
        """Stop receiving messages."""
        self._context.preemption.consumer = None
        self._connection.close()


def run(
    context: InferenceContext, operation: str, one: BatchSlice, name: str = "vae-mnist-2d", **options: Any
) -> Outcome | SliceResult:
    """Run one slice for at most one time slice; return its outcome, or the state from which it
    continues.
    """
    model = context.load_model(name, "1", operation)
    values = {**model.entry.operations[operation].defaults, **options}
    result, _ = context.run(model, operation, values, [one], None, isolated=False)
    return result if isinstance(result, SliceResult) else result[0]


def finished(model: LoadedModel, context: InferenceContext, one: BatchSlice, k: int) -> dict[str, Any]:
    """Run a likelihood to its end, one time slice after another; return its fields."""
    values = {**model.entry.operations["log_likelihood"].defaults, "k": k}
    result: Any = SliceResult({}, 0.0)
    state = None
    while isinstance(result, SliceResult):
        result, _ = context.run(model, "log_likelihood", values, [one], state, isolated=False)
        state = result.state if isinstance(result, SliceResult) else None
    assert result[0].fields is not None
    return dict(result[0].fields)


def test_interrupted_work_has_the_same_bytes(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is preempted at every layer, also by the same model, gives the same values."""
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    model = context.load_model("vae-mnist-2d", "1", "log_likelihood")
    image = np.random.default_rng(1).integers(0, 256, (2, 1, 28, 28), np.uint8)
    one = BatchSlice("a", 5, 0, 2, {"images": image})
    alone = finished(model, context, one, 2000)
    other = BatchSlice("b", 6, 0, 3)

    def interrupt() -> None:
        torch.set_num_threads(2)
        assert isinstance(run(context, "sample", other), Outcome)

    queue = Queue(context, interrupt)
    try:
        queue.send(200)
        interrupted = finished(model, context, one, 2000)
        assert torch.get_num_threads() == model.threads
    finally:
        queue.close()
    assert queue.handled > 10
    assert alone.keys() == interrupted.keys()
    for name, value in alone.items():
        np.testing.assert_array_equal(interrupted[name], value)


def test_tiles_are_interrupted_between_functions(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls no layers is preempted between functions, and its tiles are equal."""
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    tile = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 32), np.uint8)
    one = BatchSlice("a", 5, 0, 1, {"images": tile})
    alone = run(context, "upscale", one, "enlarge", method="smooth")
    queue = Queue(context, lambda: None)
    try:
        queue.send(20)
        interrupted = run(context, "upscale", one, "enlarge", method="smooth")
    finally:
        queue.close()
    assert queue.handled
    assert isinstance(alone, Outcome)
    assert isinstance(interrupted, Outcome)
    assert alone.fields is not None
    assert interrupted.fields is not None
    np.testing.assert_array_equal(alone.fields["images"], interrupted.fields["images"])


def test_gradients_are_interrupted(context: InferenceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass of a gradient is preempted too, by a batch that computes a gradient itself,
    and its result is equal.
    """
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    leaf = torch.linspace(-1.0, 1.0, 2_000_000, requires_grad=True)  # each function takes longer than an interruption
    forward = 0

    def gradient() -> torch.Tensor:
        nonlocal forward
        value = leaf.sin().exp().square().sum()
        forward = queue.handled
        return torch.autograd.grad(value, leaf)[0]

    def interrupt() -> None:
        with torch.enable_grad():
            other = torch.ones(3, requires_grad=True)
            torch.autograd.grad(other.cos().sum(), other)

    queue = Queue(context, interrupt)
    try:
        alone = gradient()
        queue.send(20)
        with context.preemption.preemptible(functions=True):
            interrupted = gradient()
    finally:
        queue.close()
    assert queue.handled >= forward + 2 > 2
    torch.testing.assert_close(interrupted, alone, rtol=0, atol=0)


def test_long_layers_are_interrupted_between_functions(
    context: InferenceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the layers of a model took long, its next batch of as many rows is preempted between
    functions; a smaller batch is not.
    """
    monkeypatch.setattr(context_module, "_LONG_LAYER_S", 0.0)
    model = context.load_model("vae-mnist-2d", "1", "log_likelihood")
    options = {**model.entry.operations["log_likelihood"].defaults, "k": 100}

    def checks(rows: int) -> int:
        before = context.preemption.checks
        images = np.zeros((rows, 1, 28, 28), np.uint8)
        context.run(
            model, "log_likelihood", options, [BatchSlice("a", 5, 0, rows, {"images": images})], None, isolated=False
        )
        return context.preemption.checks - before

    model.long_layer_rows.clear()
    checks(4)
    assert not model.long_layer_rows  # nothing can interrupt while the worker has no consumer
    queue = Queue(context, lambda: None)
    try:
        few = checks(4)
        assert checks(4) > 2 * few
        model.long_layer_rows["log_likelihood"] = 5
        monkeypatch.setattr(context_module, "_LONG_LAYER_S", 60.0)
        assert checks(4) == few
    finally:
        queue.close()
        model.long_layer_rows.clear()


def test_an_interruption_costs_no_time_of_the_slice(context: InferenceContext) -> None:
    """The time of a preemption does not count toward the time slice: after one of 0.5 s, several
    steps still run.
    """
    queue = Queue(context, lambda: time.sleep(0.5))
    try:
        queue.send(20)
        result = run(context, "sample", BatchSlice("a", 5, 0, 1), "tiny", steps=500, seconds=0.005)
    finally:
        queue.close()
    assert queue.handled
    assert isinstance(result, SliceResult)
    assert result.state["steps"][0] >= 4


def test_work_gets_half_of_the_time(context: InferenceContext) -> None:
    """Preemptions take at most half of the time: at most two of 0.3 s in a time slice of 0.5 s."""
    queue = Queue(context, lambda: time.sleep(0.3))
    try:
        queue.send(20)
        run(context, "sample", BatchSlice("a", 5, 0, 1), "tiny", steps=500, seconds=0.005)
    finally:
        queue.close()
    assert queue.handled in {1, 2}


def test_interruptions_and_isolated_work_are_not_interrupted(
    context: InferenceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preempting batch is not preempted itself, and neither is isolated work."""
    monkeypatch.setattr(module, "CHECK_S", 0.0)
    depth = 0

    def interrupt() -> None:
        nonlocal depth
        depth += 1
        assert depth == 1
        run(context, "sample", BatchSlice("b", 6, 0, 1), "tiny", steps=3)
        depth -= 1

    queue = Queue(context, interrupt)
    try:
        queue.send(20)
        run(context, "sample", BatchSlice("a", 5, 0, 1), "tiny", steps=60, seconds=0.005)
        handled = queue.handled
        assert handled > 1
        model = context.load_model("tiny", "1", "sample")
        options = {**model.entry.operations["sample"].defaults, "steps": 10, "seconds": 0.005}
        context.run(model, "sample", options, [BatchSlice("a", 5, 0, 1)], None, isolated=True)
        assert queue.handled == handled
    finally:
        queue.close()
