"""The shipped super-resolution model in tiles, compared with the image in one piece."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.imaging.tiling import Tiling
from models.kit import card
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "superres-photos" / "1" / "model.safetensors"


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the checkpoint does not ship here")
@pytest.mark.parametrize("method", ["bicubic", "mse", "statistics"])
@pytest.mark.parametrize("tile_pixels", [3000, 5000], ids=["divided along both axes", "along one"])
def test_tiles_show_no_seam(method: str, tile_pixels: int) -> None:
    """Tiles differ from the image in one piece by at most one of 255 levels, at the largest
    scale.
    """
    model, fields = card.load(CHECKPOINT)
    margin = fields["operations"]["upscale"]["margin"]
    options: Any = from_json(
        options_of(model, "upscale"), {"scale": max(fields["config"]["scales"]), "method": method, "fidelity": 0.0}
    )

    def made(images: np.ndarray, margins: tuple[int, int]) -> np.ndarray:
        low = torch.from_numpy(images).float() / 255
        with torch.inference_mode():
            high: torch.Tensor = model.upscale(low, RowStreams.range(0, 0, len(low)), options, margins=margins)[
                "images"
            ]
        pixels: np.ndarray = high.mul(255).round().clamp(0, 255).byte().numpy()
        return pixels

    picture = _picture(115, 125)
    tiling = Tiling.fit(115, 125, tile_pixels, margin)
    tiles = tiling.cut(lambda begin, end: picture[begin:end], 0, tiling.count)
    joined = np.concatenate(list(tiling.bands((made(one[None], tiling.margins)[0] for one in tiles), options.scale)))
    below, right = tiling.lines * tiling.core[0] - 115, tiling.columns * tiling.core[1] - 125
    down, across = tiling.margins
    whole = np.pad(picture, ((down, down + below), (across, across + right), (0, 0)), "symmetric")
    once = made(whole.transpose(2, 0, 1)[None], tiling.margins)[0].transpose(1, 2, 0)
    assert tiling.count > 4
    assert tiling.margins == ((margin, margin) if tile_pixels == 3000 else (0, margin))
    assert np.abs(joined.astype(int) - once[: len(joined), : joined.shape[1]]).max() <= 1


def _picture(height: int, width: int) -> np.ndarray:
    """Return an image with edges and texture at several scales."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(x / 3 + y / 17) + 40 * np.sign(np.sin(x * y / 900))
    noise = random.normal(0, 20, (height, width, 3))
    return np.asarray((waves[:, :, None] + noise).clip(0, 255), np.uint8)
