"""One optimizer step of one submodule, for families that train several submodules against each other."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.kit.shapes import Float, Tensor


@dataclass(frozen=True)
class OptimizerStep:
    """Losses of one submodule, ready for the training loop to back-propagate.

    `module` names the submodule whose weights the step changes. Its optimizer minimises the mean of `losses`, one
    number per image. `metrics` are further per-image values; the training loop writes their means to the metrics.
    """

    module: str
    losses: Float[Tensor, "B"]
    metrics: Mapping[str, Float[Tensor, "B"]] = field(default_factory=dict)
