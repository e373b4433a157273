"""Divide the images of an epoch into batches, none of which is too small for a training step.

A step with batch normalisation needs two values per channel, and a data-parallel step one image per
process. If too few images remain for a last batch, they join the previous batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from models.kit.shapes import Int, Tensor


def smallest_batch(model: nn.Module) -> int:
    """Return the minimum number of images in a batch with which one process can train a model.

    If the model has a method `smallest_batch`, this is its result; otherwise it is 2 with batch
    normalisation and 1 without.
    """
    of_model: Any = getattr(model, "smallest_batch", None)
    if of_model is not None:
        return int(of_model())
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return 2 if any(isinstance(module, kinds) for module in model.modules()) else 1


def batches(order: Int[Tensor, "N"], size: int, min_size: int = 1) -> Sequence[Int[Tensor, "b"]]:
    """Divide the image indices `order` into batches of `size`; the last batch may be smaller.

    If fewer than `min_size` indices remain for the last batch, they join the previous batch. Raises
    ValueError if `size` or the number of images is below `min_size`.
    """
    if size < min_size:
        raise ValueError(f"batch_size = {size} is too small; a step of this model takes at least {min_size} pictures")
    if len(order) < min_size:
        raise ValueError(
            f"{len(order)} training pictures are too few; a step of this model takes at least {min_size} pictures"
        )
    parts = torch.split(order, size)
    if len(parts) > 1 and len(parts[-1]) < min_size:
        return [*parts[:-2], torch.cat(parts[-2:])]
    return parts


def batch_count(count: int, size: int, min_size: int = 1) -> int:
    """Return the number of batches into which `batches` divides `count` images.

    A batch has `size` images. If fewer than `min_size` remain for the last batch, they join the
    previous one.
    """
    whole, rest = divmod(count, size)
    return whole + (rest >= min_size or not whole) if rest else whole
