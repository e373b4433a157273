"""Parameters that OpenAI-compatible routes check themselves."""

from collections.abc import Iterable, Mapping
from typing import Any

from api.errors import InvalidError
from api.openai_errors import UNKNOWN_PARAMETER


def known_only(extra: Mapping[str, Any] | None, known: Iterable[str], more: str = "") -> dict[str, Any]:
    """Return the parameters in `extra`, without those that are null.

    Raises InvalidError for one that is not in `known`; its message lists `known` and ends with
    `more`.
    """
    given = {name: value for name, value in (extra or {}).items() if value is not None}
    unknown = sorted(name[:60] for name in given if name not in known)[:10]
    if unknown:
        detail = f"no such parameter: {', '.join(unknown)}; there are: {', '.join(sorted(known))}{more}"
        errors = [{"field": name, "detail": "no such parameter"} for name in unknown]
        raise InvalidError(detail, errors=errors, code=UNKNOWN_PARAMETER)
    return given
