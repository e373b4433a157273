"""`models.kit.total_variation`: operators, a closed form, the duality gap,
independence of images.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from models.kit import total_variation as tv
from models.kit.resize import Downsampling, bicubic


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return uniform numbers."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def objective(y: torch.Tensor, low: torch.Tensor, u: Downsampling, strength: float) -> torch.Tensor:
    """Return ½‖U(y) − x‖² + λ‖∇y‖₁ of each image."""
    data = 0.5 * (u(y) - low).square().sum((1, 2, 3))
    return data + strength * tv.gradient(y).abs().sum((1, 2, 3, 4))


def duality_gap(solution: tv.Solution, low: torch.Tensor, u: Downsampling, strength: float) -> torch.Tensor:
    """Return the duality gap: an upper bound of the objective's excess over its minimum.

    It is the objective minus the dual objective at p and q = U(y) − x.

    The dual objective is −½‖q‖² − ⟨q, x⟩ − Σ max(0, −(Uᵀq + ∇ᵀp)); the last term is that of the box
    0 … 1.
    """
    q = u(solution.y) - low
    slope = u.adjoint(q) - tv.divergence(solution.p)
    dual = -0.5 * q.square().sum((1, 2, 3)) - (q * low).sum((1, 2, 3)) - (-slope).clamp_min(0.0).sum((1, 2, 3))
    return objective(solution.y, low, u, strength) - dual


def test_divergence_is_minus_the_adjoint_of_the_gradient() -> None:
    """⟨∇y, p⟩ = −⟨y, div p⟩ for random y and p."""
    y, p = drawn(1, 1, 5, 7), drawn(1, 2, 1, 5, 7, seed=2)
    torch.testing.assert_close((tv.gradient(y) * p).sum(), -(y * tv.divergence(p)).sum())


def test_two_pixels_approach_by_lambda() -> None:
    """With U = 1 and two pixels a < b the minimum is a + λ, b − λ, and their mean where λ is
    larger than (b − a)/2.
    """
    u = Downsampling(torch.eye(1), torch.eye(2))
    low = torch.tensor([[[[0.2, 0.8]]], [[[0.2, 0.3]]]])
    found = tv.solve(tv.initial_solution(low), low, u, 0.1, 300, 0.0, 0.5)
    torch.testing.assert_close(found.y, torch.tensor([[[[0.3, 0.7]]], [[[0.25, 0.25]]]]), atol=1e-4, rtol=0)


def test_the_gap_bounds_what_is_left_to_gain() -> None:
    """The duality gap is never negative, shrinks toward 0, and bounds the further
    decrease of the objective.
    """
    u, low, strength = bicubic(6, 6, 2), drawn(1, 1, 6, 6), 0.01
    early = tv.solve(tv.initial_solution(u.adjoint(low) * 4), low, u, strength, 50, 0.0, 0.05)
    late = tv.solve(early, low, u, strength, 1000, 0.0, 0.05)
    best = float(objective(late.y, low, u, strength))
    gaps = [float(duality_gap(one, low, u, strength)) for one in (early, late)]
    assert gaps[0] > gaps[1] >= -1e-5
    assert gaps[1] < 0.01 * best
    assert float(objective(early.y, low, u, strength)) - best <= gaps[0] + 1e-6


def test_images_converge_independently() -> None:
    """A flat image converges at once, its neighbour continues as it would alone,
    and split runs add up.
    """
    u = bicubic(8, 8, 2)
    low = torch.stack([torch.full((1, 8, 8), 0.5), drawn(1, 8, 8)])
    start = functional.interpolate(low, scale_factor=2, mode="bicubic")
    together = tv.solve(tv.initial_solution(start), low, u, 1e-3, 20)
    assert together.converged.tolist() == [True, False]
    alone = tv.solve(tv.initial_solution(start[1:]), low[1:], u, 1e-3, 20)
    torch.testing.assert_close(together.y[1:], alone.y, atol=1e-6, rtol=0)
    sliced = tv.solve(tv.solve(tv.initial_solution(start[1:]), low[1:], u, 1e-3, 8), low[1:], u, 1e-3, 12)
    assert torch.equal(sliced.y, alone.y)
    assert bool(tv.solve(alone, low[1:], u, 1e-3, 5000).converged.all())
