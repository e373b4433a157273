"""`models.kit.preview`: one small PNG for any kind of model."""

from __future__ import annotations

import io
from typing import Any

import torch
from PIL import Image

from models import superres, vae
from models.kit.preview import preview
from models.kit.row_streams import RowStreams


def test_samples_fill_the_preview() -> None:
    """At most a hundred samples are shown, equal for equal seeds; the model's
    training mode is kept.
    """
    model = vae.Model(vae.Config(height=14, width=14, hidden=(8,), latents=2))
    model.initialise(RowStreams.range(1, 0, 1))
    images = torch.zeros(4, 1, 14, 14, dtype=torch.uint8)
    made = preview(model, images, 3)
    assert made == preview(model, images, 3) != preview(model, images, 4)
    assert made is not None
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (10 * 15 - 1, 10 * 15 - 1)
    assert model.training


def test_a_model_that_upscales_shows_upscaled_images() -> None:
    """Images are reduced first, so that the results have their original size."""
    model = superres.Model(superres.Config(blocks=1, features=4))
    model.initialise(RowStreams.range(1, 0, 1))
    made = preview(model, torch.randint(0, 255, (9, 3, 96, 96), dtype=torch.uint8), 1)
    assert made is not None
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (2 * 97 - 1, 2 * 97 - 1)


def test_a_model_without_images_has_no_preview() -> None:
    """There is no preview, and no error, if a model only encodes or rejects its default options."""

    class Silent(torch.nn.Module):
        def operations(self) -> dict[str, Any]:
            return {"encode": {}}

    assert preview(Silent(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 1) is None
