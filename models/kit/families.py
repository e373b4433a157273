"""Describe the training options of every family as JSON Schemas, for the API."""

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
    """Return the description of each trainable family by name.

    Each has the fields "summary", "data", "players", "smallest_batches", "config", "training" and
    "recipe". `data` is "photographs" for a family that enlarges images, else "pictures", whose
    shape is in its `Config`. `players` are its `OPTIMIZED_MODULES`. `smallest_batches` are entries
    {"pictures", "when"}: the smallest batch is the largest "pictures" whose JSON Schema "when"
    matches the config, and 1 if none matches. `recipe` has config and training of
    `models/recipes/FAMILY.json`.
    """
    return {name: _describe_family(name) for name in families() if _is_trainable(name)}


def _is_trainable(name: str) -> bool:
    model = family(name).Model
    return hasattr(model, "loss") or hasattr(model, "training_steps")


def _describe_family(name: str) -> dict[str, Any]:
    module = family(name)
    with torch.device("meta"):
        model = module.Model(module.Config())
    paths = [folder / f"{name}.json" for folder in _recipe_folders() if (folder / f"{name}.json").is_file()]
    recipe = json.loads(paths[0].read_text()) if paths else {}
    return {
        "summary": (module.__doc__ or name).strip().partition("\n")[0].removesuffix(":"),
        "data": "photographs" if hasattr(module.Model, "upscale") else "pictures",
        "players": list(getattr(model, "OPTIMIZED_MODULES", ())),
        "smallest_batches": getattr(module, "SMALLEST_BATCHES", _min_batch_entries(model)),
        "config": json_schema(module.Config),
        "training": json_schema(Training),
        "recipe": {part: recipe.get(part, {}) for part in ("config", "training")},
    }


def _min_batch_entries(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Return the entry of a family without `SMALLEST_BATCHES`, from its default model."""
    pictures = smallest_batch(model)
    return [{"pictures": pictures, "when": {}}] if pictures > 1 else []


def _recipe_folders() -> list[Path]:
    return [Path(models.__path__[0]) / "recipes", *(Path(folder) for folder in list(models.__path__)[1:])]
