"""Define the configuration of the networks, and the options of the operation `upscale`."""

from dataclasses import dataclass

from models.kit.schema import option


@dataclass(frozen=True)
class Config:
    """Configuration of a super-resolution model: tiles, networks, objective and training patches.

    `height` and `width` are those of the input tiles of `upscale`, with their margins, in pixels.
    """

    channels: int = option(3, minimum=3, maximum=3)
    height: int = option(128, minimum=32, maximum=1024, description="low-resolution pixels of a tile, with its margin")
    width: int = option(128, minimum=32, maximum=1024, description="equal to `height`")
    # See docs/decisions.md#upscaling-tiles-have-a-margin-of-eight-pixels
    margin: int = option(
        8, minimum=1, maximum=128, description="low-resolution pixels at each side of a tile that are context only"
    )
    scales: tuple[int, ...] = option((2, 3, 4), minimum=2, maximum=4)
    largest_scale_share: float = option(
        0.7, above=0.0, maximum=1.0, description="share of the training patches with the largest scale"
    )
    shuffle_channels: bool = option(default=False, description="train on patches with their colours in random order")
    whole_patches: bool = option(
        default=False, description="crops are as large as the patch at every scale, not equal at low resolution"
    )
    features: int = option(64, minimum=1, maximum=1024, description="channels of the trunk")
    blocks: int = option(12, minimum=1, maximum=256, description="residual blocks of the trunk")
    squared_from: int = option(
        1, minimum=0, maximum=100000, description="the first epoch, from 0, with squared instead of absolute errors"
    )
    objective: str = option(
        "regression",
        choices=("regression", "statistics", "denoiser"),
        description="what is trained; statistics needs a trained regression",
    )
    denoiser_blocks: int = option(
        0, minimum=0, maximum=256, description="residual blocks of the network that cleans degraded images; 0: none"
    )
    denoiser_features: int = option(64, minimum=1, maximum=1024, description="channels of that network")
    wavelet_scales: int = option(2, minimum=2, maximum=2, description="J of the scattering")
    wavelet_angles: int = option(4, minimum=2, maximum=16, description="L of the scattering")
    network: bool = option(default=True, description="Ψ has features of EfficientNet-Lite0 beside the scattering")
    predictor_blocks: int = option(
        4, minimum=1, maximum=64, description="residual blocks of Φ, at a quarter of y's size"
    )
    tune_from: int = option(
        1, minimum=0, maximum=100000, description="the first epoch, from 0, that trains the wavelets"
    )
    edge: int = option(16, minimum=4, maximum=256, description="low-resolution pixels of a patch for the statistics")
    amortise: bool = option(default=True, description="also train the generator, which makes images in one pass")
    negative_steps: int = option(
        5, minimum=1, maximum=100, description="descent steps that sample y', to train the wavelets"
    )
    negative: str = option(
        "descent",
        choices=("descent", "generator"),
        description="what samples y' for the negative phase: descent steps, or the generator",
    )
    noise: bool = option(
        default=False, description="the generator has a noise input, so that its detail is one draw of many"
    )
    tune_share: float = option(0.25, minimum=0.0, maximum=1.0, description="share of the steps that train the wavelets")
    detail_radius: int = option(
        0,
        minimum=0,
        maximum=16,
        description="radius in pixels of the filter that removes lattices from the generator's detail; 0: none",
    )
    detail_exponent: float = option(
        0.5,
        minimum=-1.0,
        maximum=1.0,
        description="with that filter the detail has the power spectrum of what the regression lacks, to this power",
    )
    pixels: float = option(
        0.0, minimum=0.0, maximum=1e3, description="weight of the generator's squared error, per squared grey level"
    )
    colour: float = option(
        0.01, minimum=0.0, maximum=1e3, description="weight of the squared change of colours, per squared grey level"
    )


# See docs/decisions.md#the-generator-is-the-regression-plus-a-change-of-weights
@dataclass(frozen=True)
class UpscaleOptions:
    """Options of `upscale`: the factor, the method, and settings of the methods."""

    scale: int = option(4, minimum=2, maximum=4, description="times the width and the height")
    method: str = option(
        "statistics",
        choices=("bicubic", "tv", "mse", "statistics"),
        description="bicubic interpolation, total variation, the regression, or the deep statistics: ever sharper",
    )
    fidelity: float = option(
        0.25, minimum=0.0, maximum=1.0, description="of statistics: from its own picture, 0, to the regression's, 1"
    )
    inference: str = option(
        "amortised",
        choices=("amortised", "descent"),
        description="of statistics: a network's one pass, or gradient descent of the energy, minutes a photograph",
    )
    steps: int = option(8, minimum=1, maximum=200, description="of the descent")
    ensemble: bool = option(
        default=False, description="of mse: mean over eight flips and turns, better and eight times slower"
    )
    denoise: float = option(
        0.0,
        minimum=0.0,
        maximum=1.0,
        description="how strong the noise and compression may be that are removed first, from none, 0, to heavy, 1",
    )
