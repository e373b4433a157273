"""`models.kit.scattering`: agreement with kymatio, and the properties that
the theory guarantees.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from models.kit.scattering import Scattering

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return smoothed noise in 0 … 1, with structure at every scale."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2)
    return 0.5 * noise + 0.5 * (smooth - smooth.amin()) / (smooth.amax() - smooth.amin())


@pytest.mark.parametrize(("scales", "angles", "height", "width"), [(2, 8, 32, 48), (3, 8, 64, 64), (2, 4, 32, 32)])
def test_it_agrees_with_kymatio(scales: int, angles: int, height: int, width: int) -> None:
    """All orders of coefficients agree with kymatio's to 1e-4, channel by channel."""
    images = drawn(2, 3, height, width)
    expected = ScatteringTorch2D(scales, (height, width), angles)(images)
    found = Scattering(scales, angles)(images).detach()
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4


def test_zeros_scatter_to_zeros() -> None:
    """The scattering of zeros is zero; a constant gives itself in order 0 and zero above."""
    transform = Scattering(2, 8).requires_grad_(requires_grad=False)
    assert float(transform(torch.zeros(1, 1, 32, 32)).abs().max()) == 0
    constant = transform(torch.full((1, 1, 32, 32), 0.7))
    torch.testing.assert_close(constant[:, :, :1], torch.full_like(constant[:, :, :1], 0.7), atol=1e-5, rtol=0)
    assert float(constant[:, :, 1:].abs().max()) < 1e-5


@pytest.mark.parametrize("seed", [1, 2])
def test_energy_does_not_grow_with_order(seed: int) -> None:
    """Each order has less energy than the one before, and all together no more than the image."""
    transform = Scattering(3, 8).requires_grad_(requires_grad=False)
    images = drawn(1, 1, 64, 64, seed=seed)
    found = transform(images) * 2.0**transform.scales  # subsampled
    energies = [float(found[:, :, order].square().sum()) for order in transform.orders()]
    assert energies[0] > energies[1] > energies[2] > 0
    assert sum(energies) <= float(images.square().sum()) * 1.05


@pytest.mark.parametrize("scales", [2, 3])
def test_a_small_shift_moves_it_little(scales: int) -> None:
    """Shifting an image by a quarter of 2^J changes the scattering by less than a tenth of its
    norm.
    """
    transform = Scattering(scales, 8).requires_grad_(requires_grad=False)
    images = drawn(1, 1, 64, 80)
    shift = 2**scales // 4
    here, there = transform(images[..., :64]), transform(images[..., shift : 64 + shift])
    assert float((here - there).norm()) < 0.1 * float(here.norm())


def test_its_gradient_is_that_of_differences() -> None:
    """Gradients by the image and by the wavelets agree with finite differences in float64."""
    transform = Scattering(2, 4).double()
    images = drawn(1, 1, 8, 8).double().requires_grad_()
    weight = torch.randn(1, 1, transform.channels, 2, 2, generator=torch.Generator().manual_seed(3)).double()

    def total() -> torch.Tensor:
        value: torch.Tensor = (transform(images) * weight).sum()
        return value

    total().backward()
    kernel = transform.wavelets[0]
    for tensor, index in ((images, (0, 0, 3, 4)), (kernel, (1, 4, 3, 0))):
        step = torch.zeros_like(tensor)
        step[index] = 1e-6
        with torch.no_grad():
            tensor.add_(step)
            above = total()
            tensor.sub_(step, alpha=2)
            below = total()
            tensor.add_(step)
        assert tensor.grad is not None
        assert float((above - below) / 2e-6) == pytest.approx(float(tensor.grad[index]), rel=1e-5)


def test_trained_filters_cannot_shrink() -> None:
    """Scaled and offset wavelets are used with their initial norm and zero mean."""
    transform = Scattering(2, 8)
    before = transform.filters(1).detach()
    with torch.no_grad():
        transform.wavelets[1].mul_(0.01).add_(0.3)
    torch.testing.assert_close(transform.filters(1), before, atol=1e-5, rtol=1e-3)


def test_sides_must_be_multiples() -> None:
    """An image whose sides are not multiples of 2^J is rejected."""
    with pytest.raises(ValueError, match="multiples of 4, not 30 × 32"):
        Scattering(2, 8)(torch.zeros(1, 1, 30, 32))
