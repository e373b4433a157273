"""The tour of docs/train.md, for every family: upload a dataset, train, and use the version."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.imaging.pictures import png
from reverie.client import Client
from tests.api.helpers import decode_image
from tests.datasets import DIGITS
from tests.stack import Stack

NAMES = ("vae", "bihm", "ebgan", "superres")
RECIPES: dict[str, dict[str, Any]] = {
    "vae": {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 2, "batch_size": 50}},
    "bihm": {"config": {"hidden": [12, 6], "samples": 3}, "training": {"epochs": 2, "batch_size": 50}},
    "ebgan": {"training": {"epochs": 1, "batch_size": 50}},
    "superres": {"config": {"blocks": 1, "features": 8}, "training": {"epochs": 1, "batch_size": 4}},
}


@pytest.fixture
def reverie(stack: Stack) -> Iterator[Client]:
    """A client of the shared service."""
    with Client(stack.url) as opened_client:
        yield opened_client


def pictures(path: Path) -> Path:
    """Write a ZIP of digits of 14×14 pixels; return its path."""
    from models.kit import data

    images = data.load(str(DIGITS)).images[:300, :, ::2, ::2].contiguous().numpy()
    return zipped(path, images)


def zipped(path: Path, images: Any) -> Path:
    """Write images as a ZIP of PNGs; return its path."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, pixels in enumerate(images):
            archive.writestr(f"{number:04}.png", png(pixels))
    return path


def vectors(path: Path) -> Path:
    """Write an NPZ of binary vectors near one of four patterns, in three splits; return its
    path.
    """
    random = np.random.default_rng(0)
    patterns = random.random((4, 20)) < 0.5
    rows = (patterns[random.integers(0, 4, 300)] ^ (random.random((300, 20)) < 0.05)).astype(np.uint8)
    np.savez(path, train=rows[:200], valid=rows[200:250], test=rows[250:])
    return path


def photographs(path: Path) -> Path:
    """Write a ZIP of colour images of several sizes; return its path."""
    random = np.random.default_rng(1)

    def photograph(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width] / 20
        waves = [np.sin(x * a + y * b) for a, b in random.normal(size=(3, 2))]
        return np.asarray(127 + 100 * np.stack(waves) + random.normal(0, 5, (3, height, width)), np.uint8)

    return zipped(path, (photograph(110 + 7 * number, 210 - 9 * number) for number in range(6)))


@pytest.mark.slow
@pytest.mark.timeout(900)  # eight processes import torch: half a minute on an idle machine, minutes on a busy one
def test_data_goes_in_and_a_model_comes_out(reverie: Client, tmp_path: Path) -> None:
    """Each family is trained on an upload, and version 1 of the new model can be used."""
    digits = reverie.upload_dataset("tour-digits", pictures(tmp_path / "digits.zip"))
    flags = reverie.upload_dataset("tour-flags", vectors(tmp_path / "flags.npz"))
    photos = reverie.upload_dataset("tour-photos", photographs(tmp_path / "photos.zip"), kind="photographs")
    assert [one.kind for one in (digits, flags, photos)] == ["pictures", "vectors", "photographs"]
    learnt = dict(zip(NAMES, (digits, flags, digits, photos), strict=True))
    trainings = {
        family: reverie.train(
            family,
            data.name,
            f"tour-{family}",
            recipe={**RECIPES[family], "seed": 3},
            evaluation={"count": 8, "k": 10},
        )
        for family, data in learnt.items()
    }
    for family, training in trainings.items():
        job = reverie.wait(training.id, 600)
        assert (job.status, job.problem) == ("succeeded", None)
        model = reverie.model(f"tour-{family}")
        assert (model.version, model.family) == ("1", family)
        assert model["provenance"]["data"]["sha256"] == learnt[family].sha256
        assert model.figures
        assert len(reverie.metrics(training.id)) == RECIPES[family]["training"]["epochs"]
    checks: dict[str, Callable[[], Any]] = {
        "tour-vae": lambda: decode_image(reverie.samples("tour-vae", 4, seed=1).images[0]).shape == (14, 14),
        "tour-bihm": lambda: len(reverie.samples("tour-bihm", 4, seed=1).images) == 4,
        "tour-ebgan": lambda: len(reverie.energies("tour-ebgan", [digit(digits.shape)])["energies"]) == 1,
    }
    for name, works in checks.items():
        assert works(), name
    (tmp_path / "small.png").write_bytes(png(np.zeros((3, 30, 40), np.uint8)))
    large = reverie.upscales(tmp_path / "small.png", tmp_path / "large.png", model="tour-superres", scale=4)
    assert decode_image(large.path.read_bytes()).shape == (120, 160, 3)
    assert large.made_by == "tour-superres@1"


def digit(shape: tuple[int, int, int]) -> bytes:
    """Return a PNG of a bright bar on black."""
    pixels = np.zeros(shape, np.uint8)
    pixels[:, 2:12, 6:8] = 255
    return png(pixels)
