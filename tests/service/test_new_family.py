"""A new family needs one Python file and one recipe to be trained, published and sampled."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

from core.catalog.families import FamilyDescription
from tests.datasets import add_digits
from tests.stack import ROOT, Stack
from tests.waiting import wait_until

FAMILY = '''"""Independent pixels: a Bernoulli variable for each."""

from dataclasses import dataclass

import torch
from torch import nn

from models.kit.operations import describe
from models.kit.row_streams import FIRST_FREE, RowStreams
from models.kit.schema import option


@dataclass(frozen=True)
class Config:
    """Shape of the images."""

    channels: int = option(1, minimum=1, maximum=1)
    height: int = option(14, minimum=1, maximum=64, description="pixels")
    width: int = option(14, minimum=1, maximum=64, description="pixels")


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`."""

    temperature: float = option(1.0, above=0.0, maximum=100.0, description="divides the logits")


@dataclass(frozen=True)
class EnergyOptions:
    """Options of `energy`."""


class Model(nn.Module):
    """One logit for each pixel."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.zeros(config.channels, config.height, config.width))

    def initialise(self, rows: RowStreams) -> None:
        """Start from even odds."""

    def operations(self):
        """Return the operations that the methods below define."""
        return describe(self)

    def loss(self, images, rows: RowStreams, epoch: int = 0):
        """Return -log p(x) of each image, (B,), in nats."""
        pixels = nn.functional.binary_cross_entropy_with_logits(self.logits.expand_as(images), images, reduction="none")
        return pixels.flatten(1).sum(1)

    def sample(self, rows: RowStreams, options: SampleOptions):
        """Draw images; {"images": (B, C, H, W)}."""
        draws = rows.uniform(self.logits.numel(), FIRST_FREE).view(-1, *self.logits.shape)
        return {"images": (draws < torch.sigmoid(self.logits / options.temperature)).float()}

    def energy(self, images, rows: RowStreams, options: EnergyOptions):
        """Return {"energies": (B,)}, the negative log-likelihood in nats."""
        return {"energies": self.loss(images, rows)}
'''
RECIPE: dict[str, Any] = {
    "family": "pixels",
    "name": "pixels",
    "summary": "Independent pixels",
    "data": "mnist",
    "seed": 1,
    "config": {},
    "training": {"epochs": 3, "batch_size": 50, "learning_rate": 0.1},
}


@pytest.fixture
def family_folder(tmp_path: Path) -> Path:
    """A folder with the family's Python file and its recipe."""
    folder = tmp_path / "families"
    folder.mkdir()
    (folder / "pixels.py").write_text(FAMILY)
    (folder / "pixels.json").write_text(json.dumps(RECIPE))
    return folder


@pytest.fixture
def service(tmp_path: Path, family_folder: Path) -> Iterator[Stack]:
    """A service with a dataset and no models but those of the new family."""
    running = Stack(
        tmp_path / "service",
        extra_models=str(family_folder),
        checkpoints=str(tmp_path / "no-checkpoints"),
        log_level="warning",
    )
    add_digits(running)
    with running:
        yield running


def test_one_command_describes_it(family_folder: Path) -> None:
    """`python -m models families` lists the new family and its recipe with those of the
    repository.
    """
    command = [sys.executable, "-m", "models", "families", "--extra-models", str(family_folder)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout
    families = TypeAdapter(dict[str, FamilyDescription]).validate_json(printed)
    assert {"vae", "bihm", "ebgan", "superres", "pixels"} <= set(families)
    pixels = families["pixels"]
    assert pixels.summary == "Independent pixels: a Bernoulli variable for each."
    assert pixels.recipe["training"] == RECIPE["training"]
    assert set(pixels.config["properties"]) == {"channels", "height", "width"}


def test_it_is_trained_published_and_sampled(service: Stack) -> None:
    """The family's options are listed, and a training makes a version with reproducible
    operations.
    """
    with httpx.Client(base_url=service.url, timeout=60) as client:
        families = _poll(client, "/v1/families", lambda body: "pixels" in {one["name"] for one in body["data"]})
        assert "vae" in {one["name"] for one in families["data"]}
        body = {"family": "pixels", "dataset": "digits", "name": "my-pixels", "evaluation": {"count": 40}}
        created = client.post("/v1/trainings", json=body)
        assert created.status_code == 202, created.text
        address = f"/v1/trainings/{created.json()['id']}"
        training = _poll(client, address, lambda job: job["status"] in {"succeeded", "failed"})
        assert training["status"] == "succeeded", training

        card = client.get("/v1/models/my-pixels").json()
        assert (card["family"], card["version"], card["image"]["height"]) == ("pixels", "1", 14)
        assert card["figures"][0]["name"] == "loss"
        assert set(card["operations"]) == {"samples", "energies"}

        samples = {"model": "my-pixels", "count": 3, "seed": 7, "options": {"temperature": 0.5}}
        first, second = (client.post("/v1/samples", json=samples) for _ in range(2))
        assert (first.status_code, len(first.json()["images"])) == (200, 3), first.text
        assert first.json()["images"] == second.json()["images"]
        energies = client.post("/v1/energies", json={"model": "my-pixels", "images": first.json()["images"]})
        assert (energies.status_code, len(energies.json()["energies"])) == (200, 3), energies.text
        rejected = client.post("/v1/samples", json={**samples, "options": {"temperature": 0}})
        assert (rejected.status_code, rejected.json()["errors"][0]["field"]) == (422, "options.temperature")


def _poll(client: httpx.Client, path: str, is_done: Any) -> dict[str, Any]:
    """Repeat a GET until its body meets a condition; return the body."""

    def body() -> dict[str, Any] | None:
        fetched: dict[str, Any] = client.get(path).json()
        return fetched if is_done(fetched) else None

    return wait_until(body, f"{path} is as expected")
