"""`models.kit.families`: the description of the families that the API uses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import models
from models.kit.card import families
from models.kit.families import describe_families
from models.kit.recipe import Recipe

FILE = Path(models.__path__[0]).parent / "core" / "catalog" / "families.json"


def test_the_file_says_what_the_families_say() -> None:
    """`core/catalog/families.json` is the output of `python -m models families`."""
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(describe_families()))


@pytest.mark.parametrize("name", families())
def test_default_recipes_are_valid(name: str) -> None:
    """Each family's default recipe is valid under its own schemas."""
    recipe = json.loads((Path(models.__path__[0]) / "recipes" / f"{name}.json").read_text())
    assert Recipe.from_json(recipe).family == recipe["name"] == name
