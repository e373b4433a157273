"""The recipe and the data of the small VAE that several tests train."""

from pathlib import Path
from typing import Any

from models.kit.recipe import Recipe

DIGITS = Path(__file__).parents[2] / "fixtures" / "digits-images-idx3-ubyte.gz"
"""The digits on which it is trained."""


def recipe(training: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Recipe:
    """Return a recipe of a small VAE: three epochs of six steps."""
    return Recipe.from_json(
        {
            "family": "vae",
            "name": "tiny",
            "summary": "for tests",
            "data": str(DIGITS),
            "seed": 7,
            "config": {"hidden": [20], "latents": 3, **(config or {})},
            "training": {"epochs": 3, "batch_size": 50, "validation": 100, "average": 0.9, **(training or {})},
        }
    )
