"""`models.kit.resize`: the filter, its adjoint, its norm, and the projection onto U(y) = x."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.kit import resize


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return uniform numbers."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_matrices_are_the_antialiased_bicubic_filter(scale: int) -> None:
    """The matrices equal torch's interpolation, and `adjoint` is the adjoint."""
    u = resize.bicubic(9, 12, scale)
    y, x = drawn(2, 3, 9 * scale, 12 * scale), drawn(2, 3, 9, 12, seed=2)
    expected = functional.interpolate(y, scale_factor=1 / scale, mode="bicubic", antialias=True)
    torch.testing.assert_close(u(y), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close((u(y) * x).sum(), (y * u.adjoint(x)).sum(), rtol=1e-4, atol=1e-4)


def test_the_norm_agrees_with_the_power_method() -> None:
    """Power iteration finds the same ‖U‖²."""
    u = resize.bicubic(8, 8, 4)
    y = drawn(1, 1, 32, 32)
    for _ in range(200):
        y = u.adjoint(u(y))
        y = y / y.norm()
    assert float(u(y).square().sum()) == pytest.approx(u.norm_squared(), rel=1e-2)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_projection_is_consistent_and_moves_no_further_than_it_must(scale: int) -> None:
    """U of the projected image is x, and the change is orthogonal to the null space of U."""
    high, low, other = (
        drawn(1, 3, 10 * scale, 8 * scale),
        drawn(1, 3, 10, 8, seed=2),
        drawn(1, 3, 10 * scale, 8 * scale),
    )
    u, project = resize.bicubic(10, 8, scale), resize.projection(10, 8, scale)
    found = project(high, low)
    torch.testing.assert_close(u(found), low, atol=1e-4, rtol=0)
    torch.testing.assert_close(project(found, low), found, atol=1e-4, rtol=0)
    unseen = other - project.rows @ u(other) @ project.columns.T
    assert float(u(unseen).abs().max()) < 1e-5
    assert abs(float(((found - high) * unseen).sum())) < 1e-2


def test_projection_has_no_denormal_numbers() -> None:
    """The entries of its matrices are zero where they are negligible: products with denormal
    numbers are slow on many processors.
    """
    made = resize.projection(256, 200, 4)
    for matrix in (made.rows, made.columns):
        sizes = matrix[matrix != 0].abs()
        assert float(sizes.min()) > 1e-20
        assert len(sizes) < matrix.numel() / 2
