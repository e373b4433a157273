"""Features of two pretrained classifiers, used as image statistics and as a perceptual distance.

VGG-16 (Simonyan, Zisserman, arXiv:1409.1556v6), all thirteen convolutions, and the first stages of
EfficientNet-Lite0 (Tan, Le, arXiv:1905.11946v5, without squeeze and excitation, ReLU6). The weights
are read from an NPZ file with the arrays `NUMBER.weight` and `NUMBER.bias` of each convolution, in
order of use, with batch normalisation folded in; `benchmarks/photos/weights.py` writes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.kit.shapes import Float, Tensor

Images = Float[Tensor, "B 3 H W"]
Outputs = list[Float[Tensor, "B _c _h _w"]]  # one per stage
Network = TypeVar("Network", bound="Features")

VGG_BLOCKS = (2, 2, 3, 3, 3)  # convolutions between two poolings
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_MEAN = (103.939, 116.779, 123.68)  # of blue, green, red in 0 … 255


@dataclass(frozen=True)
class Stage:
    """A stage of EfficientNet: `repeats` blocks of the same kernel.

    The first block has the stride `stride`; each ends in `width` channels.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0 = (Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80))


class Features(nn.Module):
    """A network that maps images in 0 … 1 to the outputs of its stages, finest first."""


class VGG16(Features):
    """The thirteen convolutions of VGG-16; its input is BGR in 0 … 255 minus the mean."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = [width for width, repeats in zip(VGG_WIDTHS, VGG_BLOCKS, strict=True) for _ in range(repeats)]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, width, 3, padding=1) for before, width in zip((3, *widths), widths, strict=False)
        )
        self.register_buffer("mean", torch.tensor(VGG_MEAN)[:, None, None], persistent=False)

    def forward(self, images: Images) -> Outputs:
        """Return the output of every ReLU."""
        h = images.flip(1) * 255.0 - self.mean
        outputs, layers = [], iter(self.convolutions)
        for block, repeats in enumerate(VGG_BLOCKS):
            h = functional.max_pool2d(h, 2) if block else h
            for _ in range(repeats):
                h = next(layers)(h).relu()
                outputs.append(h)
        return outputs


class EfficientNetLite0(Features):
    """The stem and the first stages of EfficientNet-Lite0.

    Its input is (x − 127) / 128 with x in 0 … 255.
    """

    def __init__(self, stages: tuple[Stage, ...] = LITE0) -> None:
        super().__init__()
        self.stages = stages
        layers = [nn.Conv2d(3, 32, 3, 2)]
        width = 32
        for stage in stages:
            for repeat in range(stage.repeats):
                inner = width * stage.expand
                layers += [nn.Conv2d(width, inner, 1)] if stage.expand > 1 else []
                stride = 1 if repeat else stage.stride
                layers += [nn.Conv2d(inner, inner, stage.kernel, stride, groups=inner)]
                layers += [nn.Conv2d(inner, stage.width, 1)]
                width = stage.width
        self.convolutions = nn.ModuleList(layers)

    def forward(self, images: Images) -> Outputs:
        """Return the outputs of the stem and of every stage."""
        layers = iter(self.convolutions)
        h = functional.relu6(_convolve_same(next(layers), (images * 255.0 - 127.0) / 128.0))
        outputs = [h]
        for stage in self.stages:
            for repeat in range(stage.repeats):
                inner = functional.relu6(next(layers)(h)) if stage.expand > 1 else h
                inner = functional.relu6(_convolve_same(next(layers), inner))
                inner = next(layers)(inner)
                h = h + inner if repeat else inner
            outputs.append(h)
        return outputs


def _convolve_same(layer: nn.Module, h: Tensor) -> Tensor:
    """Apply a convolution with TensorFlow's "same" padding.

    An odd pixel of padding is added at the right and below.
    """
    assert isinstance(layer, nn.Conv2d)  # noqa: S101 - it was built above
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    padding = []
    for size in (h.shape[3], h.shape[2]):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        padding += [total // 2, total - total // 2]
    padded: Tensor = layer(functional.pad(h, padding))
    return padded


def load(network: Network, path: Path) -> Network:
    """Load the network's weights, frozen.

    Raises ValueError if the file lacks one or has other shapes.
    """
    names = list(network.state_dict())
    with np.load(path, allow_pickle=False) as arrays:
        stored = {name: arrays[name] for name in arrays.files}
    try:
        tensors = {name: torch.from_numpy(stored[name.removeprefix("convolutions.")]) for name in names}
        network.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path.name} holds the weights of another network: {error}") from error
    return network.eval().requires_grad_(requires_grad=False)


def distances(network: Features, first: Images, second: Images) -> Float[Tensor, "B pieces"]:
    """Return the distance of two images at each stage."""
    return distance(network(first), network(second))


def distance(first: Outputs, second: Outputs, epsilon: float = 1e-10) -> Float[Tensor, "B pieces"]:
    """Return the mean of ‖u − v‖² over the positions of each stage.

    u and v are features, scaled to unit length over the channels.
    """
    distances_of = []
    for a, b in zip(first, second, strict=True):
        u, v = (h / (h.square().sum(1, keepdim=True) + epsilon).sqrt() for h in (a, b))
        distances_of.append((u - v).square().sum(1).mean((1, 2)))
    return torch.stack(distances_of, 1)
