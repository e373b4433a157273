"""One training loop for every family that has `loss(images, rows, epoch) -> (B,)`: resumable to the bit.

A family that trains several submodules names them in `OPTIMIZED_MODULES` and has, instead of `loss`,
`training_steps(images, rows, epoch)`, which yields one `OptimizerStep` per submodule; each is applied before the next
is computed. A family that has `finalize(images, rows)` gets the training images once more at the end.

Everything random is a function of (seed, epoch, image), so a checkpoint needs weights, optimiser, average and counters
and no generator; it may be taken after any step. A run is a folder: `recipe.json`, `metrics.jsonl` (one line an
epoch), `progress.json` (how far it is, a second ago), `preview.png` (what the model makes) and `state.pt`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from models.kit import data
from models.kit.batches import batch_count, batches, smallest_batch
from models.kit.card import family
from models.kit.distributed import ProcessGroup
from models.kit.optimizer_step import OptimizerStep
from models.kit.preview import preview
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json, option, to_json
from models.kit.shapes import Float, Int, Tensor, UInt8

CHECK_EVERY_STEPS = 100
TELL_EVERY_S = 0.5
PREVIEW_EVERY_S = 10.0
DIVERGED = 1e4
"""A mean loss this many times the first step's has left for good."""

ALONE = ""  # the one player of a family that names none: the whole model


@dataclass(frozen=True)
class Training:
    """How a model is fitted; the family's `Config` says what it is and which bound is maximised."""

    epochs: int = option(20, minimum=1, maximum=100000, description="passes over the training pictures")
    batch_size: int = option(100, minimum=1, maximum=65536, description="pictures a step")
    optimiser: str = option("adam", choices=("adam", "adagrad", "sgd"))
    learning_rate: float = option(1e-3, above=0.0, maximum=10.0)
    player_optimisers: tuple[str, ...] = option(
        (), choices=("adam", "adagrad", "sgd"), description="one for each player, in their order; none: `optimiser`"
    )
    player_rates: tuple[float, ...] = option(
        (), above=0.0, maximum=10.0, description="a learning rate for each player; none: `learning_rate`"
    )
    beta1: float = option(0.9, minimum=0.0, below=1.0, description="Adam's")
    beta2: float = option(0.999, minimum=0.0, below=1.0, description="Adam's")
    epsilon: float = option(1e-8, above=0.0, maximum=1.0)
    warmup_steps: int = option(0, minimum=0, maximum=10**9, description="steps over which the rate rises from zero")
    decay: str = option(
        "constant",
        choices=("constant", "cosine", "drop", "linear"),
        description="of the rate after the warm-up; cosine ends at zero, drop is `drop_to` from epoch `drop_from` on,"
        " linear falls from there to zero at the end",
    )
    drop_from: int = option(
        0, minimum=0, maximum=10**9, description="the first epoch, from 0, of drop's or linear's other rates"
    )
    drop_to: float = option(3e-4, above=0.0, maximum=10.0)
    grad_clip: float = option(0.0, minimum=0.0, maximum=1e9, description="largest norm of the gradient; 0 = no clip")
    weight_prior: bool = option(default=False, description="adds -log N(w; 0, 1) of all weights to the loss of the set")
    average: float = option(0.0, minimum=0.0, below=1.0, description="decay of the weights' moving average; 0 = none")
    precision: str = option("float32", choices=("float32", "bfloat16"), description="of the matrix products")
    compile: bool = option(default=False, description="the loss by torch.compile: some steps later, faster ones")
    binarization: str = option("dynamic", choices=("dynamic", "static", "none"))
    pictures: int = option(0, minimum=0, maximum=10**9, description="only the first so many of the data; 0 = all")
    validation: int = option(0, minimum=0, maximum=10**9, description="last pictures held back to choose epochs on")
    patience: int = option(0, minimum=0, maximum=100000, description="epochs in vain before a stop; 0 = no stop")
    save_every_s: float = option(20.0, minimum=0.0, maximum=86400.0, description="least time between checkpoints")


@dataclass(frozen=True)
class Recipe:
    """All that a run follows from: family, data, seed, the family's `Config` and the `Training`."""

    family: str
    name: str
    summary: str
    data: str
    seed: int
    config: Any
    training: Training

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from JSON values; ValueError names what is unknown, missing or out of range."""
        words = {"family", "name", "summary", "data"}
        unknown = sorted(set(values) - words - {"seed", "config", "training"})
        missing = sorted(words - set(values))
        if unknown or missing:
            raise ValueError(f"a recipe {f'has no field {unknown[0]!r}' if unknown else f'needs {missing[0]!r}'}")
        wrong = [word for word in sorted(words) if not isinstance(values[word], str)]
        seed = values.get("seed", 0)
        seed = int(seed) if isinstance(seed, float) and seed.is_integer() else seed
        if wrong or not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
            raise ValueError(f"{wrong[0]} must be a string" if wrong else "seed must be an integer in [0, 2^62)")
        return cls(
            **{word: values[word] for word in words},
            seed=seed,
            config=from_json(family(values["family"]).Config, values.get("config", {})),
            training=from_json(Training, values.get("training", {})),
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON values, every default written out."""
        words = {name: getattr(self, name) for name in ("family", "name", "summary", "data", "seed")}
        return {**words, "config": to_json(self.config), "training": to_json(self.training)}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished", "early stop", "interrupted" (resume it), "not a number" or "diverged" (the loss)."""

    reason: str
    epochs: int
    seconds: float


class Run:
    """A model being fitted to pictures, between two steps."""

    def __init__(
        self,
        recipe: Recipe,
        images: UInt8[Tensor, "N C H W"],
        out: Path,
        device: str = "cpu",
        held_back: UInt8[Tensor, "V C H W"] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.training, self.out = recipe, recipe.training, out
        self.device = torch.device(device)
        images, held_back = _parts(images, held_back, self.training)
        self.images, self.held_back = images.to(self.device), held_back.to(self.device)
        self.count, self.span = len(images), len(images) + len(held_back)
        self.model: Any = family(recipe.family).Model(recipe.config)
        self.model.initialise(RowStreams.range(recipe.seed, 2**62, 1))
        if start is not None:
            self.model.warm_start(start)
        self.model.to(self.device)
        self.average = [p.detach().clone() for p in self.model.parameters()] if self.training.average else []
        self.players: dict[str, list[nn.Parameter]] = _players(self.model)
        self.optimisers = _optimisers(self.players, self.training, self.count)
        if self.training.validation and ALONE not in self.players:
            raise ValueError("players have no common loss to choose epochs on: training.validation must be 0")
        if self.training.compile and ALONE not in self.players:
            raise ValueError("the turns of players are not compiled: training.compile must be false")
        self._compiled: Any = torch.compile(self.model.loss) if self.training.compile else None
        self.process_group = ProcessGroup()
        self.least = smallest_batch(self.model) * self.process_group.world_size
        self.batch_count = batch_count(self.count, self.training.batch_size, self.least)
        batches(torch.arange(self.count), self.training.batch_size, self.least)  # says now what would fail in a step
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = math.inf, 0
        self.epoch = self.step = self.steps = 0
        self.loss_sum, self.first_loss, self.seconds, self.stopping = 0.0, 0.0, 0.0, False
        self.saved: dict[str, Any] | None = None
        self._began = self._before = self._saved_at = self._told_at = self._shown_at = 0.0
        self.fact_sums: dict[str, float] = {}

    # One step and one epoch

    def batches(self, epoch: int) -> Sequence[Int[Tensor, "b"]]:
        """The pictures of each step of an epoch, on the device; a rest too small for a step belongs to the last."""
        order = data.shuffled(self.count, self.recipe.seed, epoch).to(self.device)
        return batches(order, self.training.batch_size, self.least)

    @property
    def seen(self) -> int:
        """How many pictures the epoch has had so far."""
        whole = self.step == self.batch_count
        return self.count if whole else min(self.step * self.training.batch_size, self.count)

    def advance(self, index: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """One step of each player, the pictures' numbers drawn by (seed, epoch, picture); returns the summed losses."""
        mine = self.process_group.local_share(index)
        rows = RowStreams(torch.full_like(mine, self.recipe.seed), self.epoch * self.span + mine)
        total = torch.zeros((), device=self.device)
        for step in self._training_steps(self.images[mine], rows, self.epoch):
            total = total + self._apply_step(step, len(index))
        self.steps += 1
        if self.average:
            decay = min(self.training.average, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - decay)
        return total

    def _apply_step(self, step: OptimizerStep, count: int) -> Float[Tensor, ""]:
        """Move one player's weights, and no other's, down the mean of its losses; returns their sum.

        `count` is how many pictures the step has, on all processes together.
        """
        parameters, optimiser = self.players[step.module], self.optimisers[step.module]
        optimiser.zero_grad(set_to_none=True)
        loss = step.losses.mean() if self.process_group.is_single else step.losses.sum() / count
        loss.backward(inputs=parameters)  # type: ignore[no-untyped-call]
        self.process_group.all_reduce_gradients(parameters)
        if self.training.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.training.grad_clip)
        for group in optimiser.param_groups:
            group["lr"] = self.rate() * (group["initial_lr"] / self.training.learning_rate)
        optimiser.step()
        facts = {**step.metrics, **({f"loss_{step.module}": step.losses} if step.module else {})}
        sums = self.process_group.all_reduce_sums(
            [step.losses.detach().sum(), *(values.detach().sum() for values in facts.values())]
        )
        for name, value in zip(facts, sums[1:], strict=True):
            self.fact_sums[name] = self.fact_sums.get(name, 0.0) + float(value)
        return sums[0]

    def rate(self) -> float:
        """The learning rate of the next step: a linear warm-up, then constant, one drop, or a fall to zero."""
        warmup = min(1.0, (self.steps + 1) / max(1, self.training.warmup_steps))
        if self.training.decay == "drop" and self.epoch >= self.training.drop_from:
            return self.training.drop_to * warmup
        if self.training.decay in {"constant", "drop"}:
            return self.training.learning_rate * warmup
        an_epoch = self.batch_count
        total = self.training.epochs * an_epoch
        if self.training.decay == "linear":
            falling = max(1, total - self.training.drop_from * an_epoch)
            return self.training.learning_rate * warmup * min(1.0, max(0, total - self.steps) / falling)
        return self.training.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.steps / total)))

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the held-back pictures under the averaged weights, the same draws every time; nats."""
        total = 0.0
        with self.averaged():
            index_of = torch.arange(self.count, self.span, device=self.device)
            for index in batches(index_of, 500, min(self.least, len(index_of))):
                rows = RowStreams(torch.full_like(index, self.recipe.seed + 1), index)
                pictures = self.held_back[index - self.count]
                total += float(self._loss(pictures, rows, self.training.epochs).double().sum())
                self._touch()
        return total / self.training.validation

    def _loss(
        self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int, compiled: Any = None
    ) -> Float[Tensor, "B"]:
        x = self._prepared(images, rows)
        with self._precision():
            losses: Tensor = (compiled or self.model.loss)(x, rows, epoch)
        return losses

    def _training_steps(
        self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int
    ) -> Iterator[OptimizerStep]:
        """The turns of one step. Each is computed in a block of its own: autocast keeps the weights it has cast."""
        if ALONE in self.players:
            yield OptimizerStep(ALONE, self._loss(images, rows, epoch, self._compiled))
            return
        steps = self.model.training_steps(self._prepared(images, rows), rows, epoch)
        while True:
            with self._precision():
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _prepared(self, images: UInt8[Tensor, "B C H W"], rows: RowStreams) -> Float[Tensor, "B C H W"]:
        return data.binarize(images, rows) if self.training.binarization == "dynamic" else data.grey(images)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16")

    def _settle(self) -> None:
        """What the model wants to know of the training pictures, under the weights that will ship; then these ship."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}

        def images() -> Iterator[Tensor]:
            for index in torch.split(torch.arange(self.count, device=self.device), 500):
                rows = RowStreams(torch.full_like(index, self.recipe.seed + 1), index)
                self._touch()
                yield self._prepared(self.images[index], rows)

        def rows(first: int, count: int) -> RowStreams:
            return RowStreams.range(self.recipe.seed + 2, first, count, self.device)

        with self.averaged() as model:
            if self.best and self.training.validation:  # chosen on held-back pictures: those weights ship
                model.load_state_dict(self.best)
            self.model.finalize(images, rows)
            self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights in place, for as long as the block lasts."""
        kept = [p.detach().clone() for p in self.model.parameters()]
        self._put(self.average or kept)
        try:
            yield self.model
        finally:
            self._put(kept)

    def _put(self, weights: list[Tensor]) -> None:
        for parameter, weight in zip(self.model.parameters(), weights, strict=True):
            parameter.data.copy_(weight)

    def fit(self, report: Callable[[dict[str, Any]], None] = lambda _: None) -> Outcome:
        """Train to the end, to an early stop, to a signal, or to a loss that is no number; `report` gets each epoch."""
        self._began = self._saved_at = self._told_at = time.monotonic()
        self._shown_at, self._before = -math.inf, self.seconds
        while self.epoch < self.training.epochs:
            reason = self._steps() or self._turn_page(report)
            if reason:
                return Outcome(reason, self.epoch, self.seconds)
        return Outcome("finished", self.epoch, self.seconds)

    def _steps(self) -> str:
        """The epoch's steps from where it is; answers why the run ends before the epoch does, or nothing."""
        batches = self.batches(self.epoch)
        for number in range(self.step, len(batches)):
            self.loss_sum += float(self.advance(batches[number]))
            self.step, now = number + 1, time.monotonic()
            self.seconds = self._before + now - self._began
            self.first_loss = self.first_loss or abs(self.loss_sum) / len(batches[number])
            whole = self.step == len(batches)
            late = now - self._saved_at >= self.training.save_every_s and not whole
            self.stopping, due = self.process_group.any_process(self.stopping, self.stopping or late)
            if (number % CHECK_EVERY_STEPS == 0 or whole or due) and (fault := self.fault(thorough=due)):
                return fault
            if due:
                self._save_now()
            if self.stopping:
                return "interrupted"
            if self.process_group.is_main and (whole or now - self._told_at >= TELL_EVERY_S):
                self.tell()
                self._told_at = now
        return ""

    def _turn_page(self, report: Callable[[dict[str, Any]], None]) -> str:
        """End the epoch, with a checkpoint and a picture where it is time; answers why the run ends here, if it does.

        The last epoch is not told before the checkpoint that holds it is written.
        """
        self.process_group.broadcast_buffers(self.model)
        line = self.end_epoch()
        last = self.epoch == self.training.epochs
        if last and hasattr(self.model, "finalize"):
            self._settle()
        stop = bool(self.training.patience) and self.epoch - self.best_epoch >= self.training.patience
        late = time.monotonic() - self._saved_at >= self.training.save_every_s
        if self.process_group.any_process(last or stop or late)[0]:
            if fault := self.fault(thorough=True):
                return fault
            self._save_now()
        if self.process_group.is_main:
            if last or stop or time.monotonic() - self._shown_at >= PREVIEW_EVERY_S:
                self._show()
                self._shown_at = time.monotonic()
            report(line)
        return "early stop" if stop else ""

    def _save_now(self) -> None:
        self.process_group.broadcast_buffers(self.model)
        if self.process_group.is_main:
            self.save()
        self._saved_at = time.monotonic()

    def fault(self, *, thorough: bool) -> str:
        """Why this run must not go on, or nothing; `thorough` looks at every weight, which what is kept must pass."""
        if not math.isfinite(self.loss_sum):
            return "not a number"
        if thorough and not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return "not a number"
        return "diverged" if abs(self.loss_sum) > DIVERGED * (1 + self.first_loss) * max(1, self.seen) else ""

    def tell(self) -> None:
        """Write `progress.json`: how far the run is, and of which step its checkpoint is."""
        batches = self.batch_count
        place = {name: getattr(self, name) for name in ("epoch", "step", "steps")}
        total = self.training.epochs * batches
        mean = self.loss_sum / self.seen if self.step else None
        said = {
            **place,
            "epochs": self.training.epochs,
            "steps_total": total,
            "loss": mean,
            "seconds": round(self.seconds, 2),
            "checkpoint": self.saved,
        }
        _replace(self.out / "progress.json", json.dumps(said).encode())
        _progress(self, batches)

    def _touch(self) -> None:
        """Show whoever watches `progress.json` that the run advances where no step is made."""
        if self.process_group.is_main and time.monotonic() - self._told_at >= TELL_EVERY_S:
            (self.out / "progress.json").touch()
            self._told_at = time.monotonic()

    def _show(self) -> None:
        """Write `preview.png` with the averaged weights; it costs no random number and moves no weight."""
        with self.averaged() as model:
            picture = preview(model, self.held_back if len(self.held_back) else self.images, self.recipe.seed)
        if picture is not None:
            _replace(self.out / "preview.png", picture)

    def end_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, write the line of metrics, turn the page."""
        line: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "steps": self.steps,
            "images": (self.epoch + 1) * self.count,
            "train_loss": round(self.loss_sum / self.count, 4),
            "learning_rate": self.rate(),
            "seconds": round(self.seconds, 2),
        }
        line |= {name: round(total / self.count, 5) for name, total in self.fact_sums.items()}
        self.epoch, self.step, self.loss_sum, self.fact_sums = self.epoch + 1, 0, 0.0, {}
        if self.training.validation:
            line["validation_loss"] = round(loss := self.validate(), 4)
            if loss < self.best_loss:
                self.best_loss, self.best_epoch = loss, self.epoch
                with self.averaged() as model:
                    self.best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if self.process_group.is_main:
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return line

    # Checkpoints

    def save(self) -> None:
        """Write `state.pt`, whole or not at all; ValueError where the disk does not take it."""
        state = {
            "recipe": json.dumps(self.recipe.to_json()),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self._optimiser_state(),
            "best": self.best,
            **{name: getattr(self, name) for name in COUNTERS},
        }
        part = self.out / "state.pt.part"
        try:
            with part.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.out / "state.pt")  # noqa: PTH105
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into the latter
            part.unlink(missing_ok=True)
            kept = f"that of step {self.saved['steps']} is kept" if self.saved else "there is none yet"
            raise ValueError(f"the checkpoint of step {self.steps} could not be written ({error}); {kept}") from error
        self.saved = {name: getattr(self, name) for name in ("epoch", "step", "steps")}
        self.saved["seconds"] = round(self.seconds, 2)
        self.tell()

    def _optimiser_state(self) -> dict[str, Any]:
        """The optimiser's state, or each player's by name."""
        states = {player: optimiser.state_dict() for player, optimiser in self.optimisers.items()}
        return states.get(ALONE, states)

    def restore(self) -> None:
        """Go on from `state.pt`; ValueError where it follows another recipe.

        While the rate has been constant, the epochs and how it decays may differ.
        """
        state = torch.load(self.out / "state.pt", map_location=self.device, weights_only=True)
        # what the recipe did not have when the run began is as it was: at its default
        begun = Recipe.from_json(json.loads(state["recipe"]))
        touched = int(state["epoch"]) + bool(state["step"])
        free = {"save_every_s"}
        if touched <= min(_constant_epochs(begun.training), _constant_epochs(self.training)):
            free |= {"epochs", "decay", "drop_from", "drop_to"}
        if _without(begun.to_json(), free) != _without(self.recipe.to_json(), free):
            raise ValueError(
                "the run was begun by another recipe; only training.epochs and the decay of a rate that has been"
                " constant so far may change"
            )
        self.model.load_state_dict(state["model"])
        saved = {ALONE: state["optimiser"]} if ALONE in self.optimisers else state["optimiser"]
        for player, optimiser in self.optimisers.items():
            optimiser.load_state_dict(saved[player])
        self.average, self.best = state["average"], state["best"]
        for name in COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.saved = {**{name: state[name] for name in ("epoch", "step", "steps")}, "seconds": round(self.seconds, 2)}
        if not self.process_group.is_main:
            return
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        kept = [line for line in lines if _epoch(line) <= self.epoch]
        _replace(metrics, "".join(line + "\n" for line in kept).encode())


COUNTERS = ("best_loss", "best_epoch", "epoch", "step", "steps", "loss_sum", "first_loss", "fact_sums", "seconds")


def train(
    recipe: Recipe,
    images: UInt8[Tensor, "N C H W"],
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    held_back: UInt8[Tensor, "V C H W"] | None = None,
    start: Mapping[str, Tensor] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Outcome:
    """Fit a recipe into the folder `out`, or go on with what is there; SIGTERM and SIGINT leave a checkpoint.

    The first `training.validation` of the pictures `held_back` choose epochs; without them, the last of `images` do.
    A new run begins with the weights `start` as far as its family takes them over. ValueError where `out` holds a run
    and `resume` is not asked for, or the recipe differs from the run's.
    """
    if (out / "state.pt").exists() and not resume:
        raise ValueError(f"{out.name} holds a run already: resume it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, images, out, device, held_back, start)
    if (out / "state.pt").exists():
        run.restore()
    elif run.process_group.is_main:
        (out / "metrics.jsonl").unlink(missing_ok=True)
    if run.process_group.is_main:
        (out / "recipe.json").write_text(json.dumps(recipe.to_json(), indent=2) + "\n")
    with _stopped_by_signals(run):
        outcome = run.fit(report)
    run.process_group.shut_down()
    return outcome


def weights(out: Path) -> tuple[dict[str, Tensor], Recipe, dict[str, Any]]:
    """What a run would ship (the best epoch's weights if it validated, else the last average), and its counters."""
    state = torch.load(out / "state.pt", map_location="cpu", weights_only=True)
    recipe = Recipe.from_json(json.loads(state["recipe"]))
    tensors: dict[str, Tensor] = dict(state["model"])
    names = [name for name, _ in family(recipe.family).Model(recipe.config).named_parameters()]
    tensors.update(zip(names, state["average"], strict=False))
    return state["best"] or tensors, recipe, {name: state.get(name, 0.0) for name in COUNTERS}


@contextmanager
def _stopped_by_signals(run: Run) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT ask the run to save and end after its step."""

    def ask(_signal: int, _frame: FrameType | None) -> None:
        run.stopping = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parts(
    images: UInt8[Tensor, "N C H W"], held_back: UInt8[Tensor, "V C H W"] | None, training: Training
) -> tuple[UInt8[Tensor, "n C H W"], UInt8[Tensor, "v C H W"]]:
    """The pictures to train on and those to choose epochs on; ValueError where there are too few."""
    wanted = training.validation
    images = images[: training.pictures or None]
    if held_back is None:
        if wanted >= len(images):
            raise ValueError(f"validation = {wanted} leaves nothing of {len(images)} pictures")
        count = len(images) - wanted
        images, held_back = images[:count], images[count:]
    elif wanted > len(held_back):
        raise ValueError(f"validation = {wanted}, but only {len(held_back)} pictures are held back")
    held_back = held_back[:wanted]
    if training.binarization == "static":
        drawn, _ = data.static_binarization(torch.cat([images, held_back]))
        images, held_back = drawn[: len(images)], drawn[len(images) :]
    return images, held_back


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)  # noqa: PTH105


def _players(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each player's weights; those of the whole model where the family names no players."""
    names: tuple[str, ...] = getattr(model, "OPTIMIZED_MODULES", ())
    if not names:
        return {ALONE: list(model.parameters())}
    return {name: list(model.get_submodule(name).parameters()) for name in names}


def _optimisers(
    players: Mapping[str, list[nn.Parameter]], training: Training, count: int
) -> dict[str, torch.optim.Optimizer]:
    """An optimiser a player; ValueError where kinds or rates are not as many as the players."""
    kinds = training.player_optimisers or (training.optimiser,) * len(players)
    rates = training.player_rates or (training.learning_rate,) * len(players)
    if not len(kinds) == len(rates) == len(players):
        raise ValueError(
            f"player_optimisers and player_rates: one for each of {', '.join(filter(None, players)) or 'the model'}"
        )
    made = {}
    for (player, parameters), kind, rate in zip(players.items(), kinds, rates, strict=True):
        made[player] = _optimiser(parameters, kind, rate, training, count)
        for group in made[player].param_groups:
            group["initial_lr"] = rate
    return made


def _optimiser(
    parameters: list[nn.Parameter], kind: str, rate: float, training: Training, count: int
) -> torch.optim.Optimizer:
    """Adam, Adagrad or SGD; a prior N(0, 1) on the weights of a mean loss over `count` pictures decays by 1/count."""
    decay = 1.0 / count if training.weight_prior else 0.0
    if kind == "sgd":
        return torch.optim.SGD(parameters, rate, weight_decay=decay, fused=True)
    if kind == "adagrad":
        return torch.optim.Adagrad(parameters, rate, weight_decay=decay, eps=training.epsilon, fused=True)
    betas = (training.beta1, training.beta2)
    return torch.optim.Adam(parameters, rate, betas, training.epsilon, decay, fused=True)


def _progress(run: Run, batches: int) -> None:
    """A bar on a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        share = run.step / batches
        bar = "█" * round(24 * share) + "·" * (24 - round(24 * share))
        mean = run.loss_sum / max(1, run.seen)
        text = f"\repoch {run.epoch + 1}/{run.training.epochs} {bar} loss {mean:9.3f} nats"
        sys.stderr.write(text + ("\n" if run.step == batches else ""))
        sys.stderr.flush()


def _epoch(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _constant_epochs(training: Training) -> float:
    """For how many epochs the rate is constant, whatever the number of all epochs."""
    return {"constant": math.inf, "cosine": 0}.get(training.decay, training.drop_from)


def _without(recipe: dict[str, Any], free: set[str]) -> dict[str, Any]:
    """The recipe's JSON without what may change in its training."""
    return {**recipe, "training": {name: value for name, value in recipe["training"].items() if name not in free}}
