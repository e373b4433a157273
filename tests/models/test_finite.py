"""Operations return finite numbers for any image: blank, full, checkered, square or noise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from models import bihm, ebgan, superres, vae
from models.kit import card
from models.kit.operations import Continuation, options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json

CHECKPOINTS = sorted((Path(__file__).parents[2] / "checkpoints").glob("*/*/model.safetensors"))
FEW = {"k": 20, "draws": 3, "steps": 2, "inner": 2, "pool": 4}


def plain(channels: int, height: int, width: int) -> torch.Tensor:
    """Return images unlike any training image."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    made = [torch.full((height, width), level) for level in (0.0, 0.5, 1.0)]
    made += [((x // size + y // size) % 2).float() for size in (1, 4)]
    made += [(y % 2).float(), (x < width // 2).float(), (y < height // 2).float()]
    for share in (8, 4, 3, 2):
        inside = ((x - width // 2).abs() <= width // share) & ((y - height // 2).abs() <= height // share)
        made += [inside.float(), 1.0 - inside.float()]
    made.append(((x < width // 2) & (y < height // 2)).float())
    noise = RowStreams.range(1, 0, 8).uniform(height * width).view(8, height, width)
    pictures = torch.cat([torch.stack(made), noise, (noise < 0.5).float()])
    return pictures[:, None].expand(-1, channels, -1, -1).contiguous()


def results(model: Any, operation: str, pictures: torch.Tensor, **options: Any) -> dict[str, Any]:
    """Return the final result of an operation for these images."""
    known: Any = options_of(model, operation)
    names = {field.name for field in dataclasses.fields(known)}
    chosen = from_json(known, {**{k: v for k, v in FEW.items() if k in names}, **options})
    inputs = model.operations()[operation]["inputs"]
    rows = RowStreams.range(3, 0, len(pictures))
    arguments = [pictures.flip(0) if name == "second" else pictures for name in inputs]
    if operation == "interpolate":
        rows = RowStreams.range(3, 0, 2)
        arguments = [pictures[:1].expand(2, -1, -1, -1), pictures[-1:].expand(2, -1, -1, -1)]
    if inputs == ["codes"]:
        stated = model.code_format()
        rows = RowStreams.range(3, 0, 3)
        levels = torch.tensor([stated.minimum, stated.maximum, 0.5])  # both bounds are allowed
        arguments = [levels[:, None].expand(3, stated.sizes[-1]).contiguous()]
    if "mask" in inputs:
        half = torch.zeros_like(pictures)
        half[..., : half.shape[-1] // 2] = 1.0
        arguments[-1] = half
    answer = getattr(model, operation)(*arguments, rows, chosen)
    while isinstance(answer, Continuation):
        answer = getattr(model, operation)(*arguments, rows, chosen, answer.state)
    result: dict[str, Any] = answer
    return result


def check(model: Any, pictures: torch.Tensor) -> None:
    """Check that all results of a model's operations on images are finite."""
    for operation, entry in model.operations().items():
        if not entry["inputs"]:
            continue
        kinds = [{"method": way} for way in ("bicubic", "tv", "mse")] if operation == "upscale" else [{}]
        for options in kinds:
            for field, value in results(model, operation, pictures, **options).items():
                if isinstance(value, torch.Tensor):
                    assert torch.isfinite(value).all(), (operation, options, field, value)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, marks=[pytest.mark.slow] if "superres" in str(path) else []
        )  # `test_a_family` has a small one
        for path in CHECKPOINTS
    ],
    ids=[path.parent.parent.name for path in CHECKPOINTS],
)
def test_a_shipped_model_returns_finite_numbers(path: Path) -> None:
    """Results are finite also for images far from the training data."""
    model, described = card.load(path)
    image = described["image"]
    tiled = "upscale" in described["operations"]
    edges = (48, 48) if tiled else (image["height"], image["width"])
    pictures = plain(image["channels"], *edges)
    check(model, pictures[::9] if tiled else pictures)


@pytest.mark.parametrize(
    "model",
    [
        vae.Model(vae.Config(hidden=(32,), latents=4)),
        vae.Model(vae.Config(hidden=(32, 32), latents=2, activation="relu", likelihood="gaussian")),
        bihm.Model(bihm.Config(hidden=(20, 10, 5))),
        ebgan.Model(ebgan.Config(size_g=16, size_d=16, latents=4)),
        ebgan.Model(ebgan.Config(size_g=16, size_d=16, latents=4, objective="gan", architecture="conv")),
        superres.Model(superres.Config(features=8, blocks=1)),
    ],
    ids=["vae", "vae-gaussian", "bihm", "ebgan", "gan", "superres"],
)
def test_a_family_returns_finite_numbers(model: Any) -> None:
    """Results are finite with weights twenty times their size, so that logits and
    variances are extreme.
    """
    model.initialise(RowStreams.range(3, 0, 1))
    for parameter in model.parameters():
        parameter.data.mul_(20.0)
    tiled = "upscale" in model.operations()
    check(model.eval(), plain(3, 48, 48)[::9] if tiled else plain(1, 28, 28))


def test_values_in_range_are_unchanged() -> None:
    """A log variance within the limit is not changed, and training applies no limit."""
    encoder = vae.Gaussian((4, 8), 2, "tanh")
    x = torch.rand(5, 4)
    with torch.no_grad():
        assert torch.equal(encoder(x)[1], encoder.log_variance(encoder.trunk(x)))
        encoder.log_variance.bias.fill_(100.0)
        assert float(encoder(x)[1].max()) == vae.LOG_VARIANCE_LIMIT
    assert float(encoder(x)[1].detach().min()) > 90.0
