"""Define an image's energy, the predictor Φ of its statistics Ψ, and the losses of both.

See Bruna et al., §3 and §4. `Statistics` are a list of feature maps: the scattering coefficients of
the luminance first, then the stages of the feature network.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from models.kit import features
from models.kit.shapes import Float, Images, PerImage, Tensor
from models.superres.regression import ResidualBlock

Statistics = list[Float[Tensor, "B _c _h _w"]]  # one per part
ChannelStds = list[Float[Tensor, "_c"]]  # one per part

FEATURES_FILE = Path("data/features/efficientnet-lite0.npz")
FEATURE_CHANNELS = (32, 16, 24, 40, 80)  # of the stem and four stages, at ½, ½, ¼, ⅛ and 1/16 of the image's size
GRID_WINDOW = 5  # low-resolution pixels, the neighbourhood whose grid pattern is removed


# --- Equations -------------------------------------------------------------------------------------------------------


def residual_std(own: Statistics, target: Statistics) -> ChannelStds:
    """Return the standard deviation of `target` − `own` in each channel: per feature map a tensor
    (C,).

    `own` has the statistics of the regression's estimates, and `target` those of the true images.
    The result is the root mean square, over images and pixels, of their difference; it is at least
    1e-8.
    """
    return [
        (one - other).square().mean((0, 2, 3)).sqrt().clamp_min(1e-8) for one, other in zip(own, target, strict=True)
    ]


def energy(predicted: Statistics, actual: Statistics, std: ChannelStds) -> PerImage:
    """Return the energy E(y, x) = ‖Φ(x) − Ψ(y)‖² of each image, (B,) (Bruna et al., §3).

    `predicted` has the statistics Φ(x), and `actual` the statistics Ψ(y). Each channel is divided
    by its `std`. The energy of a feature map is the mean over its values; the result is the mean
    over the feature maps that both lists have.
    """
    parts = [
        ((one - other) / width[:, None, None]).square().mean((1, 2, 3))
        for one, other, width in zip(predicted, actual, std, strict=False)
    ]
    return torch.stack(parts).mean(0)


def contrastive_loss(predicted: Statistics, real: Statistics, sampled: Statistics, std: ChannelStds) -> PerImage:
    """Return E(y, x) − E(y', x) of a true image y and a sample y' ~ p(·|x), (B,).

    `predicted`, `real` and `sampled` have the statistics Φ(x), Ψ(y) and Ψ(y'); each channel is
    divided by its `std`. The gradient by Ψ is an estimate of −∂ log p(y|x)/∂Ψ (Bruna et al., §4).
    """
    return energy(predicted, real, std) - energy(predicted, sampled, std)


# See docs/decisions.md#upscaled-pictures-are-projected-onto-their-input
def remove_grid_pattern(detail: Float[Tensor, "B C sH sW"], scale: int) -> Float[Tensor, "B C sH sW"]:
    """Return the residual image `detail` without patterns with the period of a low-resolution
    pixel.

    Minimizing the energy would produce such a pattern as an artefact. Each low-resolution pixel
    covers a block of s × s pixels (s = `scale`). For each of the s² positions in a block, the mean
    of the pixels at this position in the neighbouring blocks is subtracted.
    """
    phases = functional.pixel_unshuffle(detail, scale)
    # the mean of a square is the mean of its lines' means, at the border too, and takes fewer sums
    means = phases
    for window in ((GRID_WINDOW, 1), (1, GRID_WINDOW)):
        padding = (window[0] // 2, window[1] // 2)
        means = functional.avg_pool2d(means, window, 1, padding, count_include_pad=False)
    return functional.pixel_shuffle(phases - means, scale)


# --- Networks --------------------------------------------------------------------------------------------------------


def load_features() -> features.Features:
    """Return the pretrained feature network of the statistics Ψ, with frozen weights.

    Raises ValueError if the file with the weights is missing.
    """
    if not FEATURES_FILE.is_file():
        raise ValueError(
            f"the features of EfficientNet-Lite0 are not in {FEATURES_FILE}: "
            "`python benchmarks/superres.py install` downloads them"
        )
    return features.load(features.EfficientNetLite0(), FEATURES_FILE)


class Predictor(nn.Module):
    """The network Φ of Bruna et al., which predicts the statistics of the true image.

    The prediction is the statistics of the regression's estimate plus a learned correction.
    """

    def __init__(self, channels: int, width: int, blocks: int, scales: Sequence[int], widths: Sequence[int]) -> None:
        """Create the layers, among them `blocks` residual blocks of `width` channels.

        An image has `channels` channels, and the feature maps of the statistics have `widths`
        channels. `scales` are the scales that the network supports.
        """
        super().__init__()
        self.head = nn.Conv2d(16 * channels + widths[0], width, 3, padding=1)
        self.scales = nn.ParameterDict({str(scale): torch.zeros(width) for scale in scales})
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        self.scattering = nn.Conv2d(width, widths[0], 3, padding=1)
        if len(widths) > 1:
            self.halves = nn.Conv2d(width, 4 * sum(widths[1:3]), 3, padding=1)
            self.quarters = nn.Conv2d(width, widths[3], 3, padding=1)
            self.eighths = nn.Conv2d(width, widths[4], 3, stride=2, padding=1)
            self.sixteenths = nn.Conv2d(width, widths[5], 5, stride=4, padding=2)
        self.widths = tuple(widths)

    def forward(self, estimate: Images, own: Statistics, std: ChannelStds, scale: int) -> Statistics:
        """Return the predicted statistics Φ(x), with as many feature maps as `own`.

        `estimate` is the regression's estimate, whose sides must be multiples of four, and `own`
        has its statistics. `std` has the standard deviation of each channel of Ψ(y) − Ψ(R(x)), by
        which the correction is multiplied.
        """
        pixels = functional.pixel_unshuffle(estimate - 0.5, 4)
        h = self.head(torch.cat((pixels, own[0] / std[0][:, None, None]), 1)) + self.scales[str(scale)][:, None, None]
        h = h + self.blocks(h)
        corrections = [self.scattering(h)]
        if len(self.widths) > 1:
            halves = torch.split(functional.pixel_shuffle(self.halves(h), 2), list(self.widths[1:3]), 1)
            corrections += [*halves, self.quarters(h), self.eighths(h), self.sixteenths(h)]
        return [
            part + correction.float() * scale_of[:, None, None]
            for part, correction, scale_of in zip(own, corrections, std, strict=False)
        ]
