"""Define the network that cleans a degraded low-resolution image before it is enlarged.

It is not of Bruna et al. Blocks of 2×2 input pixels become channels, which doubles the receptive
field at a quarter of the cost, and one more channel has the strength (Zhang et al., FFDNet,
arXiv:1710.04026v2).
"""

import torch
from torch import nn
from torch.nn import functional

from models.kit.shapes import Float, Images, PerImage, Tensor
from models.superres.regression import ResidualBlock

# See docs/decisions.md#a-small-network-cleans-a-picture-before-it-is-enlarged
MARGIN = 8  # pixels of context that the network needs beside those of the enlargement
CELL = 2  # pixels of the input are taken together in squares of this side


class Denoiser(nn.Module):
    """The residual network that removes compression artefacts and noise of up to a given strength.

    A strength of 0 … 1 is the largest severity (see `degradation`) that the image may have. A
    higher strength than necessary costs little quality, because the network also infers the
    severity from the image.
    """

    def __init__(self, channels: int, features: int, blocks: int) -> None:
        super().__init__()
        values = channels * CELL * CELL
        self.head = nn.Conv2d(values + 1, features, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(features) for _ in range(blocks)))
        self.end = nn.Conv2d(features, values, 3, padding=1)

    def forward(self, low: Images, strength: PerImage) -> Float[Tensor, "B C H W"]:
        """Return the cleaned images, whose values may be slightly outside 0 … 1."""
        height, width = low.shape[2:]
        even = functional.pad(low, (0, width % CELL, 0, height % CELL), mode="replicate")
        cells = functional.pixel_unshuffle(even - 0.5, CELL)
        level = strength[:, None, None, None].expand(-1, 1, *cells.shape[2:])
        h = self.head(torch.cat((cells, level), 1).contiguous(memory_format=torch.channels_last))
        residual = functional.pixel_shuffle(self.end(self.blocks(h)), CELL)
        return low + residual[:, :, :height, :width]
