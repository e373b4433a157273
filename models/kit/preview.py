"""What a model makes, on one small PNG sheet: samples, or else pictures reconstructed or enlarged."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from models.kit.continuation import Continuation
from models.kit.grid import image_grid
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams
from models.kit.shapes import Float, Tensor, UInt8

EDGE = 256
"""About how many pixels wide and high the sheet is."""


LIMIT_BYTES = 384 << 10
"""Of the PNG, which must fit into the header of a checkpoint."""


@torch.no_grad()
def preview(model: nn.Module, images: UInt8[Tensor, "N C H W"], seed: int) -> bytes | None:
    """A PNG of what the model makes for a seed, with its default options; None where it makes no pictures.

    `images` are there to be reconstructed or, once reduced, enlarged by a model that draws no samples. The model's
    mode is as before afterwards.
    """
    made: Any = model
    operations = made.operations()
    named = next((name for name in ("sample", "reconstruct", "upscale") if name in operations), None)
    if named is None:
        return None
    options = options_of(model, named)()
    scale = getattr(options, "scale", 1) if named == "upscale" else 1
    edge = max(images.shape[-2:])
    across = max(1, min(10, EDGE // (edge + 1)))
    count = across * across
    rows = RowStreams.range(seed, 0, count)
    items = []
    if named != "sample":
        pictures = images[: min(count, len(images))].to(rows.seed.device).float() / 255
        rows = RowStreams.range(seed, 0, len(pictures))
        items = [pictures if scale == 1 else _reduced(pictures, scale, operations[named].get("margin", 0))]
    device = next(model.parameters()).device
    mode = model.training
    model.eval()
    try:
        arguments = [*(item.to(device) for item in items), rows.to(device), options]
        answer = getattr(made, named)(*arguments)
        while isinstance(answer, Continuation):
            answer = getattr(made, named)(*arguments, state=answer.state)
    except ValueError:  # it refuses its own defaults as yet: no reason to end a training
        return None
    finally:
        model.train(mode)
    picture = image_grid(answer["images"], across, margin_px=1)
    while len(png := _png(picture)) > LIMIT_BYTES:
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
    return png


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _reduced(pictures: Float[Tensor, "B C H W"], scale: int, margin: int) -> Float[Tensor, "B C h w"]:
    """The pictures `scale` times smaller, each with a margin that repeats its edge: enlarging cuts it off again."""
    small = functional.interpolate(pictures, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return functional.pad(small.clamp(0, 1), (margin,) * 4, mode="replicate")
