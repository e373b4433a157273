"""Describe the options with which each family can be trained, as JSON Schemas for the API."""

import json
from pathlib import Path
from typing import Any

import torch

import models
from models.kit.batches import smallest_batch
from models.kit.card import families, family
from models.kit.recipe import Training
from models.kit.schema import json_schema


def describe_families() -> dict[str, Any]:
    """Return a description of each family that can be trained, keyed by name.

    A description has the fields "summary", "data", "players", "smallest_batches", "config",
    "training" and "recipe". "data" is "photographs" for a family that enlarges images, otherwise
    "pictures". "players" are the names of the submodules that have optimizers of their own.
    "smallest_batches" are entries {"pictures", "when"}: the minimum batch size is the largest
    "pictures" whose JSON Schema "when" matches the config, and 1 if none does. "config" and
    "training" are JSON Schemas. "recipe" has config and training of `models/recipes/FAMILY.json`,
    the defaults for a new recipe.
    """
    kinds = [(name, family(name).Model) for name in families()]
    trainable = [name for name, model in kinds if hasattr(model, "loss") or hasattr(model, "training_steps")]
    return {name: _describe_family(name) for name in trainable}


def _describe_family(name: str) -> dict[str, Any]:
    """Return the description of one family; `describe_families` lists its fields."""
    module = family(name)
    with torch.device("meta"):
        model = module.Model(module.Config())
    shipped, *extra = map(Path, models.__path__)
    paths = [folder / f"{name}.json" for folder in (shipped / "recipes", *extra)]
    recipe: dict[str, Any] = next((json.loads(path.read_text()) for path in paths if path.is_file()), {})
    pictures = smallest_batch(model)
    smallest_batches = [{"pictures": pictures, "when": {}}] if pictures > 1 else []
    return {
        "summary": (module.__doc__ or name).strip().partition("\n")[0].removesuffix(":"),
        "data": "photographs" if hasattr(module.Model, "upscale") else "pictures",
        "players": list(getattr(model, "OPTIMIZED_MODULES", ())),
        "smallest_batches": getattr(module, "SMALLEST_BATCHES", smallest_batches),
        "config": json_schema(module.Config),
        "training": json_schema(Training),
        "recipe": {part: recipe.get(part, {}) for part in ("config", "training")},
    }
