"""Records the span of an HTTP request.

Its parent is the client's `traceparent`, and the response header `traceresponse` names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import Scope

from core import tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_SCOPE_KEY = "reverie_traceparent"
_ERROR = 500


class RequestSpan:
    """The span of one request, with OpenTelemetry's standard attributes for HTTP servers."""

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], request_id: str) -> None:
        """Start the span, make it current, and store its `traceparent` in the scope.

        Call it only if tracing is on.
        """
        parent = headers.get(b"traceparent", b"").decode("latin-1") or tracing.ROOT
        attributes = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope.get("scheme", "http"),
            "network.protocol.version": scope.get("http_version", "1.1"),
            "reverie.request_id": request_id,
        }
        self._method = scope["method"]
        self.span: Span | None = tracing.start(scope["method"], parent, kind="server", attributes=attributes)
        self._token = tracing.make_current(self.span)
        scope[_SCOPE_KEY] = self.traceparent = tracing.traceparent(self.span)

    def end(self, route: str, status: int, owner: str) -> None:
        """Name the span after the route, and end it; its parent becomes the current span again.

        `route` and `owner` may be empty; `status` is the HTTP status of the response.
        """
        if self.span is None:
            return
        tracing.restore_current(self._token)
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - only with tracing

        self.span.set_attribute("http.response.status_code", status)
        if route:
            self.span.update_name(f"{self._method} {route}")
            self.span.set_attribute("http.route", route)
        if owner:
            self.span.set_attribute("enduser.id", owner)
        if status >= _ERROR:
            self.span.set_attribute("error.type", str(status))
            self.span.set_status(StatusCode.ERROR)
        self.span.end()


def traceparent_of(scope: Scope) -> str:
    """Return the `traceparent` of a request's span; empty without tracing."""
    return str(scope.get(_SCOPE_KEY, ""))
