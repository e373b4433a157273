"""An epoch's batches: a last one that is too small for a step is merged into the one before it.

Batch normalisation takes means over a batch and needs two values; processes that share a batch need a picture each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from models.kit.shapes import Int, Tensor


def smallest_batch(model: nn.Module) -> int:
    """The fewest pictures that one process can train a step on: what the model says, else 2 with batch normalisation.

    A model says so by a method `smallest_batch()`.
    """
    said: Any = getattr(model, "smallest_batch", None)
    if said is not None:
        return int(said())
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return 2 if any(isinstance(module, kinds) for module in model.modules()) else 1


def batches(order: Int[Tensor, "N"], size: int, least: int = 1) -> Sequence[Int[Tensor, "b"]]:
    """`order` cut into batches of `size`; a rest of fewer than `least` goes into the last batch.

    ValueError where `size` or the number of pictures is below `least`.
    """
    if size < least:
        raise ValueError(f"batch_size = {size} is too small; a step of this model takes at least {least} pictures")
    if len(order) < least:
        raise ValueError(
            f"{len(order)} training pictures are too few; a step of this model takes at least {least} pictures"
        )
    cut = torch.split(order, size)
    if len(cut) > 1 and len(cut[-1]) < least:
        return [*cut[:-2], torch.cat(cut[-2:])]
    return cut


def batch_count(count: int, size: int, least: int = 1) -> int:
    """How many batches `batches` makes of `count` pictures."""
    whole, rest = divmod(count, size)
    return whole + (rest >= least or not whole) if rest else whole
