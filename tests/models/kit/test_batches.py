"""`models.kit.batches`: every step has a large enough batch, for any number of images."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch

from models import ebgan
from models.kit.batches import batch_count, batches, smallest_batch
from models.kit.estimate import estimate
from models.kit.recipe import Recipe
from models.kit.train import train

SMALL: dict[str, dict[str, Any]] = {
    "vae": {"hidden": [8], "latents": 2},
    "bihm": {"hidden": [6, 4], "samples": 3},
    "ebgan": {"size_g": 8, "size_d": 8, "latents": 2},
    "ebgan-conv": {"size_g": 4, "size_d": 4, "latents": 2, "architecture": "conv"},
    "ebgan-pt": {"size_g": 8, "size_d": 8, "latents": 2, "pulling_away": 0.1},
    "gan": {"size_g": 8, "size_d": 8, "latents": 2, "objective": "gan"},
    "superres": {"features": 4, "blocks": 1},
}
FAMILIES = {"gan": "ebgan", "ebgan-conv": "ebgan", "ebgan-pt": "ebgan"}


def recipe(kind: str, batch_size: int, edge: int = 8, **training: Any) -> Recipe:
    """Return a recipe with two epochs of a small model."""
    shape = {} if kind == "superres" else {"height": edge, "width": edge}
    return Recipe.from_json(
        {
            "family": FAMILIES.get(kind, kind),
            "name": "m",
            "summary": "for tests",
            "data": "none",
            "config": {**SMALL[kind], **shape},
            "training": {"epochs": 2, "batch_size": batch_size, "binarization": "none", **training},
        }
    )


def pictures(kind: str, count: int, edge: int = 8) -> torch.Tensor:
    """Return noise images of the family's size."""
    shape = (3, 96, 96) if kind == "superres" else (1, edge, edge)
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(1)).byte()


@pytest.mark.parametrize(("count", "size"), list(itertools.product(range(1, 14), range(1, 14))))
def test_batches_hold_every_picture_once_and_enough_each(count: int, size: int) -> None:
    """Every image occurs once; a remainder that is too small joins the batch before it;
    `batch_count` agrees.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    for least in (1, 2, 4):
        if size < least or count < least:
            with pytest.raises(ValueError, match=f"takes at least {least} pictures"):
                batches(order, size, least)
            continue
        cut = batches(order, size, least)
        assert torch.equal(torch.cat(list(cut)), order)
        assert len(cut) == batch_count(count, size, least)
        assert all(len(batch) >= least for batch in cut)
        assert all(len(batch) == size for batch in cut[:-1])
        if count % size == 0 or count % size >= least:
            assert [len(batch) for batch in cut] == [len(batch) for batch in torch.split(order, size)]
            assert len(cut) == math.ceil(count / size)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize(("count", "size"), [(10, 3), (5, 4), (3, 2)])
def test_every_family_trains_whatever_the_last_batch(tmp_path: Path, kind: str, count: int, size: int) -> None:
    """Training works with a last batch of one image, and the estimate counts the same steps."""
    made = recipe(kind, size)
    images = pictures(kind, count)
    lines: list[dict[str, Any]] = []
    assert train(made, images, tmp_path / "run", report=lines.append).reason == "finished"
    assert math.isfinite(lines[-1]["train_loss"])
    assert lines[-1]["images"] == 2 * count
    place = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert place["steps"] == place["steps_total"] == lines[-1]["steps"]
    assert estimate(made, images, None, seconds=0.0)["steps"] == lines[-1]["steps"]


@pytest.mark.parametrize("kind", SMALL)
def test_a_batch_size_of_one_trains_or_is_refused_before_the_first_step(tmp_path: Path, kind: str) -> None:
    """If a layer is normalised over the batch only, size 1 is rejected and the message
    names the smallest size.
    """
    made, images = recipe(kind, 1), pictures(kind, 3)
    if kind in {"ebgan", "ebgan-pt", "gan"}:
        with pytest.raises(ValueError, match=r"batch_size = 1 is too small; .* at least 2 pictures"):
            train(made, images, tmp_path / "run")
        with pytest.raises(ValueError, match="batch_size = 1"):
            estimate(made, images, None)
        with pytest.raises(ValueError, match="1 training pictures are too few"):
            train(recipe(kind, 5), images[:1], tmp_path / "run")
        return
    assert train(made, images, tmp_path / "run").reason == "finished"


@pytest.mark.parametrize(
    ("batch_norm", "architecture", "layers_g", "edge"),
    list(itertools.product([True, False], ["mlp", "conv"], [1, 2, 3], [4, 8])),
)
def test_smallest_batch_schemas_agree_with_the_model(
    batch_norm: bool,
    architecture: str,
    layers_g: int,
    edge: int,
) -> None:
    """The JSON Schemas for the API, `smallest_batch` and the layers' behaviour
    with one image agree.
    """
    config = ebgan.Config(
        height=edge,
        width=edge,
        batch_norm=batch_norm,
        architecture=architecture,
        layers_g=layers_g,
        size_g=4,
        size_d=4,
        latents=2,
    )
    model = ebgan.Model(config)
    cases: list[dict[str, Any]] = ebgan.SMALLEST_BATCHES
    sizes = [case["pictures"] for case in cases if jsonschema_rs.validator_for(case["when"]).is_valid(vars(config))]
    assert max(sizes, default=1) == smallest_batch(model)
    try:
        model.generator(torch.zeros(1, 2))
    except ValueError:
        assert smallest_batch(model) == 2
    else:
        assert smallest_batch(model) == 1


def test_smallest_batch_defaults_to_the_layers() -> None:
    """Without `smallest_batch`, a model with batch normalisation needs two images."""
    assert smallest_batch(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))) == 2
    assert smallest_batch(torch.nn.Linear(2, 2)) == 1
