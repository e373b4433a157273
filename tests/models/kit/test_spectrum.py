"""`models.kit.spectrum`: power spectra in closed form, and the filter's effect on a lattice."""

from __future__ import annotations

import math

import pytest
import torch

from models.kit import spectrum
from models.kit.row_streams import RowStreams


def textures(count: int = 32, size: int = 64, lattice: float = 0.0) -> torch.Tensor:
    """Return white noise of variance 1, and waves at (0.33, 0.48) cycles per pixel
    with all symmetries.
    """
    noise = RowStreams.range(1, 0, count).normals(size * size, 0, 1).view(count, size, size)
    at = torch.arange(size)
    wave = [torch.cos(2 * math.pi * frequency * at) for frequency in (0.33, 0.48)]
    return noise + lattice * (wave[0][:, None] * wave[1] + wave[1][:, None] * wave[0])


def test_power_is_flat_for_noise_and_symmetric() -> None:
    """White noise has a flat spectrum of the right level; any spectrum has the
    square's symmetries.
    """
    found = spectrum.power_spectrum(textures(400, 32))
    window = torch.hann_window(32, periodic=False, dtype=torch.float64)
    assert float(found.mean()) == pytest.approx(400 * float(window.square().sum()) ** 2, rel=0.02)
    assert float(found.std() / found.mean()) < 0.05
    slanted = spectrum.power_spectrum(
        torch.cos(2 * math.pi * (5 * torch.arange(32) + 9 * torch.arange(32)[:, None]) / 32)[None]
    )
    peak = slanted.max()
    for i, j in ((5, 9), (9, 5), (-5, 9), (9, -5), (-9, -5)):
        assert float(slanted[i, j]) == pytest.approx(float(peak))


def test_the_filter_takes_a_lattice_away_and_keeps_the_energy() -> None:
    """The filter attenuates a lattice relative to the noise and keeps the total power."""
    added, wanted = textures(lattice=1.0), textures()
    before = spectrum.power_spectrum(added)
    taps = spectrum.matching_filter(before, spectrum.power_spectrum(wanted), 6)
    assert torch.equal(taps, taps.T) or torch.allclose(taps, taps.T, atol=1e-6)
    torch.testing.assert_close(taps, taps.flip(0), atol=1e-6, rtol=0)
    inner = spectrum.apply_filter(added[:, None], taps)[:, 0]
    after = spectrum.power_spectrum(inner)
    at = (round(0.33 * 64), round(0.48 * 64))
    assert float(before[at] / before.mean()) > 30
    assert float(after[at] / after.mean()) < 0.6 * float(before[at] / before.mean())
    assert float(after.sum()) == pytest.approx(float(before.sum()), rel=0.1)


def test_the_filter_of_equal_flat_spectra_is_none() -> None:
    """For two flat spectra the filter is the identity."""
    flat = torch.ones(64, 64, dtype=torch.float64)
    taps = spectrum.matching_filter(flat, 3.0 * flat, 4)
    expected = torch.zeros(9, 9)
    expected[4, 4] = 1.0
    torch.testing.assert_close(taps, expected)
