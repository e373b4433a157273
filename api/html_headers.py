"""Adds security headers to HTML responses.

The headers allow pages to load files of this service only, and forbid other sites to frame them.
"""

import base64
import hashlib
import re

from starlette.types import Message

_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_POLICY = b"content-security-policy"
_RULES = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
_INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def add_html_headers(start: Message) -> None:
    """Add the security headers to the start message of an HTML response, in place.

    A Content-Security-Policy that the response already has is kept.
    """
    headers: list[tuple[bytes, bytes]] = start["headers"]
    names = dict(headers)
    if names.get(b"content-type", b"").startswith(b"text/html"):
        headers.extend(header for header in _HEADERS if header[0] not in names)
        if _POLICY not in names:
            headers.append((_POLICY, _RULES.encode()))


def policy_of(page: str) -> str:
    """Return a Content-Security-Policy for the HTML `page`.

    It allows the inline scripts of the page and the scripts of this service, and no others.
    """
    digests = (hashlib.sha256(script.encode()).digest() for script in _INLINE_SCRIPT.findall(page))
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return f"{_RULES}; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
