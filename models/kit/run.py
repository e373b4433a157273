"""One training in progress: model, optimizers, steps and epochs.

This file has more than 400 lines because the steps, the epochs and the checkpoint of a training
share one state.
"""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from models.kit import data
from models.kit.batches import batch_count, batches, smallest_batch
from models.kit.card import family, warm_start
from models.kit.distributed import ProcessGroup
from models.kit.graphed_loss import MIN_STEPS, EpochGraph
from models.kit.optimizers import WHOLE_MODEL, OptimizerStep, build_optimizers, optimized_parameters, scheduled_rate
from models.kit.preview import preview
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.run_folder import RunFolder, print_progress
from models.kit.shapes import ByteImages, Float, Int, Tensor, UInt8

CHECK_EVERY_STEPS = 100
PROGRESS_EVERY_S = 0.5
PREVIEW_EVERY_S = 10.0
DIVERGED = 1e4  # a training has diverged when its mean loss exceeds the first step's by this factor

# Attributes of a `Run` that its checkpoint holds under the same names.
COUNTERS = ("best_loss", "best_epoch", "epoch", "step", "steps", "loss_sum", "first_loss", "fact_sums", "seconds")


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    `reason` is "finished", "early stop", "interrupted" (by a signal; it can be resumed), or "not a
    number" or "diverged" (of the loss).
    """

    reason: str
    epochs: int
    seconds: float


class Run:
    """A model that is being fitted to images.

    `epoch` and `step` (within the epoch) count from 0; `steps` counts all steps. Everything random
    is a function of (seed, epoch, image), so these counters, the weights, their average and the
    optimizers' state determine the rest of the training.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: ByteImages,
        out: Path,
        device: str = "cpu",
        held_back: UInt8[Tensor, "V C H W"] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.training, self.folder = recipe, recipe.training, RunFolder(out)
        self.device = torch.device(device)
        images, held_back = data.split_validation(images, held_back, self.training)
        self.images, self.held_back = images.to(self.device), held_back.to(self.device)
        self.count, self.rows_per_epoch = len(images), len(images) + len(held_back)
        self.model: Any = family(recipe.family).Model(recipe.config)
        self.model.initialise(RowStreams.range(recipe.seed, 2**62, 1))
        if start is not None:
            warm_start(self.model, start)
        self.model.to(self.device)
        self.average = self._build_average() if self.training.average else None
        self.parameters = optimized_parameters(self.model)
        self.optimizers = build_optimizers(self.parameters, self.training, self.count)
        if self.training.validation and WHOLE_MODEL not in self.parameters:
            raise ValueError("adversarial families have no single validation loss: training.validation must be 0")
        if self.training.compile and WHOLE_MODEL not in self.parameters:
            raise ValueError("only a family with a single loss can be compiled: training.compile must be false")
        self._compiled: Any = torch.compile(self.model.loss) if self.training.compile else None
        self.process_group = ProcessGroup()
        self.min_batch = smallest_batch(self.model) * self.process_group.world_size
        self.batch_count = batch_count(self.count, self.training.batch_size, self.min_batch)
        batches(torch.arange(self.count), self.training.batch_size, self.min_batch)  # raises now what a step would
        self._graph = EpochGraph(self._graphed_losses, self.parameters[WHOLE_MODEL]) if self._uses_graph() else None
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = math.inf, 0
        self.epoch = self.step = self.steps = 0
        self.loss_sum, self.first_loss, self.seconds, self.stopping = 0.0, 0.0, 0.0, False
        self.fact_sums: dict[str, float] = {}  # sums of the metrics of this epoch's steps
        self.saved: dict[str, Any] | None = None
        self._started = self._seconds_before = self._saved_at = self._progress_at = self._preview_at = 0.0

    def _build_average(self) -> AveragedModel:
        """Return a copy of the model for the exponential moving average of its weights."""

        def average(averages: Any, weights: Any, _count: Any) -> None:
            decay = min(self.training.average, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(averages, weights, 1 - decay)

        averaged = AveragedModel(self.model, multi_avg_fn=average)
        averaged.n_averaged.fill_(1)  # the first update averages with the initial weights instead of replacing them
        return averaged

    @property
    def averaged_model(self) -> Any:
        """The model with the averaged weights; the trained model if the recipe has no average."""
        return self.average.module if self.average else self.model

    # One step

    def batches(self, epoch: int) -> Sequence[Int[Tensor, "b"]]:
        """Return the image indices of each step of an epoch: one tensor per batch.

        A remainder that is too small for a step joins the last batch.
        """
        order = data.shuffled(self.count, self.recipe.seed, epoch).to(self.device)
        return batches(order, self.training.batch_size, self.min_batch)

    @property
    def images_seen(self) -> int:
        """Number of images of this epoch that were trained on."""
        whole = self.step == self.batch_count
        return self.count if whole else min(self.step * self.training.batch_size, self.count)

    def train_step(self, index: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Train every optimized module once on the images with the indices `index`.

        Updates the weights, their average and the count of steps. Returns the sum of the losses of
        the images, a tensor without dimensions.
        """
        share = self.process_group.local_share(index)
        row = self.epoch * self.rows_per_epoch + share
        if self._graph and len(share) == min(self.training.batch_size, self.count):
            total = self._graph.of(self.epoch, share)(share, row)
            self._update(WHOLE_MODEL)
        else:
            rows = RowStreams.of_rows(self.recipe.seed, row)
            total = torch.zeros((), device=self.device)
            for step in self.training_steps(self.images[share], rows, self.epoch):
                total = total + self.apply_step(step, len(index))
        self.steps += 1
        if self.average:
            self.average.update_parameters(self.model)
        return total

    def _uses_graph(self) -> bool:
        """Return whether batches of full size are trained by a CUDA graph.

        Not without a GPU, for families with several optimizers or with a loss that a graph cannot
        express, and not for compiled, distributed or short trainings.
        """
        return (
            self.device.type == "cuda"
            and WHOLE_MODEL in self.parameters
            and getattr(self.model, "CUDA_GRAPH", False)
            and self._compiled is None
            and self.process_group.is_single
            and self.batch_count >= MIN_STEPS
        )

    def _graphed_losses(self, index: Int[Tensor, "B"], row: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        rows = RowStreams.of_rows(self.recipe.seed, row)
        return self._loss(self.images[index], rows, self.epoch, self.model.loss)

    def apply_step(self, step: OptimizerStep, count: int) -> Float[Tensor, ""]:
        """Update the weights of the step's module by the mean of its losses.

        `count` is the number of images of the step in all processes. Returns the sum of their
        losses, and adds the step's metrics to the epoch's.
        """
        parameters = self.parameters[step.module]
        self.optimizers[step.module].zero_grad(set_to_none=True)
        loss = step.losses.mean() if self.process_group.is_single else step.losses.sum() / count
        loss.backward(inputs=parameters)
        self._update(step.module)
        metrics = {**step.metrics, **({f"loss_{step.module}": step.losses} if step.module else {})}
        totals = [values.detach().sum() for values in (step.losses, *metrics.values())]
        sums = self.process_group.all_reduce_sums(totals)
        for name, value in zip(metrics, sums[1:], strict=True):
            self.fact_sums[name] = self.fact_sums.get(name, 0.0) + float(value)
        return sums[0]

    def _update(self, module: str) -> None:
        """Change one module's weights by its gradients, at the scheduled learning rate."""
        parameters, optimizer = self.parameters[module], self.optimizers[module]
        self.process_group.all_reduce_gradients(parameters)
        if self.training.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.training.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate() * (group["initial_lr"] / self.training.learning_rate)
        optimizer.step()

    def learning_rate(self) -> float:
        """Return the scheduled learning rate of the next step."""
        return scheduled_rate(self.training, self.epoch, self.steps, self.batch_count)

    def training_steps(self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int) -> Iterator[OptimizerStep]:
        """Yield one optimizer step per optimized module; apply each before the next is computed.

        Each step is computed in a separate autocast context, because autocast caches the weights
        that it has cast.
        """
        if WHOLE_MODEL in self.parameters:
            yield OptimizerStep(WHOLE_MODEL, self._loss(images, rows, epoch, self._compiled or self.model.loss))
            return
        steps = self.model.training_steps(self._preprocess(images, rows), rows, epoch)
        while True:
            with self._autocast():
                step = next(steps, None)
            if step is None:
                return
            yield step

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss of the validation images, computed with the averaged weights."""
        total = 0.0
        indices = torch.arange(self.count, self.rows_per_epoch, device=self.device)
        for index in batches(indices, 500, min(self.min_batch, len(indices))):
            rows = RowStreams.of_rows(self.recipe.seed + 1, index)
            images = self.held_back[index - self.count]
            losses = self._loss(images, rows, self.training.epochs, self.averaged_model.loss)
            total += float(losses.double().sum())
            self._touch_progress()
        return total / self.training.validation

    def _loss(
        self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int, loss: Callable[..., Tensor]
    ) -> Float[Tensor, "B"]:
        x = self._preprocess(images, rows)
        with self._autocast():
            return loss(x, rows, epoch)

    def _preprocess(self, images: UInt8[Tensor, "B C H W"], rows: RowStreams) -> Float[Tensor, "B C H W"]:
        return data.binarize(images, rows) if self.training.binarization == "dynamic" else data.grey(images)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16")

    # The loop

    def fit(self, report: Callable[[dict[str, Any]], None] = lambda _: None) -> Outcome:
        """Train until the last epoch, an early stop, a signal or a bad loss; return how it ended.

        `report` is called with the metrics of each epoch.
        """
        self._started = self._saved_at = self._progress_at = time.monotonic()
        self._preview_at, self._seconds_before = -math.inf, self.seconds
        while self.epoch < self.training.epochs:
            reason = self._run_epoch() or self.finish_epoch(report)
            if reason:
                return Outcome(reason, self.epoch, self.seconds)
        return Outcome("finished", self.epoch, self.seconds)

    def _run_epoch(self) -> str:
        """Run the remaining steps of the epoch, with checkpoints and progress when due.

        Returns why the training ends before the epoch does, or "".
        """
        batches = self.batches(self.epoch)
        losses: list[Tensor] = []  # of the last steps, still on the device: reading one waits for its step
        for number in range(self.step, len(batches)):
            losses.append(self.train_step(batches[number]))
            self.step, now = number + 1, time.monotonic()
            self.seconds = self._seconds_before + now - self._started
            whole = self.step == len(batches)
            save_due = now - self._saved_at >= self.training.save_every_s and not whole
            # never assign `self.stopping` here: a signal that arrives meanwhile would be lost
            requested = self.stopping
            stopping, due = self.process_group.any_process(requested, requested or save_due)
            progress_due = self.process_group.is_main and (whole or now - self._progress_at >= PROGRESS_EVERY_S)
            check_due = number % CHECK_EVERY_STEPS == 0 or whole or due
            if check_due or progress_due:
                self.loss_sum = sum(torch.stack(losses).tolist(), self.loss_sum)
                losses.clear()
                self.first_loss = self.first_loss or abs(self.loss_sum) / len(batches[number])
            if check_due and (reason := self.failure(check_weights=due)):
                return reason
            if due:
                self._checkpoint()
            if stopping:
                return "interrupted"
            if progress_due:
                self.write_progress()
                self._progress_at = now
        return ""

    def finish_epoch(self, report: Callable[[dict[str, Any]], None]) -> str:
        """Finish an epoch: validate, and write metrics, checkpoint and preview when due.

        `report` is called with the metrics, for the last epoch only after its checkpoint is
        written. Returns why the training ends here, or "".
        """
        self.process_group.broadcast_buffers(self.model)
        line = self._end_epoch()
        last = self.epoch == self.training.epochs
        if last and hasattr(self.model, "finalize"):
            self._finalize()
        stop = bool(self.training.patience) and self.epoch - self.best_epoch >= self.training.patience
        save_due = time.monotonic() - self._saved_at >= self.training.save_every_s
        if self.process_group.any_process(last or stop or save_due)[0]:
            if reason := self.failure(check_weights=True):
                return reason
            self._checkpoint()
        if self.process_group.is_main:
            if last or stop or time.monotonic() - self._preview_at >= PREVIEW_EVERY_S:
                self.write_preview()
                self._preview_at = time.monotonic()
            report(line)
        return "early stop" if stop else ""

    def _end_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, write the metrics and reset the epoch's counters.

        Returns the metrics, keyed by name.
        """
        line: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "steps": self.steps,
            "images": (self.epoch + 1) * self.count,
            "train_loss": round(self.loss_sum / self.count, 4),
            "learning_rate": self.learning_rate(),
            "seconds": round(self.seconds, 2),
        }
        line |= {name: round(total / self.count, 5) for name, total in self.fact_sums.items()}
        self.epoch, self.step, self.loss_sum, self.fact_sums = self.epoch + 1, 0, 0.0, {}
        if self.training.validation:
            line["validation_loss"] = round(loss := self.validate(), 4)
            if loss < self.best_loss:
                self.best_loss, self.best_epoch = loss, self.epoch
                self.best = copy.deepcopy(dict(self.averaged_model.state_dict()))
        if self.process_group.is_main:
            self.folder.append_metrics(line)
        return line

    def _finalize(self) -> None:
        """Run the family's `finalize` on a copy of the model, and store its weights in `self.best`.

        The copy has the averaged weights or, with validation, those with the best validation loss.
        `finalize` gets the preprocessed training images in chunks, and random streams of its own.
        """
        model = copy.deepcopy(self.averaged_model)
        if self.best and self.training.validation:
            model.load_state_dict(self.best)

        def images() -> Iterator[Tensor]:
            for index in torch.split(torch.arange(self.count, device=self.device), 500):
                rows = RowStreams.of_rows(self.recipe.seed + 1, index)
                self._touch_progress()
                yield self._preprocess(self.images[index], rows)

        def rows(first: int, count: int) -> RowStreams:
            return RowStreams.range(self.recipe.seed + 2, first, count, self.device)

        model.finalize(images, rows)
        self.best = dict(model.state_dict())

    def failure(self, *, check_weights: bool) -> str:
        """Return "not a number" or "diverged" if the training must not continue, else "".

        With `check_weights` all weights must be finite, not only the loss.
        """
        if not math.isfinite(self.loss_sum):
            return "not a number"
        if check_weights and not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return "not a number"
        return "diverged" if abs(self.loss_sum) > DIVERGED * (1 + self.first_loss) * max(1, self.images_seen) else ""

    # Files

    def write_progress(self) -> None:
        """Write `progress.json`: the position of the training, and the step of its last checkpoint.

        Also draw the progress bar.
        """
        progress = {
            **self._position(),
            "epochs": self.training.epochs,
            "steps_total": self.training.epochs * self.batch_count,
            "loss": self.loss_sum / self.images_seen if self.step else None,
            "seconds": round(self.seconds, 2),
            "checkpoint": self.saved,
        }
        self.folder.write("progress.json", json.dumps(progress).encode())
        mean = self.loss_sum / max(1, self.images_seen)
        print_progress(self.epoch, self.training.epochs, self.step / self.batch_count, mean)

    def write_preview(self) -> None:
        """Write `preview.png`, if the family has a preview, with the averaged weights.

        Neither weights nor the state of the training change.
        """
        images = self.held_back if len(self.held_back) else self.images
        picture = preview(self.averaged_model, images, self.recipe.seed)
        if picture is not None:
            self.folder.write("preview.png", picture)

    def _touch_progress(self) -> None:
        """Touch `progress.json` during work without steps, so that a supervisor sees progress."""
        if self.process_group.is_main and time.monotonic() - self._progress_at >= PROGRESS_EVERY_S:
            (self.folder.path / "progress.json").touch()
            self._progress_at = time.monotonic()

    def _position(self) -> dict[str, int]:
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def _checkpoint(self) -> None:
        self.process_group.broadcast_buffers(self.model)
        if self.process_group.is_main:
            self.save()
        self._saved_at = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint `state.pt` atomically, and then `progress.json`.

        Raises ValueError if the disk is full.
        """
        averages = [p.detach() for p in self.average.module.parameters()] if self.average else []
        optimizers = {module: optimizer.state_dict() for module, optimizer in self.optimizers.items()}
        state = {
            "recipe": json.dumps(self.recipe.to_json()),
            "model": self.model.state_dict(),
            "average": averages,
            "optimiser": optimizers.get(WHOLE_MODEL, optimizers),
            "best": self.best,
            **{name: getattr(self, name) for name in COUNTERS},
        }
        self.folder.save_state(
            state, f"that of step {self.saved['steps']} is kept" if self.saved else "there is none yet"
        )
        self.saved = {**self._position(), "seconds": round(self.seconds, 2)}
        self.write_progress()

    def restore(self) -> None:
        """Continue from `state.pt`: load weights, averages, optimizers and counters.

        Removes the metrics of later epochs. Raises ValueError if `state.pt` was written by a recipe
        that this one may not continue.
        """
        state = self.folder.load_state(self.device)
        self.folder.check_recipe(state, self.recipe)
        self.model.load_state_dict(state["model"])
        optimizers = {WHOLE_MODEL: state["optimiser"]} if WHOLE_MODEL in self.optimizers else state["optimiser"]
        for module, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizers[module])
        if self.average:
            with torch.no_grad():
                for parameter, average in zip(self.average.module.parameters(), state["average"], strict=True):
                    parameter.copy_(average)
            for buffer, trained in zip(self.average.module.buffers(), self.model.buffers(), strict=True):
                buffer.copy_(trained)
        self.best = state["best"]
        for name in COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.saved = {**self._position(), "seconds": round(self.seconds, 2)}
        if self.process_group.is_main:
            self.folder.drop_metrics_after(self.epoch)
