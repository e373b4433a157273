"""Arrange many small images in a grid."""

import math

from PIL import Image

from models.kit.shapes import Float, Tensor


def image_grid(images: Float[Tensor, "B C H W"], columns: int | None = None, margin_px: int = 0) -> Image.Image:
    """Return the images (0 … 1) row by row on one black image, `columns` per row (default: as square as possible)."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + margin_px, width + margin_px
    grid = Image.new("L" if channels == 1 else "RGB", (columns * step_x - margin_px, rows * step_y - margin_px))
    levels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for position, picture in enumerate(levels):
        tile = Image.fromarray(picture[..., 0] if channels == 1 else picture)
        grid.paste(tile, (position % columns * step_x, position // columns * step_y))
    return grid
