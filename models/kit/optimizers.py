"""Build the optimizers of a training, and compute the learning rate of each step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from models.kit.recipe import Training
from models.kit.shapes import Float, Tensor

# Name of the only optimized module of a family that has no `OPTIMIZED_MODULES`: the model itself.
WHOLE_MODEL = ""


@dataclass(frozen=True)
class OptimizerStep:
    """One optimizer step of one submodule, which the training loop applies.

    The loop back-propagates the mean of `losses` (B,) and updates the weights of the submodule
    `module`. The mean of each tensor (B,) in `metrics` is written to the run's metrics.
    """

    module: str
    losses: Float[Tensor, "B"]
    metrics: Mapping[str, Float[Tensor, "B"]] = field(default_factory=dict)


def optimized_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the parameters of each submodule that has an optimizer of its own.

    They are keyed by the submodule's name, which is in the model's class constant
    `OPTIMIZED_MODULES`. Without that constant the result has one entry, `WHOLE_MODEL`, with all
    parameters.
    """
    names: tuple[str, ...] = getattr(model, "OPTIMIZED_MODULES", ())
    if not names:
        return {WHOLE_MODEL: list(model.parameters())}
    return {name: list(model.get_submodule(name).parameters()) for name in names}


def build_optimizers(
    parameters: Mapping[str, list[nn.Parameter]], training: Training, count: int
) -> dict[str, torch.optim.Optimizer]:
    """Return an optimizer for each entry of `parameters`, keyed by the name of its submodule.

    `count` is the number of training images. Raises ValueError if the recipe has optimizers or
    learning rates for another number of submodules.
    """
    kinds = training.player_optimisers or (training.optimiser,) * len(parameters)
    rates = training.player_rates or (training.learning_rate,) * len(parameters)
    if not len(kinds) == len(rates) == len(parameters):
        modules = ", ".join(filter(None, parameters)) or "the model"
        raise ValueError(f"player_optimisers and player_rates: one for each of {modules}")
    optimizers = {}
    for (module, weights), kind, rate in zip(parameters.items(), kinds, rates, strict=True):
        optimizers[module] = _build_optimizer(weights, kind, rate, training, count)
        for group in optimizers[module].param_groups:
            group["initial_lr"] = rate
    return optimizers


def _build_optimizer(
    parameters: list[nn.Parameter], kind: str, rate: float, training: Training, count: int
) -> torch.optim.Optimizer:
    """Return an optimizer of `parameters` by its name `kind`: "adam", "adagrad" or "sgd".

    `rate` is the learning rate and `count` the number of training images. If the recipe has a N(0,
    1) prior of the weights (`weight_prior`), the weight decay is 1/`count`, otherwise 0.
    """
    decay = 1.0 / count if training.weight_prior else 0.0
    if kind == "sgd":
        return torch.optim.SGD(parameters, rate, weight_decay=decay, fused=True)
    if kind == "adagrad":
        fused = all(parameter.device.type == "cpu" for parameter in parameters)  # torch has none for CUDA
        return torch.optim.Adagrad(parameters, rate, weight_decay=decay, eps=training.epsilon, fused=fused)
    betas = (training.beta1, training.beta2)
    return torch.optim.Adam(parameters, rate, betas, training.epsilon, decay, fused=True)


def scheduled_rate(training: Training, epoch: int, steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of the next step of a training that has done `steps` steps.

    `epoch`, counted from 0, is the epoch of that step. The rate rises linearly during the recipe's
    warm-up and then follows its `decay`.
    """
    warmup = min(1.0, (steps + 1) / max(1, training.warmup_steps))
    if training.decay == "drop" and epoch >= training.drop_from:
        return training.drop_to * warmup
    if training.decay in {"constant", "drop"}:
        return training.learning_rate * warmup
    total = training.epochs * steps_per_epoch
    if training.decay == "linear":
        falling = max(1, total - training.drop_from * steps_per_epoch)
        return training.learning_rate * warmup * min(1.0, max(0, total - steps) / falling)
    return training.learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * min(1.0, steps / total)))


def epochs_at_constant_rate(training: Training) -> float:
    """Return the number of epochs in which the learning rate, after a warm-up, is the initial one.

    It is infinite for the decay "constant", 0 for "cosine", and otherwise `training.drop_from`; the
    training's number of epochs has no effect.
    """
    return {"constant": math.inf, "cosine": 0}.get(training.decay, training.drop_from)
