"""Describe options as frozen dataclasses; convert them to JSON Schema, and to and from JSON.

A field is an `int`, `float`, `bool` or `str`, one of these or `None`, or a `tuple[T, ...]` of them
(a JSON array).
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
MAX_ITEMS = 64  # maximum length of an array: no network has more layers

NUMBER_LIMIT = 2.0**1023  # numbers of at least this size, infinity and NaN are rejected

NAMES: dict[type, str] = {int: "integer", float: "number", bool: "boolean", str: "string", type(None): "null"}


# See docs/decisions.md#options-stay-dataclasses-json-schema-validates-them-in-the-api
def option(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    description: str = "",
) -> Any:
    """Declare a field of an options dataclass, with its default, range and description.

    `minimum` and `maximum` are inclusive, `above` and `below` exclusive bounds. `choices` are the
    values that are allowed. For a tuple, bounds and choices apply to each item.
    """
    rules = {
        "minimum": minimum,
        "maximum": maximum,
        "exclusiveMinimum": above,
        "exclusiveMaximum": below,
        "enum": None if choices is None else list(choices),
        "description": description or None,
    }
    return dataclasses.field(default=default, metadata={k: v for k, v in rules.items() if v is not None})


def binarization(note: str = "") -> Any:
    """Declare the option `binarization`, the way in which grey pixels become binary.

    `note` is appended to the option's description. Cards store descriptions, so do not change the
    text.
    """
    return option(
        "draw",
        choices=("draw", "threshold", "none"),
        description="how grey pixels become binary: by a seeded Bernoulli draw (binary ones stay as they are), at 0.5,"
        f" or not at all{note}",
    )


def importance_samples(default: int, minimum: int = 2, maximum: int = 100_000) -> Any:
    """Declare the option `k`, the number of importance samples per image, and its range."""
    return option(default, minimum=minimum, maximum=maximum, description="importance samples an image")


def json_schema(cls: type) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of an options dataclass.

    In the schema every field is optional and has its default; no other fields are allowed.
    """
    hints = typing.get_type_hints(cls)
    properties: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        rules = dict(field.metadata)
        described = {"description": rules.pop("description")} if "description" in rules else {}
        is_array, kinds = _types_of(hints[field.name])
        names = [NAMES[kind] for kind in kinds]
        if type(None) in kinds and "enum" in rules:
            rules["enum"] = [*rules["enum"], None]
        property_schema = {"type": names[0] if len(names) == 1 else names, **rules}
        if is_array:
            property_schema = {"type": "array", "items": property_schema, "maxItems": MAX_ITEMS}
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        properties[field.name] = {**property_schema, "default": default, **described}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def from_json(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return an instance of the dataclass `cls` with the given JSON values of its fields.

    Fields without a value have their default. Raises ValueError, whose message names the first
    field that is unknown, of the wrong type or out of range.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(fields))}")
    return cls(**{name: _validate_field(fields[name], hints[name], value) for name, value in values.items()})


def to_json(instance: Any) -> dict[str, Any]:
    """Return the JSON values of a dataclass instance, keyed by field; tuples become lists."""
    values = dataclasses.asdict(instance)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _types_of(hint: Any) -> tuple[bool, tuple[type, ...]]:
    """Return whether a field with the type hint `hint` is an array, and the types of its values.

    Examples: `int | None` → (False, (int, NoneType)); `tuple[int, ...]` → (True, (int,)).
    """
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return True, arguments[:1]
    return False, arguments or (hint,)


def _validate_field(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Return a field's JSON value as its type; raise ValueError if it is not valid."""
    is_array, kinds = _types_of(hint)
    if is_array:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{field.name} must be an array of {NAMES[kinds[0]]}s, not {_shortened_repr(value)}")
        if len(value) > MAX_ITEMS:
            raise ValueError(f"{field.name} must have at most {MAX_ITEMS} items, not {len(value)}")
        return tuple(_validate_scalar(field, kinds, item) for item in value)
    return _validate_scalar(field, kinds, value)


def _validate_scalar(field: dataclasses.Field[Any], kinds: tuple[type, ...], value: Any) -> Any:
    """Return `value` as one of the types `kinds`, after a check against the rules of `field`.

    A float without a fraction, such as 2.0, is a valid integer. Raises ValueError if the value has
    another type or is out of the field's range.
    """
    if value is None and type(None) in kinds:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < NUMBER_LIMIT
    if number and int in kinds and value == int(value):
        value = int(value)
    elif number and float in kinds:
        value = float(value)
    elif not (isinstance(value, bool | str) and type(value) in kinds):
        raise ValueError(
            f"{field.name} must be of type {' or '.join(NAMES[k] for k in kinds)}, not {_shortened_repr(value)}"
        )
    rules = field.metadata
    if "enum" in rules and value not in rules["enum"]:
        raise ValueError(f"{field.name} must be one of {', '.join(rules['enum'])}, not {_shortened_repr(value)}")
    if (
        value < rules.get("minimum", value)
        or value > rules.get("maximum", value)
        or ("exclusiveMinimum" in rules and value <= rules["exclusiveMinimum"])
        or ("exclusiveMaximum" in rules and value >= rules["exclusiveMaximum"])
    ):
        raise ValueError(f"{field.name} must lie in {_format_interval(rules)}, not {_shortened_repr(value)}")
    return value


def _shortened_repr(value: Any) -> str:
    """Return the repr of a value for an error message, cut to 60 characters and "…"."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _format_interval(rules: Mapping[str, Any]) -> str:
    """Return the range that a field's rules allow, in interval notation, e.g. "[0, 1)"."""
    left = f"[{rules['minimum']}" if "minimum" in rules else f"({rules.get('exclusiveMinimum', '-∞')}"
    right = f"{rules['maximum']}]" if "maximum" in rules else f"{rules.get('exclusiveMaximum', '∞')})"
    return f"{left}, {right}"
