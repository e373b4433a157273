r"""Super-Resolution with Deep Convolutional Sufficient Statistics, Joan Bruna, Pablo Sprechmann and Yann LeCun,
arXiv:1511.05666v4 (ICLR 2016).

    paper            here          shape        unit        eq.
    x                low           B C h w      1           low resolution, 0 … 1
    y                high          B C s·h s·w  1           high resolution, 0 … 1
    U                downsampled   B C h w      1           antialiased bicubic, scale s
    Σ‖Φ(x,Θ) − y‖²   squared       B            levels²     §2, regression
    -                absolute      B            levels      the same with ‖·‖₁

Levels are grey levels: 255 from black to white. Losses are means over a picture's pixels and channels.

Departs from the paper: the regression network is residual and upsamples by sub-pixel shuffling (Shi et al.,
arXiv:1609.05158v2; Lim et al., arXiv:1707.02921v1), with one trunk for all scales; colours go through it together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit.operations import describe
from models.kit.rows import CHOICE, FIRST_FREE, LATENT, Rows
from models.kit.schema import option
from models.kit.shapes import Float, Int64, Tensor

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B"]

LEVELS = 255.0
AUGMENT = FIRST_FREE  # the stream of a patch's flips, turns and place


@dataclass(frozen=True)
class Config:
    """The networks, and the tile of a picture that is enlarged at a time."""

    channels: int = option(3, minimum=3, maximum=3)
    height: int = option(
        128, minimum=32, maximum=1024, description="low-resolution pixels of a tile, its margin included"
    )
    width: int = option(128, minimum=32, maximum=1024, description="as many as `height`")
    margin: int = option(16, minimum=1, maximum=128, description="low-resolution pixels around a tile that are cut off")
    scales: tuple[int, ...] = option((2, 3, 4), minimum=2, maximum=4)
    largest_scale_share: float = option(0.7, above=0.0, maximum=1.0, description="of the patches trained on")
    features: int = option(64, minimum=1, maximum=1024, description="channels of the trunk")
    blocks: int = option(12, minimum=1, maximum=256, description="residual blocks of the trunk")
    squared_from: int = option(1, minimum=0, maximum=100000, description="the first epoch, from 0, with squared errors")


@dataclass(frozen=True)
class UpscaleOptions:
    """How much larger, and by which of the ways from faithful to sharp."""

    scale: int = option(4, minimum=2, maximum=4, description="times the width and the height")
    method: str = option("mse", choices=("bicubic", "mse"), description="bicubic interpolation or the regression")
    ensemble: bool = option(default=False, description="mean over eight flips and turns: better and eight times slower")


# --- The paper's equations -------------------------------------------------------------------------------------------


def downsampled(high: Images, scale: int) -> Float[Tensor, "B C h w"]:
    """U: antialiased bicubic (a = −½, as Pillow's), rounded to 256 levels as a low-resolution file is."""
    low = functional.interpolate(high, scale_factor=1.0 / scale, mode="bicubic", antialias=True)
    return low.mul(LEVELS).round_().clamp_(0.0, LEVELS).div_(LEVELS)


def interpolated(low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
    """Bicubic interpolation to `scale` times the size; may leave 0 … 1 a little."""
    return functional.interpolate(low, scale_factor=float(scale), mode="bicubic", antialias=True)


def squared(estimate: Images, high: Images) -> PerImage:
    """§2: ‖Φ(x, Θ) − y‖², the mean over pixels, in squared levels."""
    return (estimate - high).mul(LEVELS).square().mean(dim=(1, 2, 3))


def absolute(estimate: Images, high: Images) -> PerImage:
    """‖Φ(x, Θ) − y‖₁, the mean over pixels, in levels; sharper early in training than the squares."""
    return (estimate - high).mul(LEVELS).abs().mean(dim=(1, 2, 3))


def luminance(images: Images) -> Float[Tensor, "B H W"]:
    """ITU-R BT.601's Y of RGB in 0 … 1, in levels 16 … 235, as the field measures."""
    red, green, blue = images.unbind(1)
    return 65.481 * red + 128.553 * green + 24.966 * blue + 16.0


def psnr(estimate: Images, high: Images, border: int) -> PerImage:
    """10 log₁₀(255² / mean squared error) of the luminance, dB; of the estimate in 256 levels, without a border."""
    rounded = estimate.clamp(0.0, 1.0).mul(LEVELS).round().div(LEVELS)
    error = (luminance(rounded) - luminance(high))[:, border:-border, border:-border]
    return 10.0 * torch.log10(LEVELS**2 / error.square().mean(dim=(1, 2)).clamp_min(1e-9))


# --- Blocks ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """h + conv(relu(conv(h))), without normalisation (Lim et al., figure 2c)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, h: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F H W"]:
        """The same size and number of channels."""
        return h + self.second(functional.relu(self.first(h)))  # type: ignore[no-any-return]


class Upscaler(nn.Module):
    """What bicubic interpolation lacks: residual blocks at low resolution, a sub-pixel convolution for each scale."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head = nn.Conv2d(config.channels, config.features, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(config.features) for _ in range(config.blocks)))
        self.end = nn.Conv2d(config.features, config.features, 3, padding=1)
        tails = {str(s): nn.Conv2d(config.features, config.channels * s * s, 3, padding=1) for s in config.scales}
        self.tails = nn.ModuleDict(tails)

    def trunk(self, low: Images) -> Float[Tensor, "B F H W"]:
        """Features at low resolution, common to all scales."""
        h = self.head(low.sub(0.5).contiguous(memory_format=torch.channels_last))
        return h + self.end(self.blocks(h))  # type: ignore[no-any-return]

    def tail(self, features: Float[Tensor, "B F H W"], low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """The estimate at one scale, from the trunk's features."""
        residual = functional.pixel_shuffle(self.tails[str(scale)](features), scale)
        return interpolated(low, scale) + residual.float()

    def forward(self, low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """The estimate of the picture at `scale` times the size; may leave 0 … 1 a little."""
        return self.tail(self.trunk(low), low, scale)


class Model(nn.Module):
    """Low resolution in, high resolution out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width != config.height or config.height <= 2 * config.margin:
            raise ValueError(f"a tile of {config.height}×{config.width} has to be square and wider than two margins")
        self.config = config
        self.regression = Upscaler(config)

    def initialise(self, rows: Rows) -> None:
        """He's normal weights, a tenth of them where a residual ends; biases zero. Drawn by the first of `rows`."""
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self.named_parameters()):
                if parameter.ndim < 2:
                    parameter.zero_()
                    continue
                small = ("second.weight" in name) or (".tails." in name) or name.endswith("end.weight")
                deviation = (2.0 / parameter[0].numel()) ** 0.5 * (0.1 if small else 1.0)
                drawn = rows.normals(parameter.numel(), number, 1, LATENT)[0, 0]
                parameter.copy_(drawn.view(parameter.shape).to(parameter.device) * deviation)

    def operations(self) -> dict[str, Any]:
        """What it can do; `margin` tells how much of a tile is context."""
        described = describe(self)
        described["upscale"]["margin"] = self.config.margin
        return described

    # Enlarging

    @torch.inference_mode()
    def upscale(self, images: Images, rows: Rows, options: UpscaleOptions) -> dict[str, Any]:  # noqa: ARG002
        """`images` (B, C, s·(H − 2m), s·(W − 2m)) in 0 … 1: tiles enlarged s times, their margins m cut off.

        ValueError for a scale that the model was not made for.
        """
        if options.scale not in self.config.scales:
            raise ValueError(f"scale must be one of {', '.join(map(str, self.config.scales))}, not {options.scale}")
        if options.method == "bicubic":
            high = interpolated(images, options.scale)
        else:
            high = self.regressed(images, options.scale, ensemble=options.ensemble)
        cut = options.scale * self.config.margin
        return {"images": high[:, :, cut:-cut, cut:-cut].clamp(0.0, 1.0)}

    def regressed(self, low: Images, scale: int, *, ensemble: bool = False) -> Float[Tensor, "B C sH sW"]:
        """The regression's estimate, or its mean over the eight symmetries of the square."""
        if not ensemble:
            return self.regression(low, scale)  # type: ignore[no-any-return]
        total = torch.zeros((), device=low.device)
        for turns in range(4):
            for mirrored in (False, True):
                seen = torch.rot90(low, turns, (2, 3))
                high = self.regression(seen.flip(3) if mirrored else seen, scale)
                total = total + torch.rot90(high.flip(3) if mirrored else high, -turns, (2, 3))
        return total / 8.0

    # Training

    def loss(self, images: Images, rows: Rows, epoch: int = 0) -> PerImage:
        """The regression's error on high-resolution patches (B, C, H, W), each at a scale drawn by its row.

        All are made to have the same low resolution, H / max(scales): for a smaller scale a part of the patch is taken.
        """
        drawn = rows.uniform(6, AUGMENT)
        images = turned(images, drawn)
        edge = min(images.shape[2:]) // max(self.config.scales)
        chosen = self._scales(rows.uniform(1, CHOICE)[:, 0])
        highs, lows = {}, images.new_empty((len(images), images.shape[1], edge, edge))
        for scale in self.config.scales:
            mine = (chosen == scale).nonzero()[:, 0]
            if len(mine):
                highs[scale] = cropped(images[mine], scale * edge, drawn[mine, 3:5])
                lows[mine] = downsampled(highs[scale], scale)
        features = self.regression.trunk(lows)
        losses = images.new_empty(len(images))
        error = squared if epoch >= self.config.squared_from else absolute
        for scale, high in highs.items():
            mine = (chosen == scale).nonzero()[:, 0]
            losses = losses.index_copy(0, mine, error(self.regression.tail(features[mine], lows[mine], scale), high))
        return losses

    # Measuring

    @torch.inference_mode()
    def evaluate(
        self,
        images: Images,
        seed: int,  # noqa: ARG002 - nothing is drawn
        k: int,  # noqa: ARG002
        precision: str = "float32",
        report: Callable[[int], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The figures on given patches: the PSNR of the luminance, of bicubic and of the regression, for each scale."""
        figures = []
        for scale in sorted(self.config.scales, reverse=True):
            edge = min(images.shape[2:]) // scale * scale
            found: dict[str, list[Tensor]] = {"psnr_bicubic": [], "psnr": []}
            for part in torch.split(images[:, :, :edge, :edge], 32):
                low = downsampled(part, scale)
                with torch.autocast(part.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    estimates = {"psnr_bicubic": interpolated(low, scale), "psnr": self.regression(low, scale)}
                for name, estimate in estimates.items():
                    found[name].append(psnr(estimate, part, border=scale))
            report(len(images))
            for name, values in found.items():
                every = torch.cat(values).double()
                error = float(every.std(correction=0)) / math.sqrt(len(every))
                figures.append(
                    {
                        "name": f"{name}_x{scale}",
                        "value": round(float(every.mean()), 3),
                        "unit": "dB",
                        "better": "higher",
                        "detail": f"luminance of {len(every)} patches, {scale} pixels cut off; s.e. {error:.3f}",
                    }
                )
        return figures

    def _scales(self, uniform: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """The largest scale for its share of numbers in 0 … 1, the others for equal parts of the rest."""
        *others, largest = sorted(self.config.scales)
        if not others:
            return torch.full_like(uniform, largest, dtype=torch.int64)
        share = self.config.largest_scale_share
        index = (
            ((uniform - share).clamp_min(0.0) / max(1.0 - share, 1e-9) * len(others)).long().clamp(0, len(others) - 1)
        )
        other = torch.tensor(others, device=uniform.device)[index]
        return torch.where(uniform < share, largest, other)


def turned(images: Images, drawn: Float[Tensor, "B n"]) -> Images:
    """Each picture by one of the eight symmetries of the square, chosen by its first three numbers in 0 … 1."""
    flags = (drawn[:, :3] < 0.5)[:, :, None, None, None]
    images = torch.where(flags[:, 0], images.flip(3), images)
    images = torch.where(flags[:, 1], images.flip(2), images)
    return torch.where(flags[:, 2], images.transpose(2, 3), images) if images.shape[2] == images.shape[3] else images


def cropped(images: Images, edge: int, drawn: Float[Tensor, "B 2"]) -> Float[Tensor, "B C edge edge"]:
    """A square of each picture, at a place chosen by its two numbers in 0 … 1."""
    height, width = images.shape[2:]
    top = (drawn[:, 0] * (height - edge + 1)).long().tolist()
    left = (drawn[:, 1] * (width - edge + 1)).long().tolist()
    places = zip(images, top, left, strict=True)
    return torch.stack([image[:, y : y + edge, x : x + edge] for image, y, x in places])
