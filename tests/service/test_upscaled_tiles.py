"""The shipped super-resolution model over HTTP: tiles that fit the picture, and cleaned pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from models.kit import card
from models.superres import UpscaleOptions
from tests.api.helpers import decode_image, encode_image, finished_job
from tests.stack import Stack

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "superres-photos" / "1" / "model.safetensors"
PATH = "/v1/upscales"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a service that has only the shipped super-resolution model."""
    folder = tmp_path_factory.mktemp("tiles")
    version = folder / "checkpoints" / "superres-photos" / "1"
    version.mkdir(parents=True)
    shutil.copy(CHECKPOINT, version / CHECKPOINT.name)
    with (
        Stack(folder / "state", checkpoints=str(folder / "checkpoints")) as stack,
        httpx.Client(base_url=stack.url, timeout=120) as client,
    ):
        yield client


def picture(height: int, width: int) -> np.ndarray:
    """Return an image with edges and texture."""
    y, x = np.mgrid[:height, :width]
    waves = 128 + 60 * np.sin(x / 3 + y / 17) + 40 * np.sign(np.sin(x * y / 900))
    noise = np.random.default_rng(5).normal(0, 10, (height, width, 3))
    return np.asarray((waves[:, :, None] + noise).clip(0, 255), np.uint8)


def in_one_piece(pixels: np.ndarray, **options: Any) -> np.ndarray:
    """Return the regression's result for a picture in one piece, computed here."""
    model, _ = card.load(CHECKPOINT)
    chosen = UpscaleOptions(method="mse", **options)
    low = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        clean = model.denoise(low, chosen.denoise) if chosen.denoise else low
        high: np.ndarray = model.regress(clean, chosen.scale).clamp(0, 1).mul(255).round().byte()[0].numpy()
    return high.transpose(1, 2, 0)


def upscaled(client: httpx.Client, pixels: np.ndarray, headers: dict[str, str], **fields: Any) -> httpx.Response:
    """Return the response to a picture that is enlarged by the regression."""
    data = {name: str(value) for name, value in {"method": "mse", **fields}.items()}
    return client.post(
        PATH, files={"image": ("picture", encode_image(Image.fromarray(pixels)))}, data=data, headers=headers
    )


SIZES = [(8, 8), (61, 37), (128, 128), (9, 500)]


@pytest.mark.parametrize(
    ("size", "denoise"),
    [
        *((size, 0.0) for size in SIZES),
        ((61, 37), 0.7),
        *(pytest.param(size, 0.7, marks=pytest.mark.slow) for size in SIZES if size != (61, 37)),
    ],
)
def test_a_small_picture_is_enlarged_in_one_piece(client: httpx.Client, size: tuple[int, int], denoise: float) -> None:
    """The result is that of the model for the whole picture, alone and as a job."""
    pixels = picture(*size)
    options = {"scale": 2, **({"denoise": denoise} if denoise else {})}
    response = upscaled(client, pixels, {"Prefer": "wait=60"}, **options)
    assert response.status_code == 200, response.text
    found = decode_image(response.content)
    assert np.abs(found.astype(int) - in_one_piece(pixels, scale=2, denoise=denoise)).max() <= 1
    created = upscaled(client, pixels, {"Prefer": "respond-async"}, **options)
    job = finished_job(client, created.json()["id"])
    assert job["request"]["tiles"]["count"] == 1
    assert (decode_image(client.get(job["links"]["result"]).content) == found).all()


@pytest.mark.parametrize(("denoise", "margin"), [pytest.param(0.0, 8, marks=pytest.mark.slow), (0.7, 16)])
def test_a_large_picture_is_divided(client: httpx.Client, denoise: float, margin: int) -> None:
    """Tiles of a large picture fit together; far from its borders it is that in one piece."""
    pixels = picture(210, 230)
    options = {"scale": 2, **({"denoise": denoise} if denoise else {})}
    created = upscaled(client, pixels, {"Prefer": "respond-async"}, **options)
    job = finished_job(client, created.json()["id"])
    tiles = job["request"]["tiles"]
    assert tiles["count"] > 1
    assert max(tiles["margins"]) == margin
    found = decode_image(client.get(job["links"]["result"]).content).astype(int)
    apart = np.abs(found - in_one_piece(pixels, scale=2, denoise=denoise))
    assert apart[40:-40, 40:-40].max() <= 1


def test_only_valid_strengths_are_accepted(client: httpx.Client) -> None:
    """A strength above 1 is rejected with the range."""
    response = upscaled(client, picture(8, 8), {}, denoise=1.5)
    assert response.status_code == 422
    assert "denoise" in response.text


def test_a_compressed_picture_is_cleaned(client: httpx.Client) -> None:
    """With `denoise`, the enlarged JPEG is nearer to the clean picture than without."""
    y, x = np.mgrid[:96, :96]
    smooth = np.repeat((128 + 90 * np.sin(x / 9) * np.cos(y / 11))[:, :, None], 3, 2)
    smooth[20:60, 30:34] = 20
    original = smooth.clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(original).save(stream, "JPEG", quality=20)
    compressed = np.asarray(Image.open(stream).convert("RGB"))
    wanted = in_one_piece(original, scale=2).astype(float)
    errors = []
    for options in ({}, {"denoise": 1.0}):
        response = upscaled(client, compressed, {"Prefer": "wait=60"}, scale=2, **options)
        errors.append(float(np.square(decode_image(response.content) - wanted).mean()))
    assert errors[1] < 0.7 * errors[0]
