"""What is wrong with values that a client sent, by the JSON Schema that they should follow."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

_MOST = 8
_LONGEST = 300
_DEEP = "a value is nested too deeply or is no Unicode text; send plain numbers and words"


class InvalidOptionsError(ValueError):
    """Values that cannot be; `errors` lists each field and what is wrong with it."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("; ".join(f"{error['field']}: {error['detail']}" for error in errors))
        self.errors = errors


def _shown(name: str) -> str:
    """The name as text that JSON can carry: half a surrogate pair becomes a question mark."""
    return name.encode(errors="replace").decode()


def option_errors(
    given: Mapping[str, Any],
    rules: Mapping[str, Any],
    check: Any,
    part: str,
    noun: str,
    more: Callable[[str], str] = lambda _name: "",
) -> list[dict[str, str]]:
    """What the schema with the properties `rules` has against values, eight at most, their names below `part`.

    `check` is the schema's validator, `noun` what a property is called, `more` what a message goes on with.
    """
    unknown = [
        {"field": f"{part}.{_shown(name[:60])}", "detail": f"no such {noun}; there are: {', '.join(rules) or 'none'}"}
        for name in islice((name for name in given if name not in rules), _MOST)
    ]
    if unknown:
        return unknown
    try:
        errors = list(islice(check.iter_errors(given), _MOST))
    except ValueError:  # the checker follows some 250 levels, and takes no half surrogate pairs
        return [{"field": part, "detail": _DEEP}]
    found = []
    for error in errors:
        path = [str(step) for step in error.instance_path]
        detail = error.message[:_LONGEST] + (more(path[0]) if path else "")
        found.append({"field": ".".join([part, *path]), "detail": detail})
    return found
