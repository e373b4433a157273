"""Make a small PNG of a model's output: samples, or else reconstructed or enlarged images."""

import io
import math
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from models.kit.operations import Continuation, options_of
from models.kit.row_streams import RowStreams
from models.kit.shapes import ByteImages, Float, Tensor

EDGE = 256  # approximate width and height of the preview, in pixels


LIMIT_BYTES = 384 << 10  # maximum size of the PNG, which must fit into the header of a checkpoint


@torch.no_grad()
def preview(model: nn.Module, images: ByteImages, seed: int) -> bytes | None:
    """Return a PNG that shows the output of a model with default options, drawn with `seed`.

    A model without the operation `sample` shows reconstructions of `images`, or else enlarged
    copies of downscaled `images`. The result is None if the model has none of these operations, or
    if it rejects its default options. The model is left in the mode, training or evaluation, that
    it had before.
    """
    family_model: Any = model
    operations = family_model.operations()
    operation = next((name for name in ("sample", "reconstruct", "upscale") if name in operations), None)
    if operation is None:
        return None
    options = options_of(model, operation)()
    scale = getattr(options, "scale", 1) if operation == "upscale" else 1
    edge = max(images.shape[-2:])
    across = max(1, min(10, EDGE // (edge + 1)))
    device = next(model.parameters()).device
    pictures = images[: across * across].cpu().float() / 255
    if scale > 1:
        pictures = _downscale(pictures, scale, operations[operation].get("margin", 0))
    inputs, count = ([], across * across) if operation == "sample" else ([pictures.to(device)], len(pictures))
    arguments = [*inputs, RowStreams.range(seed, 0, count, device), options]
    mode = model.training
    model.eval()
    try:
        result = getattr(family_model, operation)(*arguments)
        while isinstance(result, Continuation):
            result = getattr(family_model, operation)(*arguments, state=result.state)
    except ValueError:  # the untrained model may reject its own default options: no reason to stop a training
        return None
    finally:
        model.train(mode)
    picture = image_grid(result["images"], across, margin_px=1)
    while len(png := _png(picture)) > LIMIT_BYTES:
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
    return png


def image_grid(images: Float[Tensor, "B C H W"], columns: int | None = None, margin_px: int = 0) -> Image.Image:
    """Return a PIL image with a grid of `images` (in 0 … 1) on black, `columns` in each line.

    By default the grid is as square as possible. `margin_px` is the space between two images in
    pixels.
    """
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


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _downscale(pictures: Float[Tensor, "B C H W"], scale: int, margin: int) -> Float[Tensor, "B C h w"]:
    """Return images reduced by `scale`, with a margin of `margin` pixels added on every side.

    The margin repeats the pixels of the edge; the operation `upscale` removes the margin again.
    """
    small = functional.interpolate(pictures, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return functional.pad(small.clamp(0, 1), (margin,) * 4, mode="replicate")
