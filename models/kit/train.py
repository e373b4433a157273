"""Train a recipe in a folder, or resume the run there, with bit-identical results.

A family has `loss(images, rows, epoch) -> (B,)`, one number per image; `rows` are the random
streams of the images. A family that trains several submodules names them in `OPTIMIZED_MODULES` and
has, instead of `loss`, `training_steps(images, rows, epoch)`, which yields one `OptimizerStep` per
submodule; each is applied before the next is computed. A family that has `finalize(images, rows)`
gets the training images once more at the end, with the weights that will be exported.

Everything random is a function of (seed, epoch, image). A checkpoint can therefore be taken after
any step, and needs weights, optimizer state, averages and counters, but no state of a random
generator.
"""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from models.kit.card import family
from models.kit.recipe import Recipe
from models.kit.run import COUNTERS, Outcome, Run
from models.kit.run_folder import RunFolder
from models.kit.shapes import ByteImages, Tensor, UInt8


def train(
    recipe: Recipe,
    images: ByteImages,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    held_back: UInt8[Tensor, "V C H W"] | None = None,
    start: Mapping[str, Tensor] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Outcome:
    """Train a recipe in the folder `out`, or resume the run that is there; return how it ended.

    SIGTERM and SIGINT stop the training after a checkpoint. Validation, by which the best epoch is
    chosen, uses the first `training.validation` images of `held_back`; if that is None, the last of
    `images`. `start` has weights to start from, keyed by name. `report` is called with the metrics
    of each epoch. Raises ValueError if `out` has a run and `resume` is False, or if the recipe
    differs from that run's.
    """
    if (out / "state.pt").exists() and not resume:
        raise ValueError(f"{out.name} holds a run already: resume it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, images, out, device, held_back, start)
    group = run.process_group
    if group.of_main((out / "state.pt").exists()):
        run.restore()
    elif group.is_main:
        (out / "metrics.jsonl").unlink(missing_ok=True)
    if group.is_main:
        (out / "recipe.json").write_text(json.dumps(recipe.to_json(), indent=2) + "\n")
    with _stop_on_signals(run):
        outcome = run.fit(report)
    group.shut_down()
    return outcome


def weights(out: Path) -> tuple[dict[str, Tensor], Recipe, dict[str, Any]]:
    """Return the weights to export from the run in `out`, its recipe and its counters.

    The weights are in the run's checkpoint: the best epoch's weights if there is a best epoch;
    otherwise the averaged weights if the recipe has an average; otherwise the last weights. Weights
    and counters are keyed by name; the counters include `epoch`, `best_epoch` and `seconds`.
    """
    state = RunFolder(out).load_state()
    recipe = Recipe.from_json(json.loads(state["recipe"]))
    tensors: dict[str, Tensor] = dict(state["model"])
    names = [name for name, _ in family(recipe.family).Model(recipe.config).named_parameters()]
    tensors.update(zip(names, state["average"], strict=False))
    return state["best"] or tensors, recipe, {name: state.get(name, 0.0) for name in COUNTERS}


@contextmanager
def _stop_on_signals(run: Run) -> Iterator[None]:
    """Return a context manager in which SIGTERM and SIGINT stop the run after its present step."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        run.stopping = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
