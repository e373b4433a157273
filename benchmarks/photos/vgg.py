"""VGG-16 (arXiv:1409.1556v6), and the distance of images by a network's features."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from models.kit.features import Features, Images, Outputs
from models.kit.shapes import Float, Tensor

VGG_BLOCKS = (2, 2, 3, 3, 3)  # convolutions between two poolings
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_MEAN = (103.939, 116.779, 123.68)  # of blue, green, red in 0 … 255


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
