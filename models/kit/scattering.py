r"""Compute the scattering transform of images: wavelets, modulus and low-pass, twice.

    paper             here          shape             source
    ψ_{j,θ}           wavelets[j]   L K K complex     Bruna, Mallat, arXiv:1203.1513v2, §2.1
    φ_J               lowpass       K K               §2.1
    S_0 = x ⋆ φ       order 0       1 per image       §2.2
    S_1 = |x ⋆ ψ| ⋆ φ order 1       J·L               §2.2
    S_2 = ||x ⋆ ψ| ⋆ ψ'| ⋆ φ        L²·J(J − 1)/2     §2.2, j' > j alone

J scales 2^j, L angles θ, kernels of K × K pixels. Wavelets are Morlet's with σ = 0.8·2^j, ξ =
¾π/2^j and slant 4/L; φ is a Gaussian with σ = 0.8·2^(J−1); every output is taken at each 2^J-th
pixel. Conventions (padding by reflection, order of the channels, subsampling by 2^j after ψ_j) are
kymatio's, so that outputs agree. Filters are stored as spatial kernels and can be trained; their
means stay zero and their norms stay constant, so that the transform cannot shrink to zero.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from models.kit.shapes import Complex128, Float, Tensor

REACH = 5.0  # radius of a kernel, in standard deviations of its Gaussian


def gabor(reach: int, sigma: float, theta: float, xi: float, slant: float = 1.0) -> Complex128[Tensor, "K K"]:
    """Return a Gabor kernel exp(−½|u|²/σ² + i ξ·u) / (2πσ²/slant) for u in −reach … reach.

    It is complex128. `xi` is the frequency |ξ| along the direction `theta`; across that direction
    the kernel is stretched by 1/slant.
    """
    grid = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    along = y * math.cos(theta) + x * math.sin(theta)
    across = (x * math.cos(theta) - y * math.sin(theta)) * slant
    envelope = torch.exp(-(along.square() + across.square()) / (2.0 * sigma**2))
    return torch.polar(envelope, xi * along) * (slant / (2.0 * math.pi * sigma**2))


def morlet(reach: int, sigma: float, theta: float, xi: float, slant: float) -> Complex128[Tensor, "K K"]:
    """Return the Morlet wavelet ψ(u) = g(u)·(exp(i ξ·u) − β), complex128, for u in −reach … reach.

    g is a Gaussian of standard deviation `sigma` along the direction `theta`, and stretched by
    1/slant across it. `xi` is the frequency |ξ| along `theta`. β makes the sum of the kernel zero.
    """
    wave, envelope = gabor(reach, sigma, theta, xi, slant), gabor(reach, sigma, theta, 0.0, slant)
    return wave - envelope * (wave.sum() / envelope.sum())


class Scattering(nn.Module):
    """The scattering transform of the orders 0, 1 and 2, with J scales and L angles.

    It maps images (B, C, H, W) to (B, C, 1 + J·L + L²·J(J − 1)/2, H/2^J, W/2^J).
    """

    lowpass: Tensor
    norms: Tensor

    def __init__(self, scales: int = 2, angles: int = 8) -> None:
        """Create the wavelets (J = `scales`, L = `angles`) and the low-pass filter."""
        super().__init__()
        self.scales, self.angles = scales, angles
        slant = 4.0 / angles
        wavelets, norms = [], []
        for j in range(scales):
            sigma = 0.8 * 2**j
            reach = math.ceil(REACH * sigma / min(1.0, slant))
            thetas = [((angles - angles // 2 - 1) - number) * math.pi / angles for number in range(angles)]
            kernels = torch.stack([morlet(reach, sigma, theta, 0.75 * math.pi / 2**j, slant) for theta in thetas])
            wavelets.append(torch.view_as_real(kernels).float())
            norms.append(wavelets[-1].square().sum((1, 2, 3)).sqrt())
        self.wavelets = nn.ParameterList(wavelets)
        self.register_buffer("norms", torch.stack(norms), persistent=False)
        sigma = 0.8 * 2 ** (scales - 1)
        self.register_buffer("lowpass", gabor(math.ceil(REACH * sigma), sigma, 0.0, 0.0).real.float(), persistent=False)

    @property
    def channels(self) -> int:
        """The number of outputs of all orders for each image channel."""
        return 1 + self.scales * self.angles + self.angles**2 * self.scales * (self.scales - 1) // 2

    def orders(self) -> tuple[slice, slice, slice]:
        """Return the slices of the output channels that have the orders 0, 1 and 2."""
        first = 1 + self.scales * self.angles
        return slice(0, 1), slice(1, first), slice(first, self.channels)

    def filters(self, j: int) -> Float[Tensor, "L K K 2"]:
        """Return the wavelets of scale j with means of zero and the norms they had at first.

        So a training of the kernels changes neither means nor norms. The last axis has the real and
        the imaginary part.
        """
        kernel: Tensor = self.wavelets[j]
        kernel = kernel - kernel.mean((1, 2), keepdim=True)
        norm = kernel.square().sum((1, 2, 3)).sqrt()
        return kernel * (self.norms[j] / norm)[:, None, None, None]

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C K _h _w"]:
        """Return the scattering of images, with K = `channels` outputs for each image channel.

        Raises ValueError if a side of the images is shorter than 2^J or not a multiple of it.
        """
        step = 2**self.scales
        batch, channels, height, width = images.shape
        if min(height, width) < step or height % step or width % step:
            raise ValueError(f"scattering needs sides that are multiples of {step}, not {height} × {width}")
        padded = functional.pad(
            images.reshape(-1, 1, height, width), (step,) * 4, "reflect" if min(height, width) > step else "replicate"
        )
        size = padded.shape[2:]
        spectra = [_spectrum(torch.view_as_complex(self.filters(j).contiguous()), *size) for j in range(self.scales)]
        low = _spectrum(self.lowpass[None].to(torch.complex64), *size)
        zeroth = torch.fft.fft2(padded)
        firsts, seconds = [], []
        for j in range(self.scales):
            first = torch.fft.fft2(_modulus(zeroth * spectra[j], 2**j))
            firsts.append(self._smooth(first, low, j))
            within = [
                _modulus((first[:, :, None] * _crop(spectra[k], j)).flatten(1, 2), 2 ** (k - j))
                for k in range(j + 1, self.scales)
            ]
            smooth = [self._smooth(torch.fft.fft2(one), low, k) for k, one in enumerate(within, j + 1)]
            smooth = [one.reshape(len(one), self.angles, self.angles, *one.shape[2:]) for one in smooth]
            seconds += [torch.cat(smooth, 2).flatten(1, 2)] if smooth else []
        orders = torch.cat([self._smooth(zeroth, low, 0), *firsts, *seconds], 1)
        return orders.view(batch, channels, *orders.shape[1:])

    def _smooth(self, spectrum: Tensor, low: Tensor, j: int) -> Tensor:
        """Return x ⋆ φ at every 2^J-th pixel, without the padding of the images.

        `spectrum` is the spectrum of x, which is given at every 2^j-th pixel; `low` is the spectrum
        of φ.
        """
        smooth: Tensor = torch.fft.ifft2(_fold(spectrum * _crop(low, j), 2 ** (self.scales - j))).real
        return smooth[:, :, 1:-1, 1:-1]


def _spectrum(kernels: Tensor, height: int, width: int) -> Tensor:
    """Return the Fourier transforms (L, height, width) of L kernels (L, K, K).

    Each kernel is centred at pixel (0, 0) of a periodic image of `height` × `width`.
    """
    reach = kernels.shape[1] // 2
    offsets = torch.arange(-reach, reach + 1, device=kernels.device)
    number = torch.arange(len(kernels), device=kernels.device)[:, None, None]
    canvas = kernels.new_zeros((len(kernels), height, width))
    canvas = canvas.index_put((number, (offsets % height)[:, None], offsets % width), kernels, accumulate=True)
    spectrum: Tensor = torch.fft.fft2(canvas)
    return spectrum


def _crop(spectrum: Tensor, j: int) -> Tensor:
    """Return the low frequencies of a filter's spectrum, a fraction 1/2^j of them along each axis.

    That is the spectrum of the filter, limited to these frequencies, at every 2^j-th pixel.
    """
    for axis in (-2, -1) if j else ():
        size = spectrum.shape[axis]
        half = size // 2 ** (j + 1)
        spectrum = torch.cat((spectrum.narrow(axis, 0, half), spectrum.narrow(axis, size - half, half)), axis)
    return spectrum


def _fold(spectrum: Tensor, step: int) -> Tensor:
    """Return the spectrum of an image at every `step`-th pixel, given that of all its pixels."""
    if step == 1:
        return spectrum
    *lead, height, width = spectrum.shape
    return spectrum.reshape(*lead, step, height // step, step, width // step).mean((-4, -2))


def _modulus(spectrum: Tensor, step: int) -> Tensor:
    """Return the modulus of a complex image at every `step`-th pixel, given its spectrum."""
    modulus: Tensor = torch.fft.ifft2(_fold(spectrum, step)).abs()
    return modulus
