"""Minimise the energy of each image by gradient descent with a line search (Bruna et al., §3).

The variable, named `detail` here, is a residual image (B, 1, H, W) that is added to all colours of
the regression's estimate. The step sizes are those of Barzilai and Borwein (IMA J. Numer. Anal. 8,
1988), accepted by Armijo's condition.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.kit.shapes import Float, PerImage, Tensor
from models.superres.regression import LEVELS

EnergyFunction = Callable[[Tensor], Tensor]  # detail (B, 1, H, W) → energy (B,)

INITIAL_CHANGE = 0.5 / LEVELS  # root mean square of the first step's change
SUFFICIENT_DECREASE = 1e-4  # Armijo's constant


@dataclass(frozen=True)
class Descent:
    """The state of a gradient descent of the energy of each image.

    `detail` is the present residual image, `energy` its energy and `slope` the gradient of the
    energy; `first` is the energy at the start of the descent, and `step` the next step size.
    """

    detail: Float[Tensor, "B 1 H W"]
    slope: Float[Tensor, "B 1 H W"]
    energy: PerImage
    first: PerImage  # the energy at the start
    step: PerImage


def start_descent(energy_of: EnergyFunction, detail: Float[Tensor, "B 1 H W"]) -> Descent:
    """Return the state of a gradient descent before its first step, at the residual image `detail`.

    `energy_of` returns the energies (B,) of residual images. The step size is such that the first
    step changes an image by half a grey level (root mean square).
    """
    value, gradient = value_and_gradient(energy_of, detail)
    size = gradient.square().mean((1, 2, 3)).sqrt().clamp_min(1e-20)
    return Descent(detail, gradient, value, value, INITIAL_CHANGE / size)


# See docs/decisions.md#wavelets-are-tuned-against-two-step-descents
def descend(descent: Descent, energy_of: EnergyFunction, steps: int) -> Descent:
    """Take `steps` gradient steps for each image; return the new state.

    `energy_of` returns the energies (B,) of residual images. A step that does not lower the energy
    enough (Armijo's condition) leaves the image unchanged. The next step size is Barzilai and
    Borwein's after an accepted step, and a third of the rejected step size after a rejected step.
    """
    for _ in range(steps):
        trial = descent.detail - descent.step[:, None, None, None] * descent.slope
        value, gradient = value_and_gradient(energy_of, trial)
        decrease = SUFFICIENT_DECREASE * descent.step * descent.slope.square().sum((1, 2, 3))
        accepted = value <= descent.energy - decrease
        change, gradient_change = trial - descent.detail, gradient - descent.slope
        curvature = (change * gradient_change).sum((1, 2, 3))
        barzilai_borwein = change.square().sum((1, 2, 3)) / curvature.clamp_min(1e-30)
        longer = torch.where(curvature > 0, barzilai_borwein, 2.0 * descent.step).clamp_max(10.0 * descent.step)
        accepted_pixels = accepted[:, None, None, None]
        descent = Descent(
            torch.where(accepted_pixels, trial, descent.detail),
            torch.where(accepted_pixels, gradient, descent.slope),
            torch.where(accepted, value, descent.energy),
            descent.first,
            torch.where(accepted, longer, descent.step / 3.0),
        )
    return descent


def value_and_gradient(
    energy_of: EnergyFunction, detail: Float[Tensor, "B 1 H W"]
) -> tuple[PerImage, Float[Tensor, "B 1 H W"]]:
    """Return the energy of each residual image in `detail`, and its gradient.

    `energy_of` returns the energies (B,). Works inside `torch.no_grad` and inference mode, too.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = detail.clone().requires_grad_()
        value = energy_of(leaf)
        (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient
