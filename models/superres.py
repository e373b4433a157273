r"""Super-Resolution with Deep Convolutional Sufficient Statistics, Joan Bruna, Pablo Sprechmann and Yann LeCun,
arXiv:1511.05666v4 (ICLR 2016).

    paper                    here          shape        unit      eq.
    x                        low           B C h w      1         low resolution, 0 … 1
    y                        high          B C s·h s·w  1         high resolution, 0 … 1
    U                        downsampled   B C h w      1         antialiased bicubic, scale s
    Σ‖Φ(x,Θ) − y‖²           squared       B            levels²   §2, regression
    -                        absolute      B            levels    the same with ‖·‖₁
    ½‖U(y) − x‖² + λ‖∇y‖₁    kit/total_variation                  §2, regularised inversion
    Ψ(y)                     statistics    Statistics   1         §3, of the high resolution
    Φ(x)                     Predictor     Statistics   1         §3, what predicts them from the low one
    ‖Φ(x) − Ψ(y)‖²           energy        B            1         §3, −log p(y|x) but for a constant
    ∂ log p(y|x)/∂Ψ          contrast      B            1         §4, positive and negative phase

Levels are grey levels: 255 from black to white. Losses are means over a picture's pixels and channels. Statistics are
counted, channel by channel, in what the regression leaves open of them in the root mean square, and the energy is their
mean squared error: a temperature for each part, as the paper's norm leaves open. The regression's own is about 1.

Departs from the paper: the regression network is residual and upsamples by sub-pixel shuffling (Shi et al.,
arXiv:1609.05158v2; Lim et al., arXiv:1707.02921v1), with one trunk for all scales; colours go through it together.
Ψ is the scattering of the luminance and, beside it, the first stages of EfficientNet-Lite0 of the colours where these
are trained with; Φ corrects the statistics of the regression's estimate. Samples of the negative phase are some steps
of descent from where the regression ends. Pictures at the size of a photograph are made by a network amortised to the
energy (Johnson et al., arXiv:1603.08155v1, without Φ). What is returned is projected onto U(y) = x.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit import features, resize, spectrum, total_variation
from models.kit.operations import describe
from models.kit.partial import Partial
from models.kit.rows import CHOICE, FIRST_FREE, LATENT, Rows
from models.kit.scattering import Scattering
from models.kit.schema import option
from models.kit.shapes import Float, Int64, Tensor
from models.kit.turn import Turn

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B"]
Statistics = list[Tensor]  # (B, C, H, W) a part: the scattering, then the network's pieces

LEVELS = 255.0
AUGMENT = FIRST_FREE  # the stream of a patch's flips, turns and place
LUMA = (65.481 / 219.0, 128.553 / 219.0, 24.966 / 219.0)  # of red, green and blue in 0 … 1
NETWORK = Path("data/features/efficientnet-lite0.npz")
NETWORK_WAY = "`python benchmarks/superres.py install` puts it there"
NETWORK_WIDTHS = (32, 16, 24, 40, 80)  # of the stem and four stages, at ½, ½, ¼, ⅛ and 1/16 of the size
NEIGHBOURS = 5  # low-resolution pixels over which a detail has no mean
SPREAD_RATE = 0.02  # of the running mean of the spreads
CONSISTENCY = 0.01  # weight of (U(y) − x)² in squared levels beside the energy
TV_STRENGTH = 3e-5  # λ, chosen on the tuning photographs of kit/photographs.py
TV_ITERATIONS = 400  # at most
SPECTRA = 128  # training patches whose spectra the filter of the detail is made of
TV_SLICE, DESCENT_SLICE = 4, 1  # iterations between two looks at the clock


@dataclass(frozen=True)
class Config:
    """The networks, and the tile of a picture that is enlarged at a time."""

    channels: int = option(3, minimum=3, maximum=3)
    height: int = option(
        128, minimum=32, maximum=1024, description="low-resolution pixels of a tile, its margin included"
    )
    width: int = option(128, minimum=32, maximum=1024, description="as many as `height`")
    margin: int = option(10, minimum=1, maximum=128, description="low-resolution pixels around a tile that are cut off")
    scales: tuple[int, ...] = option((2, 3, 4), minimum=2, maximum=4)
    largest_scale_share: float = option(0.7, above=0.0, maximum=1.0, description="of the patches trained on")
    features: int = option(64, minimum=1, maximum=1024, description="channels of the trunk")
    blocks: int = option(12, minimum=1, maximum=256, description="residual blocks of the trunk")
    squared_from: int = option(1, minimum=0, maximum=100000, description="the first epoch, from 0, with squared errors")
    objective: str = option(
        "regression", choices=("regression", "statistics"), description="what is trained; the second needs the first"
    )
    wavelet_scales: int = option(2, minimum=2, maximum=2, description="J of the scattering")
    wavelet_angles: int = option(4, minimum=2, maximum=16, description="L of the scattering")
    network: bool = option(default=True, description="Ψ holds features of EfficientNet-Lite0 beside the scattering")
    predictor_blocks: int = option(
        4, minimum=1, maximum=64, description="residual blocks of Φ, at a quarter of y's size"
    )
    tune_from: int = option(
        1, minimum=0, maximum=100000, description="the first epoch, from 0, that tunes the wavelets"
    )
    edge: int = option(16, minimum=4, maximum=256, description="low-resolution pixels of a patch for the statistics")
    amortise: bool = option(default=True, description="train the generator too")
    negative_steps: int = option(5, minimum=1, maximum=100, description="of the descent that samples y' to tune by")
    tune_share: float = option(0.25, minimum=0.0, maximum=1.0, description="of the steps that tune the wavelets")
    detail_radius: int = option(
        0,
        minimum=0,
        maximum=16,
        description="pixels around one that the filter of the amortised detail sees, which ends its lattice; 0 = none",
    )
    pixels: float = option(0.0, minimum=0.0, maximum=1e3, description="weight of the generator's error, a level²")
    colour: float = option(0.01, minimum=0.0, maximum=1e3, description="weight of colours' squared change, a level²")


@dataclass(frozen=True)
class UpscaleOptions:
    """How much larger, and by which of the ways from faithful to sharp."""

    scale: int = option(4, minimum=2, maximum=4, description="times the width and the height")
    method: str = option(
        "statistics",
        choices=("bicubic", "tv", "mse", "statistics"),
        description="bicubic interpolation, total variation, the regression, or the deep statistics: ever sharper",
    )
    fidelity: float = option(
        0.5, minimum=0.0, maximum=1.0, description="of statistics: from its own picture, 0, to the regression's, 1"
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


def spread_of(own: Statistics, wanted: Statistics) -> Statistics:
    """The root mean square of Ψ(y) − Ψ(R(x)), (C,) a part: how much the regression leaves open in each channel."""
    return [
        (one - other).square().mean((0, 2, 3)).sqrt().clamp_min(1e-8) for one, other in zip(own, wanted, strict=True)
    ]


def energy(predicted: Statistics, found: Statistics, spread: Statistics) -> PerImage:
    """§3: ‖Φ(x) − Ψ(y)‖², each channel in its spread: the mean over the common parts, each the mean of its numbers."""
    parts = [
        ((one - other) / width[:, None, None]).square().mean((1, 2, 3))
        for one, other, width in zip(predicted, found, spread, strict=False)
    ]
    return torch.stack(parts).mean(0)


def contrast(predicted: Statistics, real: Statistics, sampled: Statistics, spread: Statistics) -> PerImage:
    """§4: E(y, x) − E(y', x), y' ~ p(·|x): its gradient toward Ψ is −∂ log p(y|x)/∂Ψ for one sample y'."""
    return energy(predicted, real, spread) - energy(predicted, sampled, spread)


def colour_change(high: Images, estimate: Images) -> PerImage:
    """The mean square of what differs beyond the luminance, in squared levels."""
    change = high - estimate
    return squared(change - grey(change), torch.zeros_like(change))


def unlocked(detail: Float[Tensor, "B C sH sW"], scale: int) -> Float[Tensor, "B C sH sW"]:
    """A detail without any pattern of the low-resolution grid's own period, which would be the cheapest texture.

    Each of the s² phases of a pixel loses its mean over the low-resolution neighbourhood.
    """
    phases = functional.pixel_unshuffle(detail, scale)
    means = functional.avg_pool2d(phases, NEIGHBOURS, 1, NEIGHBOURS // 2, count_include_pad=False)
    return functional.pixel_shuffle(phases - means, scale)


def grey(images: Images) -> Float[Tensor, "B 1 H W"]:
    """BT.601's luminance in 0 … 1."""
    weights = images.new_tensor(LUMA)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def luminance(images: Images) -> Float[Tensor, "B H W"]:
    """ITU-R BT.601's Y of RGB in 0 … 1, in levels 16 … 235, as the field measures."""
    return 219.0 * grey(images)[:, 0] + 16.0


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
        return _sum(self.second(functional.relu_(self.first(h))), h)


def _sum(made: Tensor, h: Tensor) -> Tensor:
    """h + made, in the memory of what was made where it can: a fresh page costs more than the sum."""
    return made.add_(h) if made.dtype == h.dtype else h + made


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
        return _sum(self.end(self.blocks(h)), h)

    def tail(self, features: Float[Tensor, "B F H W"], low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """The estimate at one scale, from the trunk's features."""
        residual = functional.pixel_shuffle(self.tails[str(scale)](features), scale)
        return interpolated(low, scale).add_(residual)

    def forward(self, low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """The estimate of the picture at `scale` times the size; may leave 0 … 1 a little."""
        return self.tail(self.trunk(low), low, scale)


class Predictor(nn.Module):
    """Φ: the statistics of the regression's estimate and, from these and the estimate, a correction."""

    def __init__(self, config: Config, widths: Sequence[int]) -> None:
        """`widths`: channels of Ψ's parts."""
        super().__init__()
        width = config.features
        self.head = nn.Conv2d(16 * config.channels + widths[0], width, 3, padding=1)
        self.scales = nn.ParameterDict({str(scale): torch.zeros(width) for scale in config.scales})
        self.blocks = nn.Sequential(*(Block(width) for _ in range(config.predictor_blocks)))
        self.scattering = nn.Conv2d(width, widths[0], 3, padding=1)
        if len(widths) > 1:
            self.halves = nn.Conv2d(width, 4 * sum(widths[1:3]), 3, padding=1)
            self.quarters = nn.Conv2d(width, widths[3], 3, padding=1)
            self.eighths = nn.Conv2d(width, widths[4], 3, stride=2, padding=1)
            self.sixteenths = nn.Conv2d(width, widths[5], 5, stride=4, padding=2)
        self.widths = tuple(widths)

    def forward(self, estimate: Images, own: Statistics, spread: Statistics, scale: int) -> Statistics:
        """Φ(x), part by part as Ψ(R(x)) has them, from this and the estimate R(x), its sides multiples of four."""
        seen = functional.pixel_unshuffle(estimate - 0.5, 4)
        h = self.head(torch.cat((seen, own[0] / spread[0][:, None, None]), 1)) + self.scales[str(scale)][:, None, None]
        h = h + self.blocks(h)
        corrections = [self.scattering(h)]
        if len(self.widths) > 1:
            halves = torch.split(functional.pixel_shuffle(self.halves(h), 2), list(self.widths[1:3]), 1)
            corrections += [*halves, self.quarters(h), self.eighths(h), self.sixteenths(h)]
        return [
            part + correction.float() * width[:, None, None]
            for part, correction, width in zip(own, corrections, spread, strict=False)
        ]


@dataclass(frozen=True)
class Descent:
    """Where a descent of pictures is: the detail added to the estimate, its energy and slope, and the next step."""

    detail: Float[Tensor, "B 1 H W"]
    slope: Float[Tensor, "B 1 H W"]
    energy: PerImage
    first: PerImage  # the energy that it began with
    step: PerImage


Posterior = Callable[[Tensor], Tensor]  # (B, 1, H, W) → (B,)


def begun(posterior: Posterior, detail: Float[Tensor, "B 1 H W"]) -> Descent:
    """A descent from a detail; the first step changes it by half a level in the root mean square."""
    found, slope = value_and_slope(posterior, detail)
    size = slope.square().mean((1, 2, 3)).sqrt().clamp_min(1e-20)
    return Descent(detail, slope, found, found, 0.5 / LEVELS / size)


def descend(descent: Descent, posterior: Posterior, steps: int) -> Descent:
    """Gradient steps of each picture on its own, each taken only where the energy falls enough (Armijo).

    After a step taken the next is Barzilai and Borwein's, after one refused a third of it.
    """
    for _ in range(steps):
        width = descent.step[:, None, None, None]
        trial = descent.detail - width * descent.slope
        found, slope = value_and_slope(posterior, trial)
        falls = found <= descent.energy - 1e-4 * descent.step * descent.slope.square().sum((1, 2, 3))
        moved, turned_by = trial - descent.detail, slope - descent.slope
        curvature = (moved * turned_by).sum((1, 2, 3))
        newton = moved.square().sum((1, 2, 3)) / curvature.clamp_min(1e-30)
        longer = torch.where(curvature > 0, newton, 2.0 * descent.step).clamp_max(10.0 * descent.step)
        taken = falls[:, None, None, None]
        descent = Descent(
            torch.where(taken, trial, descent.detail),
            torch.where(taken, slope, descent.slope),
            torch.where(falls, found, descent.energy),
            descent.first,
            torch.where(falls, longer, descent.step / 3.0),
        )
    return descent


def value_and_slope(posterior: Posterior, detail: Tensor) -> tuple[Tensor, Tensor]:
    """The energy of each picture and its slope, whatever mode of gradients the caller is in."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = detail.clone().requires_grad_()
        found = posterior(leaf)
        (slope,) = torch.autograd.grad(found.sum(), leaf)
        return found.detach(), slope


class Model(nn.Module):
    """Low resolution in, high resolution out."""

    spread: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.width != config.height or config.height <= 2 * config.margin:
            raise ValueError(f"a tile of {config.height}×{config.width} has to be square and wider than two margins")
        self.config = config
        self.regression = Upscaler(config)
        self.networks: list[features.Features] = []  # no part of the model: loaded where Ψ needs it
        if config.objective == "statistics":
            self.generator = Upscaler(config)
            self.scattering = Scattering(config.wavelet_scales, config.wavelet_angles)
            self.widths = (self.scattering.channels, *(NETWORK_WIDTHS if config.network else ()))
            self.predictor = Predictor(config, self.widths)
            self.register_buffer("spread", torch.zeros(sum(self.widths)))
            if config.detail_radius:
                size = 2 * config.detail_radius + 1
                for scale in config.scales:  # they change nothing before they are made
                    taps = torch.zeros(size, size)
                    taps[config.detail_radius, config.detail_radius] = 1.0
                    self.register_buffer(f"taps_{scale}", taps)

    @property
    def PLAYERS(self) -> tuple[str, ...]:  # noqa: N802 - the training loop's name
        """What is trained in turns; nothing where the regression is trained alone."""
        return ("predictor", "generator", "scattering") if self.config.objective == "statistics" else ()

    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Take over what has the same name and shape; the generator starts as the regression where it is not there.

        ValueError where the regression's weights are not there or are of another shape.
        """
        mine = self.state_dict()
        known = {
            name: value
            for name, value in weights.items()
            if name in mine and mine[name].shape == value.shape and not name.startswith("taps_")
        }
        missing = [name for name in mine if name.startswith("regression.") and name not in known]
        if missing:
            raise ValueError(f"the statistics begin with a regression of the same size: {missing[0]} is missing")
        for name in mine:
            if name.startswith("generator.") and name not in known:
                known[name] = known[f"regression.{name.removeprefix('generator.')}"]
        self.load_state_dict({**mine, **known})

    def initialise(self, rows: Rows) -> None:
        """He's normal weights, a tenth of them where a residual ends; biases zero. Drawn by the first of `rows`."""
        with torch.no_grad():
            for number, (name, parameter) in enumerate(self.named_parameters()):
                if name.startswith("scattering."):  # wavelets from the start
                    continue
                if parameter.ndim < 2:
                    parameter.zero_()
                    continue
                ends = (
                    "second.weight",
                    "end.weight",
                    "scattering.weight",
                    "halves.weight",
                    "quarters.weight",
                    "hs.weight",
                )
                small = (".tails." in name) or name.endswith(ends)
                deviation = (2.0 / parameter[0].numel()) ** 0.5 * (0.1 if small else 1.0)
                drawn = rows.normals(parameter.numel(), number, 1, LATENT)[0, 0]
                parameter.copy_(drawn.view(parameter.shape).to(parameter.device) * deviation)

    def operations(self) -> dict[str, Any]:
        """What it can do; `margin` tells how much of a tile is context."""
        described = describe(self)
        described["upscale"]["margin"] = self.config.margin
        if self.config.objective == "regression":
            method = described["upscale"]["options"]["properties"]["method"]
            method["enum"] = [name for name in method["enum"] if name != "statistics"]
            method["default"] = "mse"
        return described

    # Enlarging

    @torch.no_grad()
    def upscale(
        self,
        images: Images,
        rows: Rows,  # noqa: ARG002 - nothing is drawn
        options: UpscaleOptions,
        state: dict[str, Tensor] | None = None,
    ) -> dict[str, Any] | Partial:
        """`images` (B, C, s·(H − 2m), s·(W − 2m)) in 0 … 1: tiles enlarged s times, their margins m cut off.

        A model of the regression alone takes statistics for mse. ValueError for a scale that it was not made for.
        """
        scale = options.scale
        if scale not in self.config.scales:
            raise ValueError(f"scale must be one of {', '.join(map(str, self.config.scales))}, not {scale}")
        alone = self.config.objective == "regression"
        method = "mse" if alone and options.method == "statistics" else options.method
        if method == "tv":
            return self._inverted(images, scale, state)
        if method == "statistics" and options.inference == "descent":
            return self._descended(images, options, state)
        if method == "bicubic":
            high = interpolated(images, scale)
        elif method == "mse":
            high = self.regressed(images, scale, ensemble=options.ensemble)
        else:
            high = self.sharpened(images, scale, options.fidelity)
        return self._answer(high, scale)

    def _answer(self, high: Images, scale: int) -> dict[str, Any]:
        cut = scale * self.config.margin
        return {"images": high[:, :, cut:-cut, cut:-cut].clamp(0.0, 1.0)}

    def _inverted(self, low: Images, scale: int, state: dict[str, Tensor] | None) -> dict[str, Any] | Partial:
        """A slice of the inversion under total variation, each tile until it rests."""
        u = resize.bicubic(*low.shape[2:], scale, low.device)
        if state is None:
            first = total_variation.begin(interpolated(low, scale))
            zeros = low.new_zeros(len(low))
            state = {"y": first.y, "p": first.p, "rests": zeros, "done": zeros}
        before = total_variation.Solution(state["y"], state["p"], state["rests"] > 0)
        now = total_variation.solve(before, low, u, TV_STRENGTH, TV_SLICE)
        done = state["done"] + TV_SLICE
        if bool(now.rests.all()) or float(done.max()) >= TV_ITERATIONS:
            return self._answer(now.y, scale)
        share = max(float(now.rests.float().mean()), float(done.max()) / TV_ITERATIONS)
        return Partial({"y": now.y, "p": now.p, "rests": now.rests.float(), "done": done}, min(share, 0.99))

    def _descended(
        self, low: Images, options: UpscaleOptions, state: dict[str, Tensor] | None
    ) -> dict[str, Any] | Partial:
        """A slice of the descent of the energy, from the regression's estimate on."""
        scale = options.scale
        if state is None:
            estimate, done = self.regressed(low, scale), low.new_zeros(len(low))
            posterior = self.posterior(low, estimate, scale)
            now = begun(posterior, torch.zeros_like(estimate[:, :1]))
        else:
            estimate, done = state["estimate"], state["done"] + DESCENT_SLICE
            posterior = self.posterior(low, estimate, scale)
            before = Descent(**{field.name: state[field.name] for field in dataclasses.fields(Descent)})
            now = descend(before, posterior, DESCENT_SLICE)
        if float(done.max()) >= options.steps:
            high = self._consistent(estimate + unlocked(now.detail, scale), low, scale)
            return self._answer(torch.lerp(high, estimate, options.fidelity), scale)
        share = (float(done.max()) + 0.5) / (options.steps + 1)
        return Partial({"estimate": estimate, "done": done, **vars(now)}, share)

    def sharpened(self, low: Images, scale: int, fidelity: float = 0.0) -> Float[Tensor, "B C sH sW"]:
        """The amortised statistics, mixed with the regression by `fidelity`; consistent with `low`."""
        estimate = self.regressed(low, scale)
        return self._amortised(low, estimate, scale, 1.0 - fidelity) if fidelity < 1.0 else estimate

    def _amortised(
        self, low: Images, estimate: Float[Tensor, "B C sH sW"], scale: int, share: float = 1.0
    ) -> Float[Tensor, "B C sH sW"]:
        """The regression's estimate and a share of the generator's detail."""
        detail = self._detail(low, estimate, scale)
        if self.config.detail_radius:
            detail = spectrum.filtered(detail, self.get_buffer(f"taps_{scale}"))
        return self._consistent(estimate + share * detail, low, scale)

    def _detail(self, low: Images, estimate: Float[Tensor, "B C sH sW"], scale: int) -> Float[Tensor, "B C sH sW"]:
        """What the generator adds to the regression's estimate."""
        return unlocked(self.generator(low, scale) - estimate, scale)

    def _consistent(self, high: Float[Tensor, "B C sH sW"], low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """The nearest picture whose downsampling is `low`, twice, as clipping moves the first away again."""
        project = resize.projection(*low.shape[2:], scale, low.device)
        return project(project(high.float(), low).clamp(0.0, 1.0), low)

    def regressed(self, low: Images, scale: int, *, ensemble: bool = False) -> Float[Tensor, "B C sH sW"]:
        """The regression's estimate, or its mean over the eight symmetries of the square; consistent with `low`."""
        if not ensemble:
            return self._consistent(self.regression(low, scale), low, scale)
        total = torch.zeros((), device=low.device)
        for turns in range(4):
            for mirrored in (False, True):
                seen = torch.rot90(low, turns, (2, 3))
                high = self.regression(seen.flip(3) if mirrored else seen, scale)
                total = total + torch.rot90(high.flip(3) if mirrored else high, -turns, (2, 3))
        return self._consistent(total / 8.0, low, scale)

    # The statistics

    def statistics(self, high: Images) -> Statistics:
        """Ψ(y) in float32: the scattering of the luminance, then the network's stages where it was loaded.

        The network's features have unit length over their channels, as in LPIPS.
        """
        with torch.autocast(high.device.type, enabled=False):
            found = [self.scattering(grey(high))[:, 0]]
            stages = [one for network in self.networks for one in network(high)]
            return found + [one / (one.square().sum(1, keepdim=True) + 1e-6).sqrt() for one in stages]

    def with_network(self) -> Model:
        """Load the network that Ψ is trained with, if it is; a model that only enlarges does without.

        ValueError where its weights are not there.
        """
        if self.config.network and not self.networks:
            if not NETWORK.is_file():
                raise ValueError(f"the features of EfficientNet-Lite0 are not in {NETWORK}: {NETWORK_WAY}")
            self.networks = [features.load(features.EfficientNetLite0(), NETWORK).to(self.spread.device)]
        return self

    def spreads(self) -> Statistics:
        """The spread of each channel, part by part."""
        return list(torch.split(self.spread, list(self.widths)))

    def predicted(self, estimate: Images, own: Statistics, scale: int) -> Statistics:
        """Φ(x), from the regression's estimate and its statistics; as many parts as these have."""
        found: Statistics = self.predictor(estimate, own, self.spreads(), scale)
        return found

    def posterior(self, low: Images, estimate: Float[Tensor, "B C sH sW"], scale: int) -> Posterior:
        """−log p(y|x) of y = R(x) + a detail of all colours alike, and a term for U(y) = x."""
        target = self.predicted(estimate, self.statistics(estimate), scale)
        spread, u = self.spreads(), resize.bicubic(*low.shape[2:], scale, low.device)

        def posterior(detail: Float[Tensor, "B 1 H W"]) -> PerImage:
            high = estimate + unlocked(detail, scale)
            return energy(target, self.statistics(high), spread) + CONSISTENCY * squared(u(high), low)

        return posterior

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

    def turns(self, images: Images, rows: Rows, epoch: int = 0) -> Iterator[Turn]:
        """Φ toward Ψ(y); the generator down the energy; from `tune_from` on, Ψ by its two phases.

        The generator's target is Φ(x) for one half and for the other Ψ(y), whose mean Φ estimates: in the mean their
        slopes are the same once Φ has learned. The first row draws the step's scale and whether Ψ has its turn.
        """
        self.with_network()
        low, high, scale = self._pair(images, rows)
        with torch.no_grad():
            estimate = self.regressed(low, scale)
            wanted, own = self.statistics(high), self.statistics(estimate)
            now = torch.cat(spread_of(own, wanted))
            self.spread.copy_(torch.lerp(self.spread, now, SPREAD_RATE) if bool(self.spread.any()) else now)
        spread = self.spreads()
        predicted = self.predicted(estimate, own, scale)
        unexplained = energy(predicted, wanted, spread)
        yield Turn("predictor", unexplained, {"energy_of_regression": energy(own, wanted, spread)})
        target = [part.detach() for part in predicted]
        if self.config.amortise:
            made = self._amortised(low, estimate, scale)
            found = self.statistics(made)
            losses = 0.5 * (energy(target, found, spread) + energy(wanted, found, spread))
            losses = (
                losses + self.config.pixels * squared(made, high) + self.config.colour * colour_change(made, estimate)
            )
            facts = {"error_of_generator": squared(made, high), "error_of_regression": squared(estimate, high)}
            yield Turn("generator", losses, facts)
        if epoch >= self.config.tune_from and float(rows.uniform(2, CHOICE)[0, 1]) < self.config.tune_share:
            sampled = self._sampled(low, estimate, target, scale)
            with torch.autocast(high.device.type, enabled=False):
                real, negative = ([self.scattering(grey(one))[:, 0]] for one in (high, sampled))
            yield Turn("scattering", contrast(target, real, negative, spread))

    @torch.no_grad()
    def settle(self, images: Callable[[], Iterator[Images]], rows: Callable[[int, int], Rows]) -> None:  # noqa: ARG002
        """After training: make the filter of the detail, for each scale, of the first training patches.

        The generator's cheapest texture is a lattice, in which a few frequencies have much of the energy. The filter
        takes the mean spectrum of its detail halfway to the spectrum of what the regression leaves open.
        """
        if self.config.objective != "statistics" or not self.config.detail_radius:
            return
        few: list[Tensor] = []
        for batch in images():
            few.append(batch[: SPECTRA - sum(map(len, few))])
            if sum(map(len, few)) >= SPECTRA:
                break
        for scale in self.config.scales:
            added, wanted = [], []
            for high in torch.split(torch.cat(few), 16):
                edge = min(high.shape[2:]) // scale * scale
                low = downsampled(high[:, :, :edge, :edge], scale)
                estimate = self.regressed(low, scale)
                added.append(spectrum.power(grey(self._detail(low, estimate, scale))[:, 0]))
                wanted.append(spectrum.power(grey(high[:, :, :edge, :edge] - estimate)[:, 0]))
            total = torch.stack(added).sum(0), torch.stack(wanted).sum(0)
            self.get_buffer(f"taps_{scale}").copy_(spectrum.matching(*total, self.config.detail_radius))

    def _sampled(self, low: Images, estimate: Float[Tensor, "B C sH sW"], target: Statistics, scale: int) -> Tensor:
        """y' ~ p(· given x), roughly: some steps down the energy of the scattering, from the estimate on."""
        u, spread = resize.bicubic(*low.shape[2:], scale, low.device), self.spreads()

        def posterior(detail: Float[Tensor, "B 1 H W"]) -> PerImage:
            high = estimate + unlocked(detail, scale)
            with torch.autocast(high.device.type, enabled=False):
                found = [self.scattering(grey(high))[:, 0]]
                return energy(target, found, spread) + CONSISTENCY * squared(u(high), low)

        state = descend(begun(posterior, torch.zeros_like(estimate[:, :1])), posterior, self.config.negative_steps)
        return estimate + unlocked(state.detail, scale)

    def _pair(self, images: Images, rows: Rows) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C sh sw"], int]:
        """Low and high resolution of patches, turned, at the scale that the first row draws."""
        drawn = rows.uniform(6, AUGMENT)
        images = turned(images, drawn)
        scale = int(self._scales(rows.uniform(1, CHOICE)[:1, 0])[0])
        edge = min(self.config.edge, min(images.shape[2:]) // max(self.config.scales)) // 4 * 4
        high = cropped(images, scale * edge, drawn[:, 3:5])
        return downsampled(high, scale), high, scale

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
