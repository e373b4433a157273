"""Estimate the time and memory of a training from a few of its optimizer steps."""

import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from models.kit.recipe import Recipe
from models.kit.run import Run
from models.kit.shapes import ByteImages, Tensor, UInt8

MIN_STEPS = 3  # timed steps per epoch, unless they are so slow that one has to suffice


def estimate(
    recipe: Recipe,
    images: ByteImages,
    held_back: UInt8[Tensor, "V C H W"] | None,
    device: str = "cpu",
    seconds: float = 3.0,
) -> dict[str, Any]:
    """Time optimizer steps for about `seconds`, and return an estimate for the whole training.

    Returns `parameters` and `steps` (counts), `memory_bytes` (the peak of this process),
    `checkpoint_bytes`, `step_seconds`, `images_per_second`, and `seconds` of the whole training.
    Steps of the first, middle and last epoch are timed, because some recipes do more work in later
    epochs. `held_back` are separate validation images, or None.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, images, Path(folder), device, held_back)
        epochs, steps = recipe.training.epochs, run.batch_count
        timed_epochs = sorted({0, epochs // 2, epochs - 1})
        step_s = statistics.mean(_time_step_s(run, epoch, seconds / 3) for epoch in timed_epochs)
        validation_s = 0.0
        if run.training.validation:
            start = time.perf_counter()
            run.validate()
            validation_s = time.perf_counter() - start
        run.save()
        checkpoint_bytes = (Path(folder) / "state.pt").stat().st_size
    return {
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "checkpoint_bytes": checkpoint_bytes,
        "steps": epochs * steps,
        "step_seconds": round(step_s, 6),
        "images_per_second": round(min(recipe.training.batch_size, run.count) / step_s, 1),
        "seconds": round(epochs * (steps * step_s + validation_s), 3),
    }


def _time_step_s(run: Run, epoch: int, seconds: float) -> float:
    """Run optimizer steps of an epoch for about `seconds`; return the median seconds of a step.

    An additional first step is not timed, because it also allocates memory and optimizer state.
    """
    run.epoch, run.prior_active = epoch, run.prior_active or epoch > 0  # a prior may begin after an epoch
    batches = run.batches(epoch)
    whole = [batch for batch in batches if len(batch) == len(batches[0])]
    float(run.train_step(whole[0]))
    times: list[float] = []
    while not times or sum(times) < seconds or (len(times) < MIN_STEPS and sum(times) < MIN_STEPS * max(seconds, 1.0)):
        start = time.perf_counter()
        float(run.train_step(whole[len(times) % len(whole)]))
        times.append(time.perf_counter() - start)
    return statistics.median(times)
