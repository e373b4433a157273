"""Degrade low-resolution images as JPEG files and sensors do, and draw text-like strokes.

The denoiser is trained on these images. A severity of 0 … 1 stands for a JPEG quality of 100 … 15
(`jpeg_quality`) or for noise with a standard deviation of 0 … 30 grey levels (`noise_std`).
"""

import math

import torch
from torch.nn import functional

from models.kit.shapes import Bool, Float, Images, PerImage, Tensor

LEVELS = 255.0
BLOCK, UNIT = 8, 16  # pixels of a block, and of a block of subsampled colours
QUALITY_RANGE, NOISE_RANGE = 85.0, 30.0  # a severity of 1 lowers the quality by 85, or adds noise of 30 levels
STROKES = 24  # of an image
STROKE_NUMBERS = 12 + 6 * STROKES  # uniform numbers that an image of strokes takes
SHORTEST, LONGEST = 4.0, 60.0  # pixels of the longest stroke of an image

# ITU-T T.81, annex K: the tables of quality 50, of the luminance and of the colours.
_LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_COLOUR_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *(((99,) * 8,) * 4),
)
# JFIF: RGB to Y, Cb, Cr, and back.
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg_quality(severity: PerImage) -> PerImage:
    """Return the JPEG quality, 15 … 100, that a severity of 1 … 0 stands for."""
    return (100.0 - QUALITY_RANGE * severity).round()


def noise_std(severity: PerImage) -> PerImage:
    """Return the standard deviation of the noise, in grey levels, that a severity stands for."""
    return NOISE_RANGE * severity


def add_noise(images: Images, std: PerImage, noise: Images) -> Images:
    """Return images plus `noise`, N(0, 1), times `std` grey levels, rounded to 256 levels."""
    noisy = images * LEVELS + std[:, None, None, None] * noise
    return noisy.round().clamp(0.0, LEVELS) / LEVELS


def compress(images: Images, quality: PerImage, offset: tuple[int, int], *, subsample: bool) -> Images:
    """Return RGB images after compression as JPEG files and decompression.

    `quality` is 1 … 100, as in libjpeg. The grid of blocks starts `offset` (vertical, horizontal)
    pixels before the image, which is continued by its border. With `subsample`, colours have half
    the resolution (4:2:0). The result differs from libjpeg's by the rounding in its integer
    transform only.
    """
    height, width = images.shape[2:]
    top, left = offset
    bottom, right = (-(size + before) % UNIT for size, before in ((height, top), (width, left)))
    with torch.autocast(images.device.type, enabled=False):
        whole = functional.pad(images.float(), (left, right, top, bottom), mode="replicate")
        planes = _mix(whole * LEVELS, _TO_YCBCR).round()  # colours are centred at 0, not at 128
        luma = _quantise(planes[:, :1] - 128.0, _tables(_LUMINANCE_TABLE, quality)) + 128.0
        colours = functional.avg_pool2d(planes[:, 1:], 2).round() if subsample else planes[:, 1:]
        colours = _quantise(colours, _tables(_COLOUR_TABLE, quality))
        if subsample:
            colours = functional.interpolate(colours, scale_factor=2.0, mode="bilinear")
        planes = torch.cat((luma.round().clamp(0.0, LEVELS), colours.round().clamp(-128.0, 127.0)), 1)
        decoded = _mix(planes, _TO_RGB).round().clamp(0.0, LEVELS) / LEVELS
    return decoded[:, :, top : top + height, left : left + width]


def _mix(images: Images, weights: tuple[tuple[float, ...], ...]) -> Images:
    """Return images whose channels are linear combinations of the channels of `images`."""
    return functional.conv2d(images, images.new_tensor(weights)[:, :, None, None])


def _tables(base: tuple[tuple[int, ...], ...], quality: PerImage) -> Float[Tensor, "B 8 8"]:
    """Return the table of JPEG quantisation steps of each image at its `quality`, by libjpeg's
    rule.
    """
    percent = torch.where(quality < 50, 5000.0 / quality, 200.0 - 2.0 * quality).floor()[:, None, None]
    return ((quality.new_tensor(base) * percent + 50.0) / 100.0).floor().clamp(1.0, 255.0)


def _quantise(planes: Images, tables: Float[Tensor, "B 8 8"]) -> Images:
    """Round the cosine transform of each block of 8×8 values to multiples of its table's steps."""
    batch, channels, height, width = planes.shape
    angles = (torch.arange(BLOCK, device=planes.device) + 0.5) * math.pi / BLOCK
    dct = torch.cos(torch.arange(BLOCK, device=planes.device)[:, None] * angles) * math.sqrt(2.0 / BLOCK)
    dct[0] = math.sqrt(1.0 / BLOCK)
    blocks = planes.view(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK).transpose(3, 4)
    steps = tables[:, None, None, None]
    blocks = dct.T @ ((dct @ blocks @ dct.T / steps).round() * steps) @ dct
    return blocks.transpose(3, 4).reshape(planes.shape)


def strokes(uniform: Float[Tensor, "B n"], edge: int) -> Float[Tensor, "B 3 edge edge"]:
    """Draw images like text and line art: straight strokes of one colour on a smooth background.

    The `STROKE_NUMBERS` uniform numbers of an image choose its colours, the length of its strokes,
    their places, directions and widths. Half of the strokes are horizontal or vertical. `edge` is
    the height and the width in pixels.
    """
    colours, rest = uniform[:, :12], uniform[:, 12:STROKE_NUMBERS].view(len(uniform), STROKES, 6)
    # strong contrast is as likely as any: paper near white and ink near black, or the reverse
    strong, inverted = colours[:, 9:10] < 0.6, colours[:, 10:11] < 0.3
    paper = torch.where(strong, 1.0 - 0.15 * colours[:, :3], colours[:, :3])
    ink = torch.where(strong, 0.3 * colours[:, 3:6], colours[:, 3:6])
    paper, ink = torch.where(inverted, ink, paper), torch.where(inverted, paper, ink)
    place = torch.arange(edge, device=uniform.device) + 0.5
    slope = 0.3 * (colours[:, 6:8] - 0.5) * (colours[:, 8:9] < 0.5) / edge
    gradient = slope[:, :1, None] * place[:, None] + slope[:, 1:, None] * place
    longest = SHORTEST * (LONGEST / SHORTEST) ** colours[:, 11:12]
    length, angle = (0.3 + 0.7 * rest[..., 3]) * longest, rest[..., 2] * math.pi
    angle = torch.where(rest[..., 5] < 0.5, (angle * 2.0 / math.pi).round() * math.pi / 2.0, angle)
    half_width = 0.35 + 0.9 * rest[..., 4] ** 2
    dy, dx = (place[:, None] - edge * rest[..., 0, None, None]), (place - edge * rest[..., 1, None, None])
    sin, cos = angle.sin()[..., None, None], angle.cos()[..., None, None]
    along = (dy * sin + dx * cos).abs() - 0.5 * length[..., None, None]
    across = (dy * cos - dx * sin).abs() - half_width[..., None, None]
    coverage = (0.5 - torch.maximum(along, across)).clamp(0.0, 1.0).amax(1)[:, None]
    drawn = torch.lerp(
        paper[:, :, None, None] + gradient[:, None], ink[:, :, None, None].expand(-1, -1, edge, edge), coverage
    )
    return (drawn.clamp(0.0, 1.0) * LEVELS).round() / LEVELS


def degrade(
    clean: Images, severity: PerImage, kind: PerImage, noise: Images, *, offset: tuple[int, int], subsample: bool
) -> Images:
    """Degrade each image, as its `severity` and its number `kind` say.

    `kind`, uniform in [0, 1), chooses how: a tenth stays as it is, 55 % are compressed, 20 % get
    noise and 15 % noise of half the strength before the compression. `noise` is N(0, 1); `offset`
    and `subsample` are those of the compression (`compress`).
    """
    noisy, both = (kind >= 0.65) & (kind < 0.85), kind >= 0.85
    std = noise_std(severity) * (noisy.float() + 0.5 * both.float())
    degraded = add_noise(clean, std, noise)
    compressed = compress(degraded, jpeg_quality(severity), offset, subsample=subsample)
    return torch.where(_per_pixel((kind < 0.1) | noisy), degraded, compressed)


def _per_pixel(flags: Bool[Tensor, "B"]) -> Bool[Tensor, "B 1 1 1"]:
    return flags[:, None, None, None]
