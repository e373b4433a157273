"""Draw training patches: random crops of high-resolution images, and their low resolutions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from models.kit.row_streams import CHOICE, FIRST_FREE, RowStreams
from models.kit.shapes import Float, Images, Int64, Tensor
from models.superres import degradation, regression
from models.superres.config import Config

DENOISER_EDGE = 48  # pixels of the denoiser's patches, or fewer
REDUCTIONS = (1, 2, 4)  # by which the denoiser's patches are smaller than the training images
STROKE_SHARE = 0.15  # of the denoiser's patches that show strokes instead of a photograph
_NOISE = FIRST_FREE + 2  # the stream of the noise


@dataclass(frozen=True)
class DegradedPatches:
    """Training patches of one size for the denoiser: `clean` ones, `degraded` ones, and the
    strengths.

    `index` has, for each patch, the index of its image in the batch.
    """

    index: Int64[Tensor, "n"]
    clean: Float[Tensor, "n C h w"]
    degraded: Float[Tensor, "n C h w"]
    strength: Float[Tensor, "n"]


def draw_pair(
    images: Images, rows: RowStreams, config: Config
) -> tuple[Float[Tensor, "B C h w"], Float[Tensor, "B C sh sw"], int]:
    """Draw a crop of each image; return the crops at low and at high resolution, and the scale.

    The first row draws the scale, which is the same for the whole batch. The crops are square:
    their side at low resolution is the largest multiple of four that is at most `config.edge` and
    fits into an image at every scale.
    """
    images, uniform = _draw_symmetry(images, rows)
    first = rows.uniform(1, CHOICE)[:1, 0]
    scale = int(regression.draw_scales(config.scales, config.largest_scale_share, first)[0])
    edge = min(config.edge, min(images.shape[2:]) // max(config.scales)) // 4 * 4
    high = regression.random_crop(images, scale * edge, uniform[:, 3:5])
    return regression.downsample(high, scale), high, scale


def draw_by_scale(
    images: Images, rows: RowStreams, config: Config
) -> tuple[
    dict[int, Float[Tensor, "_n C _h _w"]], dict[int, Float[Tensor, "_n C _H _W"]], dict[int, Int64[Tensor, "_n"]]
]:
    """Draw a scale and a crop for each image.

    Returns three dictionaries keyed by scale: the crops at low resolution, the same at high
    resolution, and the indices of their images. The crops at low resolution have one size at all
    scales; with `config.whole_patches` they are as large as the images allow. A scale that no image
    draws has no crops, and an empty tensor of indices.
    """
    images, uniform = _draw_symmetry(images, rows)
    if config.shuffle_channels:
        images = regression.shuffle_channels(images, rows.uniform(images.shape[1], FIRST_FREE + 1))
    scale_of_row = regression.draw_scales(config.scales, config.largest_scale_share, rows.uniform(1, CHOICE)[:, 0])
    indices = {scale: (scale_of_row == scale).nonzero()[:, 0] for scale in config.scales}
    lows, highs = {}, {}
    for scale, index in indices.items():
        if len(index):
            edge = min(images.shape[2:]) // (scale if config.whole_patches else max(config.scales))
            highs[scale] = regression.random_crop(images[index], scale * edge, uniform[index, 3:5])
            lows[scale] = regression.downsample(highs[scale], scale)
    return lows, highs, indices


def draw_degraded(images: Images, rows: RowStreams) -> Iterator[DegradedPatches]:
    """Draw a clean patch of each image, and degrade it up to a drawn strength.

    Yields one `DegradedPatches` for each factor of `REDUCTIONS` by which any image is reduced. The
    severity is the strength times the root of a uniform number. The first row draws, for the whole
    batch, the position of the grid of the compression's blocks, and whether colours are subsampled.
    """
    images, uniform = _draw_symmetry(images, rows)
    choice = rows.uniform(12, CHOICE)
    severity = choice[:, 1] * choice[:, 2].sqrt()
    grid = (choice[0, 3:5] * degradation.UNIT).long().tolist()
    subsample = bool(choice[0, 5] < 0.75)
    reduction = torch.tensor(REDUCTIONS, device=images.device)[(choice[:, 6] * len(REDUCTIONS)).long()]
    drawn_strokes = choice[:, 7] < STROKE_SHARE
    numbers = rows.uniform(degradation.STROKE_NUMBERS, FIRST_FREE + 1)
    noise = rows.normal(images.shape[1] * DENOISER_EDGE**2, _NOISE).view(len(images), -1, DENOISER_EDGE, DENOISER_EDGE)
    # some noise is the same in all channels, as that of films
    noise = torch.where(choice[:, 8, None, None, None] < 0.25, noise[:, :1].expand_as(noise), noise)
    for factor in REDUCTIONS:
        index = (reduction == factor).nonzero()[:, 0]
        if not len(index):
            continue
        edge = min(DENOISER_EDGE, min(images.shape[2:]) // factor)
        high = regression.random_crop(images[index], factor * edge, uniform[index, 3:5])
        clean = high if factor == 1 else regression.downsample(high, factor)
        lines = degradation.strokes(numbers[index], edge)
        clean = torch.where(drawn_strokes[index, None, None, None], lines, clean)
        degraded = degradation.degrade(
            clean,
            severity[index],
            choice[index, 9],
            noise[index, :, :edge, :edge],
            offset=(grid[0], grid[1]),
            subsample=subsample,
        )
        yield DegradedPatches(index, clean, degraded, choice[index, 1])


def _draw_symmetry(images: Images, rows: RowStreams) -> tuple[Images, Float[Tensor, "B 6"]]:
    """Apply a random symmetry of the square to each image; return the results and uniform numbers.

    Each image has six uniform numbers. The first three have chosen the symmetry; the fourth and
    fifth are for the position of a crop.
    """
    uniform = rows.uniform(6, FIRST_FREE)
    return regression.random_symmetry(images, uniform), uniform
