"""Text fields of forms and queries: their values, and which count as left out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from api.errors import InvalidError

BOOLEANS: Mapping[str, bool] = {
    **dict.fromkeys(("true", "1", "on", "yes"), True),
    **dict.fromkeys(("false", "0", "off", "no"), False),
}
"""Booleans as HTML forms, shells and Python write them, in lower case."""


def given(values: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the fields by name without empty ones. Raises InvalidError for a field that is given twice."""
    filled = [(name, value) for name, value in values if value.strip()]
    twice = sorted(name[:60] for name, times in Counter(name for name, _ in filled).items() if times > 1)
    if twice:
        raise InvalidError(f"given more than once: {', '.join(twice[:10])}; send each field once")
    return dict(filled)


def json_value(text: str) -> Any:
    """Return the number or JSON value of a text, or the text itself if it is neither."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def option_value(text: str, rule: Mapping[str, Any]) -> Any:
    """Return the value of a text for an option with this JSON Schema."""
    kind = rule.get("type", ())
    kinds = {kind} if isinstance(kind, str) else set(kind)
    if "boolean" in kinds and text.strip().lower() in BOOLEANS:
        return BOOLEANS[text.strip().lower()]
    value = json_value(text)
    return text if kinds == {"string"} and not isinstance(value, str) else value
