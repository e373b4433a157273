"""What a run would take, from a few of its steps."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from models.kit.recipe import Recipe
from models.kit.run import Run
from models.kit.shapes import Tensor, UInt8

LEAST_STEPS = 3
"""Of an epoch, unless they take so long that one has to do."""


def estimate(
    recipe: Recipe,
    images: UInt8[Tensor, "N C H W"],
    held_back: UInt8[Tensor, "V C H W"] | None,
    device: str = "cpu",
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Parameters, bytes and seconds of the whole run, from steps timed for about `seconds`.

    Steps of the first, the middle and the last epoch are timed, since some recipes do more in later epochs.
    `memory_bytes` is the most that this process has held while it ran them.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, images, Path(folder), device, held_back)
        epochs, size = recipe.training.epochs, recipe.training.batch_size
        steps = run.batch_count
        found = [_step_s(run, epoch, seconds / 3) for epoch in sorted({0, epochs // 2, epochs - 1})]
        step_s = statistics.mean(found)
        validation_s = _validation_s(run)
        run.save()
        checkpoint_bytes = (Path(folder) / "state.pt").stat().st_size
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "checkpoint_bytes": checkpoint_bytes,
        "steps": epochs * steps,
        "step_seconds": round(step_s, 6),
        "images_per_second": round(min(size, run.count) / step_s, 1),
        "seconds": round(epochs * (steps * step_s + validation_s), 3),
    }


def _step_s(run: Run, epoch: int, seconds: float) -> float:
    """The median time of a step of one epoch, its first one left out."""
    run.epoch = epoch
    batches = run.batches(epoch)
    whole = [batch for batch in batches if len(batch) == len(batches[0])]
    float(run.train_step(whole[0]))
    took: list[float] = []
    while not took or sum(took) < seconds or (len(took) < LEAST_STEPS and sum(took) < LEAST_STEPS * max(seconds, 1.0)):
        begun = time.perf_counter()
        float(run.train_step(whole[len(took) % len(whole)]))
        took.append(time.perf_counter() - begun)
    return statistics.median(took)


def _validation_s(run: Run) -> float:
    if not run.training.validation:
        return 0.0
    begun = time.perf_counter()
    run.validate()
    return time.perf_counter() - begun
