"""Quality metrics of upscaled photographs, as in the literature; all images are 8-bit RGB arrays.

PSNR and SSIM are of the BT.601 luma in 16 … 235, without a border; SSIM has Gaussian weights (σ =
1.5, 11 × 11). `perceptual` is the distance of LPIPS without its learned heads (arXiv:1801.03924v2),
the mean over a network's stages; `energies` compare gradients and octaves of the power spectrum
with the original's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from skimage import metrics

from models.kit import features
from photos.vgg import distance

BORDER = 4
LUMA = (65.481 / 255.0, 128.553 / 255.0, 24.966 / 255.0)


def cropped(picture: np.ndarray, multiple: int) -> np.ndarray:
    """Return the upper left part of an image, with sides that are multiples of `multiple`."""
    height, width = (size - size % multiple for size in picture.shape[:2])
    return picture[:height, :width]


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize by Pillow's bicubic filter, antialiased for reduction."""
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))


def downscaled(picture: np.ndarray, scale: int) -> np.ndarray:
    """Return the image reduced by `scale`; its sides must be multiples of it."""
    return resized(picture, picture.shape[0] // scale, picture.shape[1] // scale)


def luma(picture: np.ndarray) -> np.ndarray:
    """Return BT.601's Y in 16 … 235, float64, not rounded."""
    return picture.astype(np.float64) @ np.array(LUMA) + 16.0


def decibel(first: np.ndarray, second: np.ndarray) -> float:
    """Return the PSNR of two arrays of 0 … 255; infinity if they are equal."""
    with np.errstate(divide="ignore"):
        return float(metrics.peak_signal_noise_ratio(second, first, data_range=255))


def psnr(picture: np.ndarray, original: np.ndarray, border: int = BORDER) -> float:
    """Return the PSNR of the luma, in dB."""
    return decibel(_inner(luma(picture), border), _inner(luma(original), border))


def ssim(picture: np.ndarray, original: np.ndarray, border: int = BORDER) -> float:
    """Return the structural similarity (SSIM) of the luma, by Wang et al. 2004.

    Only windows inside the image count.
    """
    x, y = (_inner(luma(one), border) for one in (picture, original))
    # the parameters of the paper: Gaussian weights of 11 × 11 pixels
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return float(metrics.structural_similarity(y, x, data_range=255, **options))


@torch.inference_mode()
def seen(network: features.Features, picture: np.ndarray) -> list[torch.Tensor]:
    """Return the output of each stage of a feature network for an image."""
    return network(torch.tensor(picture).permute(2, 0, 1)[None] / 255.0)


@torch.inference_mode()
def perceptual(network: features.Features, picture: np.ndarray, original: list[torch.Tensor]) -> float:
    """Return the mean distance to the original over the network's stages.

    Features have unit length.
    """
    return float(distance(seen(network, picture), original).mean())


def consistency(picture: np.ndarray, low: np.ndarray) -> float:
    """Return the PSNR (dB, all colours) of the downscaled image against its
    low-resolution source.
    """
    return decibel(resized(picture, *low.shape[:2]), low)


@dataclass(frozen=True)
class Energies:
    """Energies of an image, divided by those of the original: Σ‖∇y‖², and the power in each of the
    upper two octaves.
    """

    gradient: float
    octave_1: float  # frequencies from a quarter to a half cycle a pixel
    octave_2: float  # from an eighth to a quarter


def energies(picture: np.ndarray, original: np.ndarray) -> Energies:
    """Return the energies of the luma, divided by the original's: 1 is as sharp as the original."""
    mine, theirs = _energies(luma(picture)), _energies(luma(original))
    return Energies(*(a / b for a, b in zip(mine, theirs, strict=True)))


CELLS, FINE = 16, 4  # a cell is 1/16 cycle per pixel wide and is searched in steps of a quarter of that


def largest_cell(added: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Measure how much of a lattice a detail (H, W) is: low for texture, high for a lattice.

    Returns the largest share of its power in one square of frequencies, 1/16 cycle per pixel wide,
    together with the square of −f, which a real image also has; and the centre of the square
    (vertical, horizontal) in cycles per pixel. White noise has a share of 2/256. Zero for an empty
    detail.
    """
    window = np.outer(*(np.hanning(size) for size in added.shape))
    power = np.square(np.abs(np.fft.fft2((added - added.mean()) * window)))
    bins = CELLS * FINE
    line, column = (np.floor(np.fft.fftfreq(size) * bins).astype(int) % bins for size in added.shape)
    fine = np.zeros((bins, bins))
    np.add.at(fine, np.ix_(line, column), power)
    if not fine.sum():
        return 0.0, (0.0, 0.0)
    steps = range(FINE)
    single = sum(np.roll(fine, (-i, -j), (0, 1)) for i in steps for j in steps)
    twin = single[np.ix_((-np.arange(bins) - FINE) % bins, (-np.arange(bins) - FINE) % bins)]
    # around 0 and ½ the two squares overlap, so only one of them is counted
    apart = np.abs((2 * np.arange(bins) + FINE + bins // 2) % bins - bins // 2)
    overlap = (apart[:, None] < FINE) & (apart < FINE)
    share = np.where(overlap, single, single + twin) / fine.sum()
    found = np.unravel_index(int(share.argmax()), share.shape)
    middle = [((int(at) + FINE / 2) / bins + 0.5) % 1.0 - 0.5 for at in found]
    return float(share.max()), (middle[0], middle[1])


def _energies(y: np.ndarray) -> tuple[float, float, float]:
    gradient = sum(float(np.square(np.diff(y, axis=axis)).sum()) for axis in (0, 1))
    window = np.outer(*(np.hanning(size) for size in y.shape))
    power = np.square(np.abs(np.fft.fft2((y - y.mean()) * window)))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(size) for size in y.shape), indexing="ij"))
    octaves = [float(power[(radius >= low) & (radius < 2 * low)].sum()) for low in (0.25, 0.125)]
    return gradient, octaves[0], octaves[1]


def _inner(picture: np.ndarray, border: int) -> np.ndarray:
    return picture[border : picture.shape[0] - border, border : picture.shape[1] - border]
