"""The `Prefer` request header (RFC 7240): how long a client waits for a synchronous response."""

import re
from dataclasses import dataclass

from core.settings import Settings

_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_BEFORE_PARAMETERS = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)*')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SECONDS = re.compile(r"[0-9]+")
_MAX_DIGITS = 9


def preferences(header: str) -> dict[str, str]:
    """Return the preferences of a header, by lower-case name; "" for one without a value.

    The first of duplicates counts. Parameters, which follow a `;`, are ignored.
    """
    values: dict[str, str] = {}
    for element in _ELEMENT.findall(header):
        match = _BEFORE_PARAMETERS.match(element)
        name, _, value = (match.group() if match else "").partition("=")
        quoted = _QUOTED.fullmatch(value.strip())
        text = re.sub(r"\\(.)", r"\1", quoted.group(1)) if quoted else value.strip()
        values.setdefault(name.strip().lower(), text)
    return values


@dataclass(frozen=True)
class Prefer:
    """How long to wait for a result before the request becomes a job, and the `Preference-Applied` that says so."""

    wait_s: float
    applied: str

    @classmethod
    def read(cls, header: str, settings: Settings, default_s: float | None = None) -> "Prefer":
        """Return the preference of a header (several headers are joined by commas); without one, the default.

        `wait=N` of whole seconds is cut to the longest that the service waits; with `respond-async` beside it, it says
        after what time the request is to be a job. Values that are no delay are ignored, as RFC 7240 has it.
        """
        default = cls(settings.sync_timeout_s if default_s is None else default_s, "")
        if not header:
            return default
        stated = preferences(header)
        seconds = stated.get("wait", "")
        if _SECONDS.fullmatch(seconds):
            digits = seconds.lstrip("0")
            longest = int(settings.max_sync_timeout_s)
            wait_s = longest if len(digits) > _MAX_DIGITS else min(int(digits or "0"), longest)
            return cls(wait_s, f"wait={wait_s}")
        return cls(0.0, "respond-async") if "respond-async" in stated else default
