"""`models.kit.families`: what the service knows of families without importing them."""

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
    """`python -m models families > core/catalog/families.json` keeps it current."""
    assert json.loads(FILE.read_text()) == json.loads(json.dumps(describe_families()))


@pytest.mark.parametrize("name", families())
def test_what_trainings_begin_from_is_a_recipe(name: str) -> None:
    """Each family's default recipe passes its own schemas."""
    recipe = json.loads((Path(models.__path__[0]) / "recipes" / f"{name}.json").read_text())
    assert Recipe.from_json(recipe).family == recipe["name"] == name
