"""Compute feature maps of images by a pretrained classifier, as statistics of the images.

`EfficientNetLite0` is the first stages of EfficientNet-Lite0 (Tan, Le, arXiv:1905.11946v5, without
squeeze and excitation, with ReLU6). Its weights are read from an NPZ file with the arrays
`NUMBER.weight` and `NUMBER.bias` of each convolution, in order of use, with batch normalisation
folded in; `benchmarks/photos/weights.py` writes this file.
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


@dataclass(frozen=True)
class Stage:
    """A stage of EfficientNet: `repeats` blocks with convolutions of size `kernel`.

    The first block has the stride `stride`. A block has `expand` times as many inner channels as
    input channels, and `width` output channels.
    """

    repeats: int
    kernel: int
    stride: int
    expand: int
    width: int


LITE0 = (Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80))


class Features(nn.Module):
    """A base class of networks that map images in 0 … 1 to lists of feature maps, largest first."""


class EfficientNetLite0(Features):
    """The stem and the first stages of EfficientNet-Lite0, which map images to feature maps.

    Images are in 0 … 1; the network itself computes with (255·x − 127) / 128.
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
        """Return the feature maps after the stem and after each stage, the largest first."""
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
    """Apply a convolution with the padding that TensorFlow calls "same".

    If the number of padding pixels is odd, the extra one is added at the right or below.
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
    """Load the weights of a network from the NPZ file `path` and freeze them; return the network.

    Raises ValueError if the file lacks a weight or has one of another shape.
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
