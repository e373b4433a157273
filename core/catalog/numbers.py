"""Conversion of whole numbers in JSON: JSON Schema accepts 4.0 as an integer, Python reads a float."""

from collections.abc import Mapping
from typing import Any

_SMALLEST, _ABOVE_LARGEST = -(2.0**63), 2.0**64  # other floats stay floats: orjson writes no larger integers


def whole(value: Any) -> Any:
    """Return a float without a fraction as an int, and any other value unchanged."""
    fits = type(value) is float and _SMALLEST <= value < _ABOVE_LARGEST
    return int(value) if fits and value.is_integer() else value


def whole_numbers(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a JSON value with whole floats as ints wherever its JSON Schema requires an integer.

    Values that the schema does not describe do not change.
    """
    kinds = schema.get("type", ())
    if "integer" in ((kinds,) if isinstance(kinds, str) else kinds):
        return whole(value)
    if isinstance(value, dict) and isinstance(schema.get("properties"), dict):
        rules = schema["properties"]
        return {name: whole_numbers(rules[name], inner) if name in rules else inner for name, inner in value.items()}
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [whole_numbers(schema["items"], inner) for inner in value]
    return value


def canonical(value: Any) -> Any:
    """Return a JSON value with all whole floats as ints.

    This makes requests with 4.0 and 4 have the same fingerprint.
    """
    if isinstance(value, dict):
        return {name: canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    return whole(value)
