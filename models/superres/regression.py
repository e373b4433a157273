"""Define the downsampling U, the regression network, and inversion by total variation.

See Bruna et al., §2.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from models.kit import resize, total_variation
from models.kit.figures import Figures, mean_figure
from models.kit.operations import Continuation, State
from models.kit.shapes import Float, Images, Int64, PerImage, Tensor

LEVELS = 255.0
TV_STRENGTH = 3e-5  # λ, chosen on the tuning photographs of kit/photographs.py
INITIAL_NOISE = 0.05  # weight of the generator's noise input, in every feature
TV_MAX_ITERATIONS, TV_ITERATIONS_PER_CALL = 400, 4
LUMA_WEIGHTS = (65.481 / 219.0, 128.553 / 219.0, 24.966 / 219.0)  # ITU-R BT.601, of red, green and blue in 0 … 1


# --- Equations -------------------------------------------------------------------------------------------------------


def downsample(high: Images, scale: int) -> Float[Tensor, "B C h w"]:
    """Return x = U(y) of images y = `high`, by antialiased bicubic downsampling (Bruna et al., §2).

    Width and height become 1/`scale`. The filter is Pillow's (a = −½). Values are rounded to 256
    levels, as in an image file.
    """
    low = functional.interpolate(high, scale_factor=1.0 / scale, mode="bicubic", antialias=True)
    return low.mul(LEVELS).round_().clamp_(0.0, LEVELS).div_(LEVELS)


def interpolate_bicubic(low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
    """Return images at `scale` times their width and height, by bicubic interpolation.

    Values may be slightly outside 0 … 1.
    """
    return functional.interpolate(low, scale_factor=float(scale), mode="bicubic", antialias=True)


def squared_error(estimate: Images, high: Images) -> PerImage:
    """Return the squared error (B,) of `estimate`, in squared grey levels (Bruna et al., §2).

    It is ‖Φ(x, Θ) − y‖², where Φ(x, Θ) is `estimate` and y is `high`, as a mean over pixels and
    channels.
    """
    return (estimate - high).mul(LEVELS).square().mean(dim=(1, 2, 3))


def absolute_error(estimate: Images, high: Images) -> PerImage:
    """Return the absolute error (B,) of `estimate`, in grey levels.

    It is ‖Φ(x, Θ) − y‖₁, where Φ(x, Θ) is `estimate` and y is `high`, as a mean over pixels and
    channels. Early in a training it gives sharper images than the squared error.
    """
    return (estimate - high).mul(LEVELS).abs().mean(dim=(1, 2, 3))


def luminance(images: Images) -> Float[Tensor, "B 1 H W"]:
    """Return the BT.601 luminance of RGB images, in 0 … 1.

    A grey image's luminance is its grey value.
    """
    weights = images.new_tensor(LUMA_WEIGHTS)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def chroma_error(high: Images, estimate: Images) -> PerImage:
    """Return the squared error (B,) of the colours of `estimate`, in squared grey levels.

    With d = `high` − `estimate` it is the mean of (d − luminance(d))² over pixels and channels.
    """
    change = high - estimate
    return squared_error(change - luminance(change), torch.zeros_like(change))


def psnr(estimate: Images, high: Images, border: int) -> PerImage:
    """Return the PSNR of each image, 10 log₁₀(255²/MSE), in dB.

    The MSE is of the BT.601 Y channel (16 … 235), without `border` pixels on each side. `estimate`
    is first clipped and rounded to 256 levels.
    """
    rounded = estimate.clamp(0.0, 1.0).mul(LEVELS).round().div(LEVELS)
    y_channels = [219.0 * luminance(images)[:, 0] + 16.0 for images in (rounded, high)]
    error = (y_channels[0] - y_channels[1])[:, border:-border, border:-border]
    return 10.0 * torch.log10(LEVELS**2 / error.square().mean(dim=(1, 2)).clamp_min(1e-9))


def invert_by_total_variation(low: Images, scale: int, state: State) -> Float[Tensor, "B C sH sW"] | Continuation:
    """Minimize ½‖U(y) − x‖² + λ‖∇y‖₁ over images y in 0 … 1 (Bruna et al., §2), with x = `low`.

    Each call does a few iterations. The last call, when every image has converged or after
    `TV_MAX_ITERATIONS` iterations, returns the images y; every other call returns a `Continuation`.
    `state` is None in the first call, later the state of the previous `Continuation`.
    """
    u = resize.bicubic(*low.shape[2:], scale, low.device)
    if state is None:
        initial = total_variation.initial_solution(interpolate_bicubic(low, scale))
        zeros = low.new_zeros(len(low))
        state = {"y": initial.y, "p": initial.p, "rests": zeros, "done": zeros}
    before = total_variation.Solution(state["y"], state["p"], state["rests"] > 0)
    after = total_variation.solve(before, low, u, TV_STRENGTH, TV_ITERATIONS_PER_CALL)
    done = state["done"] + TV_ITERATIONS_PER_CALL
    if bool(after.converged.all()) or float(done.max()) >= TV_MAX_ITERATIONS:
        return after.y
    converged = after.converged.float()
    progress = max(float(converged.mean()), float(done.max()) / TV_MAX_ITERATIONS)
    return Continuation({"y": after.y, "p": after.p, "rests": converged, "done": done}, min(progress, 0.99))


# --- Training patches ------------------------------------------------------------------------------------------------


def random_symmetry(images: Images, uniform: Float[Tensor, "B n"]) -> Images:
    """Apply a random symmetry of the square to each image.

    The first three uniform numbers of an image choose its symmetry. Images that are not square are
    only mirrored.
    """
    flags = (uniform[:, :3] < 0.5)[:, :, None, None, None]
    images = torch.where(flags[:, 0], images.flip(3), images)
    images = torch.where(flags[:, 1], images.flip(2), images)
    return torch.where(flags[:, 2], images.transpose(2, 3), images) if images.shape[2] == images.shape[3] else images


def random_crop(images: Images, edge: int, uniform: Float[Tensor, "B 2"]) -> Float[Tensor, "B C edge edge"]:
    """Return a square crop of each image, `edge` pixels wide.

    The two uniform numbers of an image choose the vertical and the horizontal position.
    """
    image, channel, y, x = (torch.arange(n, device=images.device) for n in (*images.shape[:2], edge, edge))
    top, left = ((uniform[:, axis] * (images.shape[2 + axis] - edge + 1)).long() for axis in (0, 1))
    rows, columns = top[:, None, None, None] + y[:, None], left[:, None, None, None] + x
    return images[image[:, None, None, None], channel[:, None, None], rows, columns]


def shuffle_channels(images: Images, uniform: Float[Tensor, "B C"]) -> Images:
    """Return each image with its channels in a random order, chosen by its uniform numbers."""
    return images[torch.arange(len(images), device=images.device)[:, None], uniform.argsort(1)]


def draw_scales(scales: Sequence[int], largest_share: float, uniform: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
    """Return a scale for each of the uniform numbers in [0, 1).

    The largest of `scales` has the probability `largest_share`; the others are equally likely.
    """
    *others, largest = sorted(scales)
    if not others:
        return torch.full_like(uniform, largest, dtype=torch.int64)
    position = (uniform - largest_share).clamp_min(0.0) / max(1.0 - largest_share, 1e-9)
    index = (position * len(others)).long().clamp(0, len(others) - 1)
    return torch.where(uniform < largest_share, largest, torch.tensor(others, device=uniform.device)[index])


# --- Network ---------------------------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    """A residual block h + conv(relu(conv(h))) without normalisation (Lim et al., figure 2c)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, h: Float[Tensor, "B F H W"]) -> Float[Tensor, "B F H W"]:
        """Return h plus a learned correction, in the same shape."""
        return _add(self.second(functional.relu_(self.first(h))), h)


def _add(output: Tensor, h: Tensor) -> Tensor:
    """Return h + `output`, in the memory of `output` if the data types agree.

    To allocate new memory would take longer than the sum.
    """
    return output.add_(h) if output.dtype == h.dtype else h + output


class Upscaler(nn.Module):
    """The regression network: bicubic interpolation plus a learned residual image.

    Residual blocks, shared by all scales, and one sub-pixel convolution per scale make the
    residual. With `noise`, white noise is added to the first features, with one learned weight per
    feature.
    """

    def __init__(
        self, channels: int, features: int, blocks: int, scales: Sequence[int], *, noise: bool = False
    ) -> None:
        super().__init__()
        if noise:
            self.noise = nn.Parameter(torch.zeros(features))
        self.head = nn.Conv2d(channels, features, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        self.end = nn.Conv2d(features, features, 3, padding=1)
        tails = {str(scale): nn.Conv2d(features, channels * scale * scale, 3, padding=1) for scale in scales}
        self.tails = nn.ModuleDict(tails)

    def trunk(self, low: Images, noise: Float[Tensor, "B 1 H W"] | None = None) -> Float[Tensor, "B F H W"]:
        """Return the features (B, F, H, W) of low-resolution images, from which any scale is
        computed.

        `noise` is added to the first features; None adds no noise.
        """
        h = self.head(low.sub(0.5).contiguous(memory_format=torch.channels_last))
        if noise is not None:
            h = h + (noise * self.noise[:, None, None]).to(h.dtype)
        return _add(self.end(self.blocks(h)), h)

    def tail(self, features: Float[Tensor, "B F H W"], low: Images, scale: int) -> Float[Tensor, "B C sH sW"]:
        """Return the estimate at `scale` times the size of `low`, from the trunk's `features`."""
        residual = functional.pixel_shuffle(self.tails[str(scale)](features), scale)
        return interpolate_bicubic(low, scale).add_(residual)

    def forward(
        self, low: Images, scale: int, noise: Float[Tensor, "B 1 H W"] | None = None
    ) -> Float[Tensor, "B C sH sW"]:
        """Return the estimate at `scale` times the width and height of `low`.

        `noise` is added to the first features. Values may be slightly outside 0 … 1.
        """
        return self.tail(self.trunk(low, noise), low, scale)


# --- Evaluation ------------------------------------------------------------------------------------------------------


def psnr_figures(network: Upscaler, images: Images, scale: int, precision: str = "float32") -> Figures:
    """Measure the mean PSNR, in dB, at one scale; return two metrics for a model card.

    The metrics are of bicubic interpolation and of the regression `network`. `images` are at high
    resolution.
    """
    edge = min(images.shape[2:]) // scale * scale
    psnrs: dict[str, list[Tensor]] = {"psnr_bicubic": [], "psnr": []}
    for batch in torch.split(images[:, :, :edge, :edge], 32):
        low = downsample(batch, scale)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            estimates = {"psnr_bicubic": interpolate_bicubic(low, scale), "psnr": network(low, scale)}
        for name, estimate in estimates.items():
            psnrs[name].append(psnr(estimate, batch, border=scale))
    detail = f"luminance of {len(images)} patches, {scale} pixels cut off"
    return [
        mean_figure(f"{name}_x{scale}", torch.cat(parts), "dB", "higher", detail, correction=0)
        for name, parts in psnrs.items()
    ]
