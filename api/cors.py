"""CORS: lets web pages of allowed origins call the service."""

from uuid import uuid4

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from api.errors import TITLES, problem, respond

CORS_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"),
    *("Last-Event-ID", "Prefer", "Range", "Request-Timeout", "X-Request-ID"),
    *("traceparent", "tracestate"),
    *("OpenAI-Organization", "OpenAI-Project"),  # these and the next are sent by OpenAI's client for JavaScript
    *(f"X-Stainless-{name}" for name in ("Arch", "Lang", "OS", "Package-Version", "Retry-Count", "Runtime")),
    *("X-Stainless-Runtime-Version", "X-Stainless-Timeout"),
)
CORS_RESPONSE_HEADERS = (
    *("Content-Location", "ETag", "Location", "Preference-Applied", "Retry-After"),
    *("RateLimit", "RateLimit-Policy", "traceresponse"),
    *("Reverie-Model", "Reverie-Seed", "Reverie-Device-Kind", "Reverie-Restarts", "X-Request-ID"),
)


class ProblemCORSMiddleware(CORSMiddleware):
    """Starlette's CORS middleware, with errors as `application/problem+json`."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight request.

        If the origin is not allowed, the response is an error that names the setting to change.
        """
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        detail = bytes(response.body).decode()
        if "origin" in detail:
            detail += "; the operator can add it to REVERIE_ALLOWED_ORIGINS"
        request_id = uuid4().hex  # preflights end before RequestMiddleware, which gives other requests theirs
        headers = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        body = problem(response.status_code, TITLES[response.status_code], detail)
        return respond(request_id, body, {**headers, "X-Request-ID": request_id})
