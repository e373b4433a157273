r"""Invert a separable downsampling, regularised by total variation.

The result is argmin over 0 ≤ y ≤ 1 of ½‖U(y) − x‖² + λ‖∇y‖₁.

U(y) = A y Bᵀ is the downsampling and x the given image; ∇ are differences of neighbouring pixels;
‖·‖₁ is anisotropic, the sum of their absolute values. The solver is Algorithm 3.1 of Condat (J.
Optim. Theory Appl. 158, 2013), a primal–dual method: a gradient step of the data term, a projection
onto 0 … 1, and a projection of the dual variable onto |p| ≤ λ. It converges for τ(‖U‖²/2 + 8σ) ≤ 1.
Each image of a batch is solved independently and stops when its own change is small.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional

from models.kit.resize import Downsampling
from models.kit.shapes import Bool, Float, Images, Tensor


def gradient(y: Images) -> Float[Tensor, "B 2 C H W"]:
    """Return ∇y: for each pixel, the pixel below minus it, and the pixel to the right minus it.

    At the last line, or column, the difference is 0.
    """
    below = functional.pad(y[:, :, 1:] - y[:, :, :-1], (0, 0, 0, 1))
    right = functional.pad(y[..., 1:] - y[..., :-1], (0, 1))
    return torch.stack((below, right), 1)


def divergence(p: Float[Tensor, "B 2 C H W"]) -> Images:
    """Return −∇ᵀp, where ∇y are the differences of each pixel to the one below and to the right.

    The last line and column of p, where ∇y is 0 for every y, have no effect.
    """
    below, right = p[:, 0, :, :-1], p[:, 1, :, :, :-1]
    return (
        functional.pad(below, (0, 0, 0, 1))
        - functional.pad(below, (0, 0, 1, 0))
        + functional.pad(right, (0, 1))
        - functional.pad(right, (1, 0))
    )


@dataclass(frozen=True)
class Solution:
    """The state of the solver: images y, the dual variable p, and which images have converged."""

    y: Images
    p: Float[Tensor, "B 2 C H W"]
    converged: Bool[Tensor, "B"]


def initial_solution(y: Images) -> Solution:
    """Return the solver's state before the first iteration, at the images `y`, clipped to 0 … 1."""
    return Solution(y.clamp(0.0, 1.0), torch.zeros_like(y[:, None].repeat(1, 2, 1, 1, 1)), y.new_zeros(len(y)).bool())


def solve(
    start: Solution,
    low: Float[Tensor, "B C h w"],
    u: Downsampling,
    strength: float,
    iterations: int,
    tolerance: float = 1e-4,
    sigma: float = 0.003,
) -> Solution:
    """Run at most `iterations` iterations of the solver from `start`; return its new state.

    It minimises ½‖U(y) − x‖² + λ‖∇y‖₁ over 0 ≤ y ≤ 1, with x = `low`, U = `u` and λ = `strength`;
    `sigma` is the step size of the dual variable. An image has converged when the root mean square
    of its change is below `tolerance`; then it no longer changes.
    """
    tau = 1.0 / (0.5 * u.norm_squared() + 8.0 * sigma)
    y, p, converged = start.y, start.p, start.converged
    for _ in range(iterations):
        if bool(converged.all()):
            break
        moved = (y - tau * (u.adjoint(u(y) - low) - divergence(p))).clamp_(0.0, 1.0)
        dual = gradient(moved.mul(2.0).sub_(y)).mul_(sigma).add_(p).clamp_(-strength, strength)
        change = (moved - y).square().mean((1, 2, 3)).sqrt()
        still = converged[:, None, None, None]
        y, p = torch.where(still, y, moved), torch.where(still[:, None], p, dual)
        converged = converged | (change < tolerance)
    return Solution(y, p, converged)
