"""`models.kit.schema`: options to JSON Schema, and from JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from models.kit.schema import from_json, json_schema, option, to_json


@dataclass(frozen=True)
class Example:
    """One field of each kind."""

    count: int = option(3, minimum=1, maximum=5, description="how many")
    heat: float = option(1.0, above=0.0, maximum=2.0)
    limit: float | None = option(None, above=0.0)
    word: str = option("a", choices=("a", "b"))
    sizes: tuple[int, ...] = option((1, 2), minimum=1)
    on: bool = option(default=False)


def test_the_schema_says_type_range_and_default() -> None:
    """Each field has its type, range, choices, default and description; other
    names are not allowed.
    """
    schema = json_schema(Example)
    assert schema["additionalProperties"] is False
    assert schema["properties"] == {
        "count": {"type": "integer", "minimum": 1, "maximum": 5, "default": 3, "description": "how many"},
        "heat": {"type": "number", "exclusiveMinimum": 0.0, "maximum": 2.0, "default": 1.0},
        "limit": {"type": ["number", "null"], "exclusiveMinimum": 0.0, "default": None},
        "word": {"type": "string", "enum": ["a", "b"], "default": "a"},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 1}, "maxItems": 64, "default": [1, 2]},
        "on": {"type": "boolean", "default": False},
    }


def test_values_come_back_typed() -> None:
    """Whole floats are valid integers, integers valid floats, arrays valid tuples; omitted
    fields get their default.
    """
    made = from_json(Example, {"count": 4.0, "heat": 1, "limit": None, "sizes": [7], "on": True})
    assert made == Example(count=4, heat=1.0, limit=None, sizes=(7,), on=True)
    assert isinstance(made.count, int)
    assert isinstance(made.heat, float)
    assert from_json(Example, to_json(made)) == made


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, r"count must lie in \[1, 5\], not 0"),
        ({"count": 6}, r"count must lie in \[1, 5\]"),
        ({"count": 2.5}, "count must be of type integer"),
        ({"count": True}, "count must be of type integer"),
        ({"count": "3"}, "count must be of type integer"),
        ({"count": None}, "count must be of type integer"),
        ({"heat": 0}, r"heat must lie in \(0.0, 2.0\]"),
        ({"heat": float("nan")}, "heat must be of type number"),
        ({"heat": float("inf")}, "heat must be of type number"),
        ({"limit": -1}, r"limit must lie in \(0.0, ∞\)"),
        ({"word": "c"}, "word must be one of a, b"),
        ({"word": 1}, "word must be of type string"),
        ({"sizes": 1}, "sizes must be an array of integers"),
        ({"sizes": [1, 0]}, r"sizes must lie in \[1, ∞\)"),
        ({"on": 1}, "on must be of type boolean"),
        ({"other": 1}, "unknown field 'other'"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], message: str) -> None:
    """An invalid value raises ValueError with the field's name and the allowed values."""
    with pytest.raises(ValueError, match=message):
        from_json(Example, values)
