"""Whole numbers as JSON has them: to JSON Schema 4.0 is an integer, to Python it is a float."""

from collections.abc import Mapping
from typing import Any

_EXACT = 2.0**64
"""Floats from here on are left alone: they are larger than any integer that a field takes."""


def whole(value: Any) -> Any:
    """Return a float without a fraction as an int, and anything else as it is."""
    return int(value) if type(value) is float and -_EXACT < value < _EXACT and value.is_integer() else value


def whole_numbers(schema: Mapping[str, Any], value: Any) -> Any:
    """Return a JSON value with whole floats as ints wherever its JSON Schema asks for an integer.

    Properties and items are followed to any depth; what the schema does not describe stays as it is.
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
    """Return a JSON value with all whole floats as ints, so that 4.0 and 4 make the same fingerprint."""
    if isinstance(value, dict):
        return {name: canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    return whole(value)
