"""The picture of what a model makes, for each way in which it makes pictures."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from models.kit.preview import preview
from models.kit.rows import Rows
from models.superres import Config, Model


def test_pictures_are_reduced_and_enlarged_again() -> None:
    """A model that draws no samples shows pictures at their own size, however much of a tile it cuts off."""
    model = Model(Config(blocks=1, features=8))
    model.initialise(Rows.range(0, 2**62, 1))
    y, x = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    smooth = (127 + 100 * torch.sin(x / 30) * torch.cos(y / 20)).to(torch.uint8)
    made = preview(model, smooth.expand(4, 3, 96, 96), seed=0)
    assert made is not None
    with Image.open(io.BytesIO(made)) as picture:
        pixels = np.asarray(picture.convert("L")).astype(float)
    assert pixels.shape == (193, 193)
    assert abs(pixels[:96, :96] - smooth.numpy()).mean() < 10
