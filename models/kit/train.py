"""One training loop for every family that has `loss(images, rows, epoch) -> (B,)`: resumable to the bit.

A family of several players names them in `PLAYERS` (submodules, each with its own optimiser) and has, instead of
`loss`, `turns(images, rows, epoch)`, which yields a `Turn` a player; each is played before the next is computed. A
family that has `settle(images, rows)` gets the training pictures once more at the end, with the weights that will ship.

Everything random is a function of (seed, epoch, image), so a checkpoint needs weights, optimiser, average and counters
and no generator. A run is a folder: `recipe.json`, `metrics.jsonl` (one line an epoch) and `state.pt`.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from models.kit import data
from models.kit.card import family
from models.kit.rows import Rows
from models.kit.schema import from_json, option, to_json
from models.kit.shapes import Float, Int, Tensor, UInt8
from models.kit.turn import Turn

CHECK_EVERY_STEPS = 100
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
        choices=("constant", "cosine", "drop"),
        description="of the rate after the warm-up; cosine ends at zero, drop is `drop_to` from epoch `drop_from` on",
    )
    drop_from: int = option(0, minimum=0, maximum=10**9, description="the first epoch, from 0, at the rate `drop_to`")
    drop_to: float = option(3e-4, above=0.0, maximum=10.0)
    grad_clip: float = option(0.0, minimum=0.0, maximum=1e9, description="largest norm of the gradient; 0 = no clip")
    weight_prior: bool = option(default=False, description="adds -log N(w; 0, 1) of all weights to the loss of the set")
    average: float = option(0.0, minimum=0.0, below=1.0, description="decay of the weights' moving average; 0 = none")
    precision: str = option("float32", choices=("float32", "bfloat16"), description="of the matrix products")
    binarization: str = option("dynamic", choices=("dynamic", "static", "none"))
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
    """How a run ended: "finished", "early stop", "interrupted" (resume it) or "not a number" (the loss)."""

    reason: str
    epochs: int
    seconds: float


class Run:
    """A model being fitted to pictures, between two steps."""

    def __init__(self, recipe: Recipe, images: UInt8[Tensor, "N C H W"], out: Path, device: str = "cpu") -> None:
        self.recipe, self.training, self.out = recipe, recipe.training, out
        self.device = torch.device(device)
        if self.training.validation >= len(images):
            raise ValueError(f"validation = {self.training.validation} leaves nothing of {len(images)} pictures")
        if self.training.binarization == "static":
            images, _ = data.static_binarization(images)
        self.images = images.to(self.device)
        self.count = len(images) - self.training.validation
        self.model: Any = family(recipe.family).Model(recipe.config)
        self.model.initialise(Rows.range(recipe.seed, 2**62, 1))
        self.model.to(self.device)
        self.average = [p.detach().clone() for p in self.model.parameters()] if self.training.average else []
        self.players: dict[str, list[nn.Parameter]] = _players(self.model)
        self.optimisers = _optimisers(self.players, self.training, self.count)
        if self.training.validation and ALONE not in self.players:
            raise ValueError("players have no common loss to choose epochs on: training.validation must be 0")
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = math.inf, 0
        self.epoch = self.step = self.steps = 0
        self.loss_sum, self.seconds, self.stopping = 0.0, 0.0, False
        self.fact_sums: dict[str, float] = {}

    # One step and one epoch

    def advance(self, index: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """One step of each player, the pictures' numbers drawn by (seed, epoch, picture); returns the summed losses."""
        rows = Rows(torch.full_like(index, self.recipe.seed), self.epoch * len(self.images) + index)
        total = torch.zeros((), device=self.device)
        for turn in self._turns(self.images[index], rows, self.epoch):
            self._play(turn)
            total = total + turn.losses.detach().sum()
        self.steps += 1
        if self.average:
            decay = min(self.training.average, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.model.parameters()], 1 - decay)
        return total

    def _play(self, turn: Turn) -> None:
        """Move one player's weights, and no other's, down the mean of its losses."""
        parameters, optimiser = self.players[turn.player], self.optimisers[turn.player]
        optimiser.zero_grad(set_to_none=True)
        turn.losses.mean().backward(inputs=parameters)  # type: ignore[no-untyped-call]
        if self.training.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.training.grad_clip)
        for group in optimiser.param_groups:
            group["lr"] = self.rate() * (group["initial_lr"] / self.training.learning_rate)
        optimiser.step()
        facts = {**turn.facts, **({f"loss_{turn.player}": turn.losses} if turn.player else {})}
        for name, values in facts.items():
            self.fact_sums[name] = self.fact_sums.get(name, 0.0) + float(values.detach().sum())

    def rate(self) -> float:
        """The learning rate of the next step: a linear warm-up, then constant, one drop, or a cosine down to zero."""
        warmup = min(1.0, (self.steps + 1) / max(1, self.training.warmup_steps))
        if self.training.decay == "drop" and self.epoch >= self.training.drop_from:
            return self.training.drop_to * warmup
        if self.training.decay != "cosine":
            return self.training.learning_rate * warmup
        total = self.training.epochs * math.ceil(self.count / self.training.batch_size)
        return self.training.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, self.steps / total)))

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss of the held-back pictures under the averaged weights, the same draws every time; nats."""
        total = 0.0
        with self.averaged():
            for first in range(self.count, len(self.images), 500):
                index = torch.arange(first, min(first + 500, len(self.images)), device=self.device)
                rows = Rows(torch.full_like(index, self.recipe.seed + 1), index)
                total += float(self._loss(self.images[index], rows, self.training.epochs).double().sum())
        return total / self.training.validation

    def _loss(self, images: UInt8[Tensor, "B C H W"], rows: Rows, epoch: int) -> Float[Tensor, "B"]:
        x = self._prepared(images, rows)
        with self._precision():
            losses: Tensor = self.model.loss(x, rows, epoch)
        return losses

    def _turns(self, images: UInt8[Tensor, "B C H W"], rows: Rows, epoch: int) -> Iterator[Turn]:
        """The turns of one step. Each is computed in a block of its own: autocast keeps the weights it has cast."""
        if ALONE in self.players:
            yield Turn(ALONE, self._loss(images, rows, epoch))
            return
        turns = self.model.turns(self._prepared(images, rows), rows, epoch)
        while True:
            with self._precision():
                turn = next(turns, None)
            if turn is None:
                return
            yield turn

    def _prepared(self, images: UInt8[Tensor, "B C H W"], rows: Rows) -> Float[Tensor, "B C H W"]:
        return data.binarize(images, rows) if self.training.binarization == "dynamic" else data.grey(images)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16")

    def _settle(self) -> None:
        """What the model wants to know of the training pictures, under the weights that will ship; then these ship."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}

        def images() -> Iterator[Tensor]:
            for index in torch.split(torch.arange(self.count, device=self.device), 500):
                rows = Rows(torch.full_like(index, self.recipe.seed + 1), index)
                yield self._prepared(self.images[index], rows)

        def rows(first: int, count: int) -> Rows:
            return Rows.range(self.recipe.seed + 2, first, count, self.device)

        with self.averaged() as model:
            self.model.settle(images, rows)
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
        saved = began = time.monotonic()
        before = self.seconds
        while self.epoch < self.training.epochs:
            order = data.shuffled(self.count, self.recipe.seed, self.epoch).to(self.device)
            batches = torch.split(order, self.training.batch_size)
            for number in range(self.step, len(batches)):
                total = self.advance(batches[number])
                self.loss_sum += float(total)
                self.step = number + 1
                if number % CHECK_EVERY_STEPS == 0 or self.step == len(batches):
                    if not math.isfinite(self.loss_sum):
                        return Outcome("not a number", self.epoch, before + time.monotonic() - began)
                    _progress(self, len(batches))
                if self.stopping:
                    self.seconds = before + time.monotonic() - began
                    self.save()
                    return Outcome("interrupted", self.epoch, self.seconds)
            self.seconds = before + time.monotonic() - began
            report(self.end_epoch())
            last = self.epoch == self.training.epochs
            if last and hasattr(self.model, "settle"):
                self._settle()
            stop = bool(self.training.patience) and self.epoch - self.best_epoch >= self.training.patience
            if last or stop or time.monotonic() - saved >= self.training.save_every_s:
                self.save()
                saved = time.monotonic()
            if stop:
                return Outcome("early stop", self.epoch, self.seconds)
        return Outcome("finished", self.epoch, self.seconds)

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
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    # Checkpoints

    def save(self) -> None:
        """Write `state.pt`, whole or not at all."""
        state = {
            "recipe": json.dumps(self.recipe.to_json()),
            "model": self.model.state_dict(),
            "average": self.average,
            "optimiser": self._optimiser_state(),
            "best": self.best,
            **{name: getattr(self, name) for name in COUNTERS},
        }
        part = self.out / "state.pt.part"
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.out / "state.pt")  # noqa: PTH105

    def _optimiser_state(self) -> dict[str, Any]:
        """The optimiser's state, or each player's by name."""
        states = {player: optimiser.state_dict() for player, optimiser in self.optimisers.items()}
        return states.get(ALONE, states)

    def restore(self) -> None:
        """Go on from `state.pt`; ValueError where it follows another recipe (epochs of a constant rate may differ)."""
        state = torch.load(self.out / "state.pt", map_location=self.device, weights_only=True)
        if _but_epochs(json.loads(state["recipe"])) != _but_epochs(self.recipe.to_json()):
            raise ValueError("the run was begun by another recipe; only training.epochs of a constant rate may change")
        self.model.load_state_dict(state["model"])
        saved = {ALONE: state["optimiser"]} if ALONE in self.optimisers else state["optimiser"]
        for player, optimiser in self.optimisers.items():
            optimiser.load_state_dict(saved[player])
        self.average, self.best = state["average"], state["best"]
        for name in COUNTERS:
            setattr(self, name, state[name])
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        kept = [line for line in lines if _epoch(line) <= self.epoch]
        metrics.write_text("".join(line + "\n" for line in kept))


COUNTERS = ("best_loss", "best_epoch", "epoch", "step", "steps", "loss_sum", "fact_sums", "seconds")


def train(
    recipe: Recipe,
    images: UInt8[Tensor, "N C H W"],
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Outcome:
    """Fit a recipe into the folder `out`, or go on with what is there; SIGTERM and SIGINT leave a checkpoint.

    ValueError where `out` holds a run and `resume` is not asked for, or the recipe differs from the run's.
    """
    if (out / "state.pt").exists() and not resume:
        raise ValueError(f"{out.name} holds a run already: resume it, or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(recipe, images, out, device)
    if (out / "state.pt").exists():
        run.restore()
    else:
        (out / "metrics.jsonl").unlink(missing_ok=True)
    (out / "recipe.json").write_text(json.dumps(recipe.to_json(), indent=2) + "\n")
    with _stopped_by_signals(run):
        return run.fit(report)


def weights(out: Path) -> tuple[dict[str, Tensor], Recipe, dict[str, Any]]:
    """What a run would ship (the best epoch's weights if it validated, else the last average), and its counters."""
    state = torch.load(out / "state.pt", map_location="cpu", weights_only=True)
    recipe = Recipe.from_json(json.loads(state["recipe"]))
    tensors: dict[str, Tensor] = dict(state["model"])
    names = [name for name, _ in family(recipe.family).Model(recipe.config).named_parameters()]
    tensors.update(zip(names, state["average"], strict=False))
    return state["best"] or tensors, recipe, {name: state[name] for name in COUNTERS}


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


def _players(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each player's weights; those of the whole model where the family names no players."""
    names: tuple[str, ...] = getattr(model, "PLAYERS", ())
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
        mean = run.loss_sum / max(1, run.step * run.training.batch_size)
        text = f"\repoch {run.epoch + 1}/{run.training.epochs} {bar} loss {mean:9.3f} nats"
        sys.stderr.write(text + ("\n" if run.step == batches else ""))
        sys.stderr.flush()


def _epoch(line: str) -> float:
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _but_epochs(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without what may change on resuming; the epochs may where no cosine is as long as they."""
    free = {"save_every_s"} | ({"epochs"} if recipe["training"]["decay"] == "constant" else set())
    return {**recipe, "training": {name: value for name, value in recipe["training"].items() if name not in free}}
