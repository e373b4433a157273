"""Reads how long a client waits for a result, from the `Prefer` request header (RFC 7240)."""

import re
from dataclasses import dataclass

from starlette.requests import Request

from core.settings import Settings

_ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*"?)+')
_BEFORE_PARAMETERS = re.compile(r'(?:[^;"]|"(?:[^"\\]|\\.)*"?)*')
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SECONDS = re.compile(r"[0-9]+")


def preferences(header: str) -> dict[str, str]:
    """Return the values of the preferences in a `Prefer` header, keyed by name in lower case.

    A preference without a value has the value "". Of several preferences with one name, the first
    counts. Parameters, which follow a `;`, are ignored.
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
    """How long a client waits for a result before its request becomes a job: `wait_s` seconds.

    `applied` is the value of the `Preference-Applied` header; empty if the client stated no
    preference.
    """

    wait_s: float
    applied: str

    @classmethod
    def of(cls, request: Request, settings: Settings, default_s: float | None = None) -> "Prefer":
        """Return the preference in a request's `Prefer` headers, which count as one list.

        Without a preference the client waits `default_s` seconds; None means the setting
        `sync_timeout_s`.
        """
        return cls.read(",".join(request.headers.getlist("prefer")), settings, default_s)

    @classmethod
    def read(cls, header: str, settings: Settings, default_s: float | None = None) -> "Prefer":
        """Return the preference in the value of a `Prefer` header.

        Without a preference the client waits `default_s` seconds; None means the setting
        `sync_timeout_s`. `wait=N` is in whole seconds and is limited by `max_sync_timeout_s`. It
        takes precedence over `respond-async`, which makes the request a job at once. As RFC 7240
        says, values that are not valid are ignored.
        """
        default = cls(settings.sync_timeout_s if default_s is None else default_s, "")
        if not header:
            return default
        stated = preferences(header)
        seconds = stated.get("wait", "")
        if _SECONDS.fullmatch(seconds):
            wait_s = int(min(float(seconds), settings.max_sync_timeout_s))  # `int` limits the number of digits
            return cls(wait_s, f"wait={wait_s}")
        return cls(0.0, "respond-async") if "respond-async" in stated else default

    @property
    def headers(self) -> dict[str, str]:
        """The header `Preference-Applied`; empty if the client stated no preference."""
        return {"Preference-Applied": self.applied} if self.applied else {}
