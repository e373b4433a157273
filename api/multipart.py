"""Validation of the Content-Type of forms, before a parser relies on it."""

from python_multipart.multipart import parse_options_header

from api.errors import MalformedError

FORM = "multipart/form-data"
MAX_BOUNDARY = 70
"""Characters, by RFC 2046."""

_MAX_HEADER = 1000
_CHARSETS = frozenset({b"", b"utf-8", b"utf8", b"us-ascii", b"iso-8859-1", b"latin-1"})


def form_boundary(content_type: str) -> bytes:
    """Return the boundary of a form's parts. Raises MalformedError if it is missing or not valid."""
    if len(content_type) > _MAX_HEADER:
        raise MalformedError(f"the Content-Type has {len(content_type)} characters; let the client write that header")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedError("the Content-Type names no boundary of the parts; let the client write that header")
    if len(boundary) > MAX_BOUNDARY:
        raise MalformedError(f"the boundary in the Content-Type has {len(boundary)} characters, {MAX_BOUNDARY} at most")
    if options.get(b"charset", b"").lower() not in _CHARSETS:
        raise MalformedError("the charset of a form must be UTF-8")
    return boundary
