"""Run a training in its folder: train epochs, validate, write checkpoints, metrics and progress."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.kit.optimizers import WHOLE_MODEL
from models.kit.preview import preview
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.run_folder import RunFolder, decode_state, print_progress
from models.kit.shapes import ByteImages, Tensor, UInt8
from models.kit.trainer import Trainer

CHECK_EVERY_STEPS = 100
PROGRESS_EVERY_S = 0.5
PREVIEW_EVERY_S = 10.0
DIVERGED = 1e4  # a training has diverged when its mean loss exceeds the first step's by this factor

# Attributes of a `Run` that its checkpoint holds under the same names.
COUNTERS = (
    "best_loss",
    "best_epoch",
    "epoch",
    "step",
    "steps",
    "loss_sum",
    "first_loss",
    "fact_sums",
    "seconds",
    "prior_active",
)


@dataclass(frozen=True)
class Outcome:
    """How a training ended: the reason, the number of finished epochs, and the seconds it has run.

    `reason` is "finished", "early stop", "interrupted" (by a signal; the training can be resumed),
    "not a number" (the loss or a weight is not finite) or "diverged" (the loss is far above the
    first one).
    """

    reason: str
    epochs: int
    seconds: float


class Run(Trainer):
    """A training and its folder, to which checkpoints, metrics and progress are written."""

    def __init__(
        self,
        recipe: Recipe,
        images: ByteImages,
        out: Path,
        device: str = "cpu",
        held_back: UInt8[Tensor, "V C H W"] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(recipe, images, device, held_back, start)
        self.folder = RunFolder(out)
        self.initial = copy.deepcopy(dict(self.model.state_dict())) if self._overfitting else {}
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_epoch = math.inf, 0
        self.loss_sum, self.first_loss, self.seconds, self.stopping = 0.0, 0.0, 0.0, False
        self.saved: dict[str, Any] | None = None
        self._started = self._seconds_before = self._saved_at = self._progress_at = self._preview_at = 0.0

    # Epochs

    def fit(self, report: Callable[[dict[str, Any]], None] = lambda _: None) -> Outcome:
        """Train until the last epoch, an early stop, a signal or a bad loss; return how it ended.

        A bad loss is one that is not finite or far above the first. `report` is called with the
        metrics of each epoch.
        """
        self._started = self._saved_at = self._progress_at = time.monotonic()
        self._preview_at, self._seconds_before = -math.inf, self.seconds
        while self.epoch < self.training.epochs:
            reason = self._run_epoch() or self.finish_epoch(report)
            if reason:
                return Outcome(reason, self.epoch, self.seconds)
        return Outcome("finished", self.epoch, self.seconds)

    def _run_epoch(self) -> str:
        """Run the remaining steps of the present epoch; write checkpoints and progress in between.

        Returns "" after the epoch's last step, or else why the training ends before it:
        "interrupted", "not a number" or "diverged".
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
        """Finish an epoch after its last step: validate, and write metrics.

        A checkpoint and a preview are written after the last epoch and at an early stop; after
        other epochs, a checkpoint if the previous one is at least `training.save_every_s` old, and
        a preview if the previous one is at least `PREVIEW_EVERY_S` old. Then `report` is called
        with the metrics. Returns "early stop", "not a number" or "diverged" if the training ends
        here for that reason, otherwise "".
        """
        self.process_group.broadcast_model(self.model)
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
        """Validate, keep the weights if they are the best so far, and return the epoch's metrics.

        The metrics, keyed by name, are also appended to `metrics.jsonl`. The counters and sums of
        the epoch are reset for the next one.
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
            loss = self.process_group.of_main(self.validate())
            line["validation_loss"] = round(loss, 4)
            if loss < self.best_loss:
                self.best_loss, self.best_epoch = loss, self.epoch
                self.best = copy.deepcopy(dict(self.averaged_model.state_dict()))
            elif self._overfits(loss):
                self.begin_prior(self.initial)
        if self.process_group.is_main:
            self.folder.append_metrics(line)
        return line

    @property
    def _overfitting(self) -> float:
        """The option `overfitting` of the family's configuration; 0 for a family without it."""
        return getattr(self.recipe.config, "overfitting", 0.0)

    # See docs/decisions.md#a-prior-begins-when-a-training-overfits
    def _overfits(self, loss: float) -> bool:
        """Return whether the validation loss `loss` is so high that the prior must begin.

        It must if `config.overfitting` of the family is not 0, the prior is not active, and `loss`
        exceeds the minimum by more than that fraction of it.
        """
        limit = self.best_loss + self._overfitting * abs(self.best_loss)
        return self._overfitting > 0 and not self.prior_active and loss > limit

    def failure(self, *, check_weights: bool) -> str:
        """Return why the training must not go on, "not a number" or "diverged"; "" if it may.

        "not a number": the mean loss of the epoch so far is not finite or, with `check_weights`, a
        weight is not. "diverged": that mean is more than `DIVERGED` times the loss of the
        training's first step.
        """
        if not math.isfinite(self.loss_sum):
            return "not a number"
        if check_weights and not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            return "not a number"
        return "diverged" if abs(self.loss_sum) > DIVERGED * (1 + self.first_loss) * max(1, self.images_seen) else ""

    def _finalize(self) -> None:
        """Call the family's method `finalize` on a copy of the model; store the result in `best`.

        The copy has the averaged weights or, with validation, the weights of the best validation
        loss. `finalize` receives the preprocessed training images in batches, and random streams
        that the training has not used.
        """
        model = copy.deepcopy(self.averaged_model)
        if self.best and self.training.validation:
            model.load_state_dict(self.best)

        def images() -> Iterator[Tensor]:
            for index in torch.split(torch.arange(self.count, device=self.device), 500):
                rows = RowStreams.of_rows(self.recipe.seed + 1, index)
                self.touch_progress()
                yield self._preprocess(self.images[index], rows)

        def rows(first: int, count: int) -> RowStreams:
            return RowStreams.range(self.recipe.seed + 2, first, count, self.device)

        model.finalize(images, rows)
        self.best = dict(model.state_dict())

    # Files

    def write_progress(self) -> None:
        """Write `progress.json` (epoch, step, loss, last checkpoint), and draw the progress bar."""
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
        """Write a preview made with the averaged weights, if the family can make previews.

        It is stored under the number of finished epochs. Neither the weights nor the state of the
        training change.
        """
        images = self.held_back if len(self.held_back) else self.images
        picture = preview(self.averaged_model, images, self.recipe.seed)
        if picture is not None:
            self.folder.write_preview(self.epoch, picture)

    def touch_progress(self) -> None:
        """Set the modification time of `progress.json` to now, if it is `PROGRESS_EVERY_S` seconds
        old.

        Work without optimizer steps calls this often, because the training worker stops a child
        process that writes none of its files for too long.
        """
        if self.process_group.is_main and time.monotonic() - self._progress_at >= PROGRESS_EVERY_S:
            (self.folder.path / "progress.json").touch()
            self._progress_at = time.monotonic()

    def _position(self) -> dict[str, int]:
        """Return the numbers of the epoch, of the step within it, and of all steps so far."""
        return {"epoch": self.epoch, "step": self.step, "steps": self.steps}

    def _checkpoint(self) -> None:
        """Copy the main process's model to all processes; write a checkpoint in the main process."""
        self.process_group.broadcast_model(self.model)
        if self.process_group.is_main:
            self.save()
        self._saved_at = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint `state.pt`, and then `progress.json`, each atomically.

        Raises ValueError if the disk is full.
        """
        averages = [p.detach() for p in self.average.module.parameters()] if self.average else []
        optimizers = {module: optimizer.state_dict() for module, optimizer in self.optimizers.items()}
        state = {
            "recipe": json.dumps(self.recipe.to_json()),
            "model": self.model.state_dict(),
            "average": averages,
            "optimiser": optimizers.get(WHOLE_MODEL, optimizers),
            "initial": self.initial,
            "best": self.best,
            **{name: getattr(self, name) for name in COUNTERS},
        }
        self.folder.save_state(
            state, f"that of step {self.saved['steps']} is kept" if self.saved else "there is none yet"
        )
        self.saved = {**self._position(), "seconds": round(self.seconds, 2)}
        self.write_progress()

    def restore(self) -> None:
        """Load weights, averages, optimizers and counters from `state.pt`, to continue from there.

        Every process of the training loads the main process's file, which may be on another host.
        Metrics of epochs after this checkpoint are deleted from `metrics.jsonl`. Raises ValueError
        if the recipe differs from the one in `state.pt`, except in `save_every_s` and, while the
        learning rate has been constant, in the number of epochs and the decay.
        """
        group = self.process_group
        if group.is_single:
            state = self.folder.load_state(self.device)
        else:
            content = group.bytes_of_main(self.folder.read_state() if group.is_main else b"")
            state = decode_state(content, self.device)
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
        self.initial, self.best = state.get("initial", {}), state["best"]
        for name in COUNTERS:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.saved = {**self._position(), "seconds": round(self.seconds, 2)}
        if self.process_group.is_main:
            self.folder.drop_metrics_after(self.epoch)
