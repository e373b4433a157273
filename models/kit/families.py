"""What each family can be trained with: JSON Schemas of its options, and the recipe that overrides begin from."""

from __future__ import annotations

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
    """Each family that can be trained → {"summary", "data", "players", "smallest_batches", "config", "training",
    "recipe"}.

    `data`: "photographs" for a family that enlarges pictures, else "pictures", whose shape is that of its `Config`.
    `smallest_batches`: the fewest pictures of a step, each {"pictures", "when"}, `when` being a JSON Schema of the
    config; the largest whose schema holds counts, and where none does, one picture will do.
    `recipe` is what `models/recipes/FAMILY.json` says of config and training.
    """
    return {name: _describe_family(name) for name in families() if _is_trainable(name)}


def _is_trainable(name: str) -> bool:
    model = family(name).Model
    return hasattr(model, "loss") or hasattr(model, "training_steps")


def _describe_family(name: str) -> dict[str, Any]:
    module = family(name)
    with torch.device("meta"):
        model = module.Model(module.Config())
    found = [folder / f"{name}.json" for folder in _recipe_folders() if (folder / f"{name}.json").is_file()]
    recipe = json.loads(found[0].read_text()) if found else {}
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
    """What the default model tells of a family that says nothing itself."""
    pictures = smallest_batch(model)
    return [{"pictures": pictures, "when": {}}] if pictures > 1 else []


def _recipe_folders() -> list[Path]:
    return [Path(models.__path__[0]) / "recipes", *(Path(folder) for folder in list(models.__path__)[1:])]
