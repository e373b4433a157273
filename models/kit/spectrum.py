"""Compute the power spectra of textures, and a short filter that changes a texture's spectrum."""

import torch
from torch.nn import functional

from models.kit.shapes import Float, Tensor

MIN_SOURCE, MIN_TARGET = 0.1, 0.02  # lower limits of the spectra, relative to their means
MAX_GAIN = 2.5  # of an amplitude, before the power is restored


def power_spectrum(textures: Float[Tensor, "B H H"]) -> Float[Tensor, "H H"]:
    """Return the sum of the power spectra of square textures, each under a Hann window.

    The frequencies are in the order of `torch.fft.fftfreq`. The spectrum is averaged over the eight
    symmetries of the square.
    """
    size = textures.shape[-1]
    window = torch.hann_window(size, periodic=False, dtype=torch.float64, device=textures.device)
    spectrum = torch.fft.fft2(textures.double() * window[:, None] * window).abs().square().sum(0)
    mirrored = torch.roll(spectrum.flip(0), 1, 0)  # frequency −f at the index of f
    spectrum = spectrum + mirrored
    spectrum = spectrum + torch.roll(spectrum.flip(1), 1, 1)
    mean: Tensor = (spectrum + spectrum.T) / 8.0
    return mean


def matching_filter(
    source: Float[Tensor, "H H"], target: Float[Tensor, "H H"], radius: int, exponent: float = 0.5
) -> Float[Tensor, "taps taps"]:
    """Return a filter that changes the power spectrum of a texture from `source` to a power of
    `target`.

    It has (2·`radius` + 1)² taps. The spectrum of the filtered texture is about `target` to the
    power `exponent`: with ½ the geometric mean of a flat spectrum and `target`, with 0 flat. Its
    total power is that of `source`. Both spectra are first smoothed to the resolution of so few
    taps.
    """
    source, target = (_smooth(one / one.mean(), radius) for one in (source, target))
    gain = (target.clamp_min(MIN_TARGET) ** exponent / source.clamp_min(MIN_SOURCE)).sqrt().clamp_max(MAX_GAIN)
    size, around = 2 * radius + 1, torch.arange(-radius, radius + 1, device=source.device)
    window = torch.hann_window(size + 2, periodic=False, dtype=torch.float64, device=source.device)[1:-1]
    taps = torch.fft.ifft2(gain).real[around][:, around] * window[:, None] * window
    response = torch.fft.fft2(taps, s=source.shape).abs().square()
    scaled: Tensor = taps * (source.mean() / (source * response).mean()).sqrt()
    return scaled.float()


def _smooth(spectrum: Float[Tensor, "H H"], radius: int) -> Float[Tensor, "H H"]:
    """Smooth a power spectrum by a Gaussian window on its autocorrelation (Blackman and Tukey).

    `radius` is the standard deviation of the window in pixels.
    """
    lags = torch.fft.fftfreq(len(spectrum), 1.0 / len(spectrum), dtype=torch.float64, device=spectrum.device)
    window = torch.exp(-0.5 * (lags / radius).square())
    smoothed: Tensor = torch.fft.fft2(torch.fft.ifft2(spectrum) * window[:, None] * window).real
    return smoothed


def apply_filter(images: Float[Tensor, "B C H W"], taps: Float[Tensor, "t t"]) -> Float[Tensor, "B C H W"]:
    """Convolve each channel of images with a symmetric filter; the images are padded by zeros."""
    kernel, padding = taps[None, None], len(taps) // 2
    # one call for each channel: a small batch may interrupt between two calls
    channels = [functional.conv2d(one, kernel, padding=padding) for one in images.flatten(0, 1)[:, None].split(1)]
    return torch.cat(channels).view_as(images)
