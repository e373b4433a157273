"""Checks the parameters of the OpenAI-compatible routes, and cuts their lists into pages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from api.dependencies import check_cursor
from api.errors import InvalidError
from api.openai_errors import UNKNOWN_PARAMETER

Item = TypeVar("Item")


def known_only(extra: Mapping[str, Any] | None, known: Iterable[str], more: str = "") -> dict[str, Any]:
    """Return the parameters in `extra` whose value is not null.

    Raises InvalidError if one of them is not in `known`; its message lists the known names and ends
    with `more`.
    """
    given = {name: value for name, value in (extra or {}).items() if value is not None}
    unknown = sorted(name[:60] for name in given if name not in known)[:10]
    if unknown:
        detail = f"no such parameter: {', '.join(unknown)}; there are: {', '.join(sorted(known))}{more}"
        errors = [{"field": name, "detail": "no such parameter"} for name in unknown]
        raise InvalidError(detail, errors=errors, code=UNKNOWN_PARAMETER)
    return given


def following(items: Sequence[Item], after: str) -> Sequence[Item]:
    """Return the items after the one with the id `after`; all of them for an empty `after`.

    Raises InvalidError if there is no such item.
    """
    ids = [getattr(item, "id") for item in items]  # noqa: B009 - of any record with an id
    check_cursor(after, known=after in ids)
    return items[ids.index(after) + 1 :] if after else items
