"""Validate a client's values against a JSON Schema, and convert whole numbers to int.

JSON Schema accepts 4.0 as an integer; Python reads it as a float.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

_MAX_ERRORS = 8
_MAX_DETAIL_CHARACTERS = 300
_TOO_DEEP = "a value is nested too deeply or is no Unicode text; send plain numbers and words"

# Whole floats outside of this range stay floats: orjson writes no larger integers.
_SMALLEST, _ABOVE_LARGEST = -(2.0**63), 2.0**64

FieldError = dict[str, str]  # `field` and `detail` of one error, as problem+json lists it


class InvalidOptionsError(ValueError):
    """Raised for values that their JSON Schema rejects.

    `errors` lists at most eight invalid fields, each with `field` and `detail`.
    """

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(f"{error['field']}: {error['detail']}" for error in errors))
        self.errors = errors


def option_errors(
    values: Mapping[str, Any],
    properties: Mapping[str, Any],
    validator: Any,
    part: str,
    noun: str,
    hint: Callable[[str], str] = lambda _name: "",
) -> list[FieldError]:
    """Return the validation errors of `values`, at most eight, each with `field` and `detail`.

    If `values` has names that are not in `properties`, only these are reported; otherwise the
    errors are those of `validator`, of jsonschema_rs, whose schema has these `properties`. The
    names of fields begin with `part` and a dot. `noun` is the word for a property in messages, such
    as "option". `hint(name)` is appended to the message of a property.
    """
    unknown = list(islice((name for name in values if name not in properties), _MAX_ERRORS))
    if unknown:
        detail = f"no such {noun}; there are: {', '.join(properties) or 'none'}"
        return [{"field": f"{part}.{_encodable(name[:60])}", "detail": detail} for name in unknown]
    try:
        errors = list(islice(validator.iter_errors(values), _MAX_ERRORS))
    except ValueError:  # the validator supports some 250 levels, and no lone surrogates
        return [{"field": part, "detail": _TOO_DEEP}]
    return [_field_error(error, part, hint) for error in errors]


def _field_error(error: Any, part: str, hint: Callable[[str], str]) -> FieldError:
    path = [str(step) for step in error.instance_path]
    detail = error.message[:_MAX_DETAIL_CHARACTERS] + (hint(path[0]) if path else "")
    return {"field": ".".join([part, *path]), "detail": detail}


def _encodable(name: str) -> str:
    """Return a name with "?" for each lone surrogate, which JSON cannot contain."""
    return name.encode(errors="replace").decode()


# --- whole numbers ---


def whole(value: Any) -> Any:
    """Return a float without a fraction as an int, and any other value unchanged.

    A float beyond 64-bit integers is unchanged, too.
    """
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

    So requests with 4.0 and 4 have the same hash, by which a repeated request is recognised.
    """
    if isinstance(value, dict):
        return {name: canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(inner) for inner in value]
    return whole(value)
