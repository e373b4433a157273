"""Train a model on images, one optimizer step at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from models.kit.recipe import Recipe
from models.kit.row_streams import RowStreams
from models.kit.shapes import ByteImages, Float, Int, Tensor, UInt8


class Trainer:
    """A model in training, with its images, optimizers and counters.

    `epoch` and `step` (within the epoch) count from 0; `steps` counts all steps. Everything random
    is a function of (seed, epoch, image), so these counters, the weights, their average and the
    optimizers' state determine the rest of the training.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: ByteImages,
        device: str = "cpu",
        held_back: UInt8[Tensor, "V C H W"] | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.training = recipe, recipe.training
        self.device = torch.device(device)
        images, held_back = data.split_validation(images, held_back, self.training)
        self.images, self.held_back = images.to(self.device), held_back.to(self.device)
        self.count, self.rows_per_epoch = len(images), len(images) + len(held_back)
        self.model: Any = family(recipe.family).Model(recipe.config)
        self.model.initialise(RowStreams.range(recipe.seed, 2**62, 1))
        if hasattr(self.model, "training_images"):
            self.model.training_images = self.count
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
        self.process_group = ProcessGroup(self.device)
        if not self.process_group.is_single:
            self.process_group.check_same("recipe or images", self._identity(images, held_back))
        self.min_batch = smallest_batch(self.model) * self.process_group.world_size
        self.batch_count = batch_count(self.count, self.training.batch_size, self.min_batch)
        batches(torch.arange(self.count), self.training.batch_size, self.min_batch)  # raises now what a step would
        self._graph = EpochGraph(self._graphed_losses, self.parameters.get(WHOLE_MODEL, []))
        self.epoch = self.step = self.steps = 0
        self.fact_sums: dict[str, float] = {}  # sums of the metrics of this epoch's steps

    def _identity(self, *images: UInt8[Tensor, "N C H W"]) -> Iterator[bytes]:
        """Yield, as bytes, the recipe and images: what all processes of the training must share."""
        yield json.dumps(self.recipe.to_json(), sort_keys=True).encode()
        for tensor in images:
            for piece in tensor.split(1000):
                yield piece.contiguous().cpu().numpy().tobytes()

    def _build_average(self) -> AveragedModel:
        """Return a copy of the model, with an exponential moving average of its weights."""

        def average(averages: Any, weights: Any, _count: Any) -> None:
            decay = min(self.training.average, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(averages, weights, 1 - decay)

        averaged = AveragedModel(self.model, multi_avg_fn=average)
        averaged.n_averaged.fill_(1)  # the first update averages with the initial weights instead of replacing them
        return averaged

    @property
    def prior_active(self) -> bool:
        """Whether the loss includes the model's prior; False for a family that has none to switch."""
        return getattr(self.model, "prior_active", False)

    @prior_active.setter
    def prior_active(self, active: bool) -> None:
        if hasattr(self.model, "prior_active"):
            self.model.prior_active = active

    def begin_prior(self, weights: Mapping[str, Tensor]) -> None:
        """Begin anew at `weights`, keyed by name, with the prior and with new optimizers."""
        self.model.load_state_dict(weights)
        self.process_group.broadcast_model(self.model)
        if self.average:
            self.average.module.load_state_dict(self.model.state_dict())
        self.optimizers = build_optimizers(self.parameters, self.training, self.count)
        self.prior_active = True

    @property
    def averaged_model(self) -> Any:
        """The model with the averaged weights; the trained model itself if there is no average."""
        return self.average.module if self.average else self.model

    def batches(self, epoch: int) -> Sequence[Int[Tensor, "b"]]:
        """Return the batches of an epoch: for each step, the indices of its images.

        If the last images of the epoch are too few for a step, they join the previous batch.
        """
        order = data.shuffled(self.count, self.recipe.seed, epoch).to(self.device)
        return batches(order, self.training.batch_size, self.min_batch)

    @property
    def images_seen(self) -> int:
        """The number of images that the steps of the present epoch have used so far."""
        whole = self.step == self.batch_count
        return self.count if whole else min(self.step * self.training.batch_size, self.count)

    def train_step(self, index: Int[Tensor, "B"]) -> Float[Tensor, ""]:
        """Update the weights by one optimizer step for each optimized submodule.

        `index` has the indices of the images of the batch. The average of the weights and the count
        of steps are updated, too. Returns the sum of the losses of the images, a scalar tensor.
        """
        share = self.process_group.local_share(index)
        row = self.epoch * self.rows_per_epoch + share
        if self._uses_graph(len(share)):
            total = self._graph.of(self.epoch, share)(share, row)
            self._update(WHOLE_MODEL)
        else:
            rows = RowStreams.of_rows(self.recipe.seed, row)
            total = torch.zeros((), device=self.device)
            for step in self.training_steps(self.images.index_select(0, share), rows, self.epoch):
                total = total + self.apply_step(step, len(index))
        self.steps += 1
        if self.average:
            self.average.update_parameters(self.model)
        return total

    def _uses_graph(self, size: int) -> bool:
        """Return whether the losses of a batch of `size` images are computed by a CUDA graph.

        That needs a GPU, a family with one optimizer whose loss a graph can express (`CUDA_GRAPH`),
        a training that is neither compiled nor distributed, epochs of at least `MIN_STEPS` steps,
        and a batch of the recipe's size.
        """
        return (
            self.device.type == "cuda"
            and WHOLE_MODEL in self.parameters
            and getattr(self.model, "CUDA_GRAPH", False)
            and self._compiled is None
            and self.process_group.is_single
            and self.batch_count >= MIN_STEPS
            and size == min(self.training.batch_size, self.count)
        )

    def _graphed_losses(self, index: Int[Tensor, "B"], row: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the losses (B,) of images by their indices, for a CUDA graph."""
        rows = RowStreams.of_rows(self.recipe.seed, row)
        return self._loss(self.images[index], rows, self.epoch, self.model.loss)

    def apply_step(self, step: OptimizerStep, count: int) -> Float[Tensor, ""]:
        """Update the weights of the submodule of `step` by the mean of its losses.

        `count` is the number of images of the step in all processes. Returns the sum of the losses
        of these images, a scalar tensor. The step's metrics are added to the sums of the epoch.
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
        """Change the weights of a submodule by their gradients, at the scheduled learning rate."""
        parameters, optimizer = self.parameters[module], self.optimizers[module]
        self.process_group.all_reduce_gradients(parameters)
        if self.training.grad_clip:
            nn.utils.clip_grad_norm_(parameters, self.training.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate() * (group["initial_lr"] / self.training.learning_rate)
        optimizer.step()

    def learning_rate(self) -> float:
        """Return the learning rate that the recipe has for the next step."""
        return scheduled_rate(self.training, self.epoch, self.steps, self.batch_count)

    def training_steps(self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int) -> Iterator[OptimizerStep]:
        """Yield the optimizer step of each optimized submodule; apply it before you request the
        next.

        Each step is computed in an autocast context of its own, because autocast caches the weights
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
        """Return the validation loss, computed with the averaged weights.

        It is the mean loss of the validation images, plus the model's `validation_penalty`, the part
        of the objective that belongs to no image, if the family has such a method.
        """
        penalty = getattr(self.averaged_model, "validation_penalty", None)
        total = penalty(self.recipe.seed + 1) * self.training.validation if penalty else 0.0
        indices = torch.arange(self.count, self.rows_per_epoch, device=self.device)
        for index in batches(indices, 500, min(self.min_batch, len(indices))):
            rows = RowStreams.of_rows(self.recipe.seed + 1, index)
            images = self.held_back[index - self.count]
            losses = self._loss(images, rows, self.training.epochs, self.averaged_model.loss)
            total += float(losses.double().sum())
            self.touch_progress()
        return total / self.training.validation

    def _loss(
        self, images: UInt8[Tensor, "B C H W"], rows: RowStreams, epoch: int, loss: Callable[..., Tensor]
    ) -> Float[Tensor, "B"]:
        """Preprocess images and return their losses (B,), with the recipe's precision."""
        x = self._preprocess(images, rows)
        with self._autocast():
            return loss(x, rows, epoch)

    def _preprocess(self, images: UInt8[Tensor, "B C H W"], rows: RowStreams) -> Float[Tensor, "B C H W"]:
        """Return images in 0 … 1, binarized by draws if the recipe's binarization is "dynamic"."""
        return data.binarize(images, rows) if self.training.binarization == "dynamic" else data.grey(images)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.training.precision == "bfloat16")

    def touch_progress(self) -> None:
        """Do nothing; a subclass reports progress here, during work without optimizer steps."""
