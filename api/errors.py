"""Errors of requests: one class per kind, with its status and title; the response is an RFC 9457 problem."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, ClassVar

import orjson
from starlette.requests import Request
from starlette.responses import Response

from core.storage import lacks_space, reason_of

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 8
"""Entries of `errors` in a problem; further errors show once these are corrected."""

MAX_DETAIL, MAX_ERROR_TEXT = 1500, 500
"""Characters of a problem's detail, and of each text in its errors."""

GONE = "the result has expired; send the request again with the same seed for the same bytes"


class ProblemError(Exception):
    """An error whose response is a problem; `detail` says what happened and what would work."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    type: ClassVar[str] = "about:blank"

    def __init__(self, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> None:
        """Extension members of the body come as keywords."""
        super().__init__(detail)
        self.detail = detail
        self.headers = headers or {}
        self.more = more

    def response(self, request_id: str) -> Response:
        """Return the response."""
        body = problem(self.status, self.title, self.detail, self.type)
        return respond(request_id, {**body, **self.more}, self.headers)


class MalformedError(ProblemError):
    """A body or parameter that cannot be read at all."""

    status, title = 400, "Malformed request"


class UnauthorizedError(ProblemError):
    """A request without a key, or with an unknown one."""

    status, title = 401, "Not authorized"


class ForbiddenError(ProblemError):
    """A request that the caller's key does not permit."""

    status, title = 403, "Not allowed"


class NotFoundError(ProblemError):
    """An unknown model, job, dataset or route."""

    status, title = 404, "Not found"


class NotAcceptableError(ProblemError):
    """An `Accept` header that no format of the response matches."""

    status, title = 406, "No acceptable form"


class StalledError(ProblemError):
    """A request that did not arrive in time."""

    status, title = 408, "Request timeout"


class ConflictError(ProblemError):
    """A request that the state of a resource does not allow."""

    status, title = 409, "Not in this state"


class GoneError(ProblemError):
    """A result that has expired."""

    status, title = 410, "Expired"


class TooLargeError(ProblemError):
    """A body over the limit."""

    status, title = 413, "Body too large"


class UnsupportedMediaError(ProblemError):
    """A body of a type that the route does not accept."""

    status, title = 415, "Unsupported content type"


class RangeError(ProblemError):
    """A byte range outside the result."""

    status, title = 416, "Range not satisfiable"


class MisdirectedError(ProblemError):
    """A `Host` that is not one of the service's names."""

    status, title = 421, "Misdirected request"


class InvalidError(ProblemError):
    """A request that can be parsed but is not valid; `errors` names the fields."""

    status, title = 422, "Invalid request"


class TooManyRequestsError(ProblemError):
    """A request beyond a limit of its caller, which `limit` names; `Retry-After` says when to try again."""

    status, title = 429, "Too many requests"
    type = "https://iana.org/assignments/http-problem-types#quota-exceeded"


class OverloadedError(ProblemError):
    """More work than the service can take now; `Retry-After` says when to try again."""

    status, title = 503, "Overloaded"
    type = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"


class FullError(ProblemError):
    """A disk without room for the request."""

    status, title = 507, "Disk full"


class ModelFailedError(ProblemError):
    """An error that a model or its worker reported, with its status and title."""

    status, title = 500, "Model failed"


class NoMethodError(ProblemError):
    """A method that the route does not have; `Allow` lists those that it has."""

    status, title = 405, "Method not allowed"


ALL = tuple(sorted(ProblemError.__subclasses__(), key=lambda kind: kind.status))


TITLES = {kind.status: kind.title for kind in ALL}


def problem(status: int, title: str, detail: str, kind: str = "about:blank", **more: Any) -> dict[str, Any]:
    """Return the JSON body of a problem (RFC 9457); `kind` is its `type`, `more` are further members."""
    return {"type": kind, "title": title, "status": status, "detail": detail, **more}


def field_errors(errors: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the first of pydantic's errors as the members of a problem's `errors`."""
    return [{"field": ".".join(map(str, one["loc"])), "detail": one["msg"]} for one in islice(errors, MAX_ERRORS)]


def _bounded(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a problem with at most `MAX_ERRORS` errors, and with texts of bounded length."""
    errors = [
        {name: _shortened(value, MAX_ERROR_TEXT) for name, value in one.items()}
        for one in body.get("errors", ())[:MAX_ERRORS]
    ]
    return {**body, "detail": _shortened(body["detail"], MAX_DETAIL), **({"errors": errors} if errors else {})}


def _shortened(text: Any, limit: int) -> Any:
    return text[: limit - 1] + "…" if isinstance(text, str) and len(text) > limit else text


def respond(request_id: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return the response with a problem as its body."""
    content = orjson.dumps({**_bounded(body), "request_id": request_id})
    return Response(content, body["status"], {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def storage_error(error: OSError) -> ProblemError:
    """Return the error for a request that cannot be stored: 507 for a full disk, 503 otherwise."""
    if lacks_space(error):
        return FullError(
            f"the store has no room for this request ({reason_of(error)}); delete ended jobs, or try again later",
            headers={"Retry-After": "30"},
        )
    return OverloadedError(
        f"the request could not be stored: {reason_of(error)}; try again later", headers={"Retry-After": "30"}
    )


def request_id_of(request: Request) -> str:
    """Return the id of a request, as in logs and jobs."""
    return str(request.scope.get("reverie_request_id", ""))
