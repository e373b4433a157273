"""`models.kit.preview`: one small sheet, whatever a model makes."""

from __future__ import annotations

import io

import torch
from PIL import Image

from models import superres, vae
from models.kit.preview import preview
from models.kit.row_streams import RowStreams


def test_samples_fill_the_sheet() -> None:
    """Small samples come a hundred at a time at most, the same for a seed; the model's mode stays."""
    model = vae.Model(vae.Config(height=14, width=14, hidden=(8,), latents=2))
    model.initialise(RowStreams.range(1, 0, 1))
    images = torch.zeros(4, 1, 14, 14, dtype=torch.uint8)
    made = preview(model, images, 3)
    assert made == preview(model, images, 3) != preview(model, images, 4)
    assert made is not None
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (10 * 15 - 1, 10 * 15 - 1)
    assert model.training


def test_a_model_that_enlarges_shows_what_it_makes_of_small_pictures() -> None:
    """Pictures are reduced first, so that they come back in their own size."""
    model = superres.Model(superres.Config(blocks=1, features=4))
    model.initialise(RowStreams.range(1, 0, 1))
    made = preview(model, torch.randint(0, 255, (9, 3, 96, 96), dtype=torch.uint8), 1)
    assert made is not None
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (2 * 97 - 1, 2 * 97 - 1)


def test_one_that_makes_no_pictures_has_none() -> None:
    """No sheet, and no error, of a model that encodes alone, or refuses."""

    class Silent(torch.nn.Module):
        def operations(self) -> dict:
            return {"encode": {}}

    assert preview(Silent(), torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 1) is None
