"""Draw training patches: random crops of high-resolution images, and their low resolutions."""

from models.kit.row_streams import CHOICE, FIRST_FREE, RowStreams
from models.kit.shapes import Float, Images, Int64, Tensor
from models.superres import regression
from models.superres.config import Config


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
) -> tuple[Float[Tensor, "B C h w"], dict[int, Float[Tensor, "_n C _H _W"]], dict[int, Int64[Tensor, "_n"]]]:
    """Draw a scale and a crop for each image.

    Returns three values: the crops of all images at low resolution, which have one size; the crops
    at high resolution, keyed by scale; and the indices of their images, keyed by scale. A scale
    that no image draws has no crops, and an empty tensor of indices.
    """
    images, uniform = _draw_symmetry(images, rows)
    if config.shuffle_channels:
        images = regression.shuffle_channels(images, rows.uniform(images.shape[1], FIRST_FREE + 1))
    edge = min(images.shape[2:]) // max(config.scales)
    scale_of_row = regression.draw_scales(config.scales, config.largest_scale_share, rows.uniform(1, CHOICE)[:, 0])
    indices = {scale: (scale_of_row == scale).nonzero()[:, 0] for scale in config.scales}
    highs, lows = {}, images.new_empty((len(images), images.shape[1], edge, edge))
    for scale, index in indices.items():
        if len(index):
            highs[scale] = regression.random_crop(images[index], scale * edge, uniform[index, 3:5])
            lows[index] = regression.downsample(highs[scale], scale)
    return lows, highs, indices


def _draw_symmetry(images: Images, rows: RowStreams) -> tuple[Images, Float[Tensor, "B 6"]]:
    """Apply a random symmetry of the square to each image; return six uniform numbers of each, too.

    The first three of these numbers have chosen the symmetry. The fourth and fifth are for the
    position of a crop.
    """
    uniform = rows.uniform(6, FIRST_FREE)
    return regression.random_symmetry(images, uniform), uniform
