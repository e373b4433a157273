"""Power spectra of textures, and the short filter that gives a texture another spectrum."""

from __future__ import annotations

import torch
from torch.nn import functional

from models.kit.shapes import Float, Tensor

LEAST_ADDED, LEAST_WANTED = 0.1, 0.02  # of their means: below, a spectrum is not divided by, or not asked for
MOST = 2.5  # by which an amplitude may grow, before the energy is put back


def power_spectrum(textures: Float[Tensor, "B H H"]) -> Float[Tensor, "H H"]:
    """The sum of the squared moduli of the Fourier transforms of square pieces under Hann's window.

    Its frequencies are those of `torch.fft.fftfreq`; it is the mean over the eight symmetries of the square.
    """
    size = textures.shape[-1]
    window = torch.hann_window(size, periodic=False, dtype=torch.float64, device=textures.device)
    found = torch.fft.fft2(textures.double() * window[:, None] * window).abs().square().sum(0)
    mirrored = torch.roll(found.flip(0), 1, 0)  # −f in the place of f
    found = found + mirrored
    found = found + torch.roll(found.flip(1), 1, 1)
    total: Tensor = (found + found.T) / 8.0
    return total


def matching_filter(
    added: Float[Tensor, "H H"], wanted: Float[Tensor, "H H"], radius: int
) -> Float[Tensor, "taps taps"]:
    """The filter, 2 `radius` + 1 taps a side, that takes a texture of power `added` toward that of `wanted`.

    Its aim is the geometric mean of a flat spectrum and `wanted`, of which only the shape counts. It keeps the energy.
    Both are smoothed first to what so few taps can tell apart.
    """
    added, wanted = (_smoothed(one / one.mean(), radius) for one in (added, wanted))
    gain = (wanted.clamp_min(LEAST_WANTED).sqrt() / added.clamp_min(LEAST_ADDED)).sqrt().clamp_max(MOST)
    size, around = 2 * radius + 1, torch.arange(-radius, radius + 1, device=added.device)
    window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64, device=added.device)[1:-1]
    taps = torch.fft.ifft2(gain).real[around][:, around] * window[:, None] * window
    response = torch.fft.fft2(taps, s=added.shape).abs().square()
    scaled: Tensor = taps * (added.mean() / (added * response).mean()).sqrt()
    return scaled.float()


def _smoothed(spectrum: Float[Tensor, "H H"], radius: int) -> Float[Tensor, "H H"]:
    """The spectrum of the autocorrelation under Gauss's window of that deviation (Blackman and Tukey's estimate)."""
    lags = torch.fft.fftfreq(len(spectrum), 1.0 / len(spectrum), dtype=torch.float64, device=spectrum.device)
    window = torch.exp(-0.5 * (lags / radius).square())
    smoothed: Tensor = torch.fft.fft2(torch.fft.ifft2(spectrum) * window[:, None] * window).real
    return smoothed


def apply_filter(pictures: Float[Tensor, "B C H W"], taps: Float[Tensor, "t t"]) -> Float[Tensor, "B C H W"]:
    """Each channel through a filter whose taps are the same mirrored; zeros around the picture."""
    alone = pictures.flatten(0, 1)[:, None]
    return functional.conv2d(alone, taps[None, None], padding=len(taps) // 2).view_as(pictures)
