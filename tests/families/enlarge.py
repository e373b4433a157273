"""A family for tests of upscaling: it enlarges tiles by copying or averaging pixels."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit.operations import describe
from models.kit.row_streams import RowStreams
from models.kit.schema import option

MARGIN, RADIUS = 4, 3
VALUES = {"cpu": 2_000_000, "cuda": 250_000_000}
"""Values that a tile counts as, by type of device, so that 16 tiles are the reference size of the
batch plan.
"""
MAX_BATCH_SIZE = 16
"""Tiles of larger batches have other bits, so that no batch plan has them: a pass stays short,
however busy the machine is while plans are measured.
"""
IMAGE = {"channels": 3, "height": 32, "width": 32}


@dataclass(frozen=True)
class Config:
    """No parameters."""


@dataclass(frozen=True)
class UpscaleOptions:
    """The scale, the method, and what tests need to slow down or invert a result."""

    scale: int = option(4, minimum=2, maximum=4, description="times the width and the height")
    method: str = option(
        "nearest", choices=("nearest", "smooth"), description="copies of a pixel, or of a mean around it"
    )
    seconds: float = option(0.002, minimum=0.0, maximum=1.0, description="time that a tile sleeps")
    inverted: bool = option(False, description="whether dark and light change places")


class Model(nn.Module):
    """A model whose output pixels are copies of input pixels, or of the mean within RADIUS (method
    `smooth`).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(1))

    def operations(self) -> dict[str, Any]:
        """Return the operations of the model."""
        described = describe(self)
        described["upscale"]["margin"] = MARGIN
        return described

    def upscale(self, images: torch.Tensor, rows: RowStreams, options: UpscaleOptions) -> dict[str, Any]:
        """Return the tiles without their margins, `scale` times larger."""
        time.sleep(options.seconds * len(rows))
        # a view: the worker counts its values, which take no time
        torch.zeros(1).expand(len(rows), VALUES[images.device.type])
        if options.method == "smooth":
            images = functional.avg_pool2d(images, 2 * RADIUS + 1, 1)
        cut = MARGIN - RADIUS if options.method == "smooth" else MARGIN
        kept = images[:, :, cut:-cut, cut:-cut]
        kept = 1 - kept if options.inverted else kept
        if len(rows) > MAX_BATCH_SIZE:
            kept = kept + 1
        return {"images": kept.repeat_interleave(options.scale, 2).repeat_interleave(options.scale, 3)}
