"""Error responses: exception classes, their RFC 9457 problems, and FastAPI's exception handlers.

Each class of `ProblemError` has one HTTP status and one title.
"""

import logging
import traceback
from collections.abc import Callable, Coroutine, Iterable, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, ClassVar, Self

import orjson
import sqlalchemy.exc
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from core.storage import DATABASE_UNAVAILABLE, ObjectStoreError, lacks_space, reason_of

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_TYPES = "https://iana.org/assignments/http-problem-types#"
MAX_ERRORS = 8  # most entries of `errors` in a problem
MAX_DETAIL, MAX_ERROR_TEXT = 1500, 500  # most characters of `detail`, and of each text in `errors`
GONE = "the result has expired; send the request again with the same seed for the same bytes"


class ProblemError(Exception):
    """An error that is sent as a problem response (RFC 9457).

    `detail` says what happened and what would work.
    """

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    type: ClassVar[str] = "about:blank"

    def __init_subclass__(cls, status: int, title: str, kind: str = "about:blank") -> None:
        """Set the status, title and type (`kind`) of the problems of a subclass."""
        super().__init_subclass__()
        cls.status, cls.title, cls.type = status, title, kind

    def __init__(
        self, detail: str, *, headers: dict[str, str] | None = None, retry_after_s: int | None = None, **more: Any
    ) -> None:
        """Set the detail, headers, and extension members (`more`) of the problem.

        `retry_after_s` becomes the header `Retry-After`.
        """
        super().__init__(detail)
        self.detail = detail
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        self.headers |= headers or {}
        self.more = more

    def response(self, request_id: str) -> Response:
        """Return the HTTP response, with `request_id` as a member of the problem."""
        body = problem(self.status, self.title, self.detail, self.type)
        return respond(request_id, {**body, **self.more}, self.headers)


class MalformedError(ProblemError, status=400, title="Malformed request"):
    """The body or a parameter cannot be parsed."""


class UnauthorizedError(ProblemError, status=401, title="Not authorized"):
    """The request has no API key, or an unknown or expired one."""


class ForbiddenError(ProblemError, status=403, title="Not allowed"):
    """The caller may not do this: its key lacks a role, or the resource has another owner."""


class NotFoundError(ProblemError, status=404, title="Not found"):
    """The model, job, dataset or route does not exist, or the caller may not see it."""


class NoMethodError(ProblemError, status=405, title="Method not allowed"):
    """The route does not have this method. The `Allow` header lists its methods."""


class NotAcceptableError(ProblemError, status=406, title="No acceptable form"):
    """The response has no format that the `Accept` header allows."""


class StalledError(ProblemError, status=408, title="Request timeout"):
    """The request did not arrive in time."""


class ConflictError(ProblemError, status=409, title="Not in this state"):
    """The state of the resource does not allow the request."""


class GoneError(ProblemError, status=410, title="Expired"):
    """The result has expired or was deleted."""


class TooLargeError(ProblemError, status=413, title="Body too large"):
    """The body is larger than its route accepts."""


class UnsupportedMediaError(ProblemError, status=415, title="Unsupported content type"):
    """The route does not accept this content type or content encoding."""


class RangeError(ProblemError, status=416, title="Range not satisfiable"):
    """The requested byte range lies outside the result."""


class MisdirectedError(ProblemError, status=421, title="Misdirected request"):
    """The `Host` header names a host that this service is not configured to serve."""


class InvalidError(ProblemError, status=422, title="Invalid request"):
    """The request can be parsed but is not valid. `errors` lists the invalid fields."""

    @classmethod
    def in_field(cls, field: str, detail: str) -> Self:
        """Return the error for one invalid field: its name and what is wrong with it."""
        return cls(f"{field}: {detail}", errors=[{"field": field, "detail": detail}])

    @classmethod
    def in_fields(cls, fields: Iterable[str], detail: str) -> Self:
        """Return the error for one or more invalid fields, whose names are not added to `detail`."""
        return cls(detail, errors=[{"field": field, "detail": detail} for field in fields])

    @classmethod
    def of_validation(cls, errors: Iterable[Mapping[str, Any]]) -> Self:
        """Return one error that lists the first `MAX_ERRORS` of pydantic's validation errors."""
        fields = [{"field": ".".join(map(str, one["loc"])), "detail": one["msg"]} for one in islice(errors, MAX_ERRORS)]
        return cls("; ".join(f"{one['field']}: {one['detail']}" for one in fields), errors=fields)


class TooManyRequestsError(ProblemError, status=429, title="Too many requests", kind=f"{_TYPES}quota-exceeded"):
    """The caller is over a limit, which the member `limit` names."""


class OverloadedError(ProblemError, status=503, title="Overloaded", kind=f"{_TYPES}temporary-reduced-capacity"):
    """The service cannot take more work now; the client should retry."""


class DeadlineExceededError(ProblemError, status=504, title="Deadline exceeded"):
    """The deadline of the request (`Request-Timeout`) passed before the request was done."""


class FullError(ProblemError, status=507, title="Disk full"):
    """The disk has no room for the request."""


class ModelFailedError(ProblemError, status=500, title="Model failed"):
    """A model failed, or its worker reported another problem."""

    @classmethod
    def of(cls, reported: dict[str, Any]) -> Self:
        """Return the error for the problem `reported` by a worker, with its status and title."""
        status = reported["status"]
        retry_after_s = 2 if status == OverloadedError.status else None
        return cls(reported["detail"], retry_after_s=retry_after_s, status=status, title=reported["title"])


ALL = tuple(sorted(ProblemError.__subclasses__(), key=lambda kind: kind.status))
TITLES = {kind.status: kind.title for kind in ALL}


def problem(status: int, title: str, detail: str, kind: str = "about:blank", **more: Any) -> dict[str, Any]:
    """Return the JSON body of a problem (RFC 9457).

    `kind` is its `type`; `more` are extension members.
    """
    return {"type": kind, "title": title, "status": status, "detail": detail, **more}


def respond(request_id: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return the response for the problem `body`, with `request_id` as a member.

    Long texts and long lists of errors are shortened.
    """
    first = body.get("errors", ())[:MAX_ERRORS]
    errors = [{name: _shortened(value, MAX_ERROR_TEXT) for name, value in one.items()} for one in first]
    bounded = {**body, "detail": _shortened(body["detail"], MAX_DETAIL), **({"errors": errors} if errors else {})}
    content = orjson.dumps({**bounded, "request_id": request_id})
    return Response(content, body["status"], {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def closing_response(status: int, detail: str, request_id: str) -> bytes:
    """Return the bytes of an HTTP/1.1 response with a problem, after which the connection is closed.

    For requests that are rejected before they reach the application.
    """
    phrase = HTTPStatus(status).phrase
    body = orjson.dumps({**problem(status, TITLES.get(status, phrase), detail), "request_id": request_id})
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        "cache-control: no-store",
        *(["retry-after: 2"] if status == 503 else []),
        "connection: close",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _shortened(text: Any, limit: int) -> Any:
    """Return a text cut to `limit` characters, the last of which is then "…"; other values
    unchanged.
    """
    return text[: limit - 1] + "…" if isinstance(text, str) and len(text) > limit else text


def storage_error(error: OSError) -> ProblemError:
    """Return the error for a request that cannot be stored: 507 if the disk is full, else 503."""
    reason = reason_of(error)
    if lacks_space(error):
        detail = f"the store has no room for this request ({reason}); delete ended jobs, or try again later"
        return FullError(detail, retry_after_s=30)
    return OverloadedError(f"the request could not be stored: {reason}; try again later", retry_after_s=30)


def database_error(error: sqlalchemy.exc.SQLAlchemyError) -> ProblemError:
    """Return the error for a database that cannot be used now: 507 if its disk is full, else 503."""
    if lacks_space(error):
        detail = f"the job database has no room ({reason_of(error)}); delete ended jobs, or try again later"
        return FullError(detail, retry_after_s=30)
    return OverloadedError("the job database cannot be used now; try again later", retry_after_s=5)


def request_id_of(request: Request) -> str:
    """Return a request's id, which `RequestMiddleware` has set; empty without the middleware."""
    return str(request.scope.get("reverie_request_id", ""))


# --- exception handlers ---


async def handle_problem(request: Request, error: ProblemError) -> Response:
    """Return the response of a ProblemError.

    Also clears the local variables in its traceback, which may hold megabytes of a body.
    """
    traceback.clear_frames(error.__traceback__)  # they may hold megabytes of a body while the response is being sent
    return error.response(request_id_of(request))


async def handle_validation(request: Request, error: RequestValidationError) -> Response:
    """Return 422 with a list of the invalid fields that FastAPI has found."""
    return InvalidError.of_validation(error.errors()).response(request_id_of(request))


async def handle_http(request: Request, error: HTTPException) -> Response:
    """Return a problem for an HTTPException of FastAPI or Starlette, for example a 404 or 405."""
    status, headers, detail = error.status_code, dict(error.headers or {}), error.detail
    if status == 404:
        detail = f"no such route: {request.url.path[:200]}; see /docs"
    elif status == 405:
        headers = {"Allow": ", ".join(allowed_methods(request))}
        detail = f"{request.method} is not possible here; allowed: {headers['Allow']}"
    elif isinstance(error.__cause__, ValueError):  # FastAPI's own detail does not say why it cannot parse a body
        detail = f"the body cannot be read: {str(error.__cause__).partition(';')[0]}"
    return respond(request_id_of(request), problem(status, TITLES.get(status, "Refused"), detail), headers)


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes that match the request's path, sorted."""
    allowed: set[str] = set()
    for method in ("DELETE", "GET", "PATCH", "POST"):
        scope = {**request.scope, "method": method}
        routes = (route for route in request.app.router.routes if not isinstance(route, Mount))
        if any(route.matches(scope)[0] is Match.FULL for route in routes):
            allowed.add(method)
    if "GET" in allowed and not request.url.path.endswith("/events"):  # see RequestMiddleware
        allowed.add("HEAD")
    return sorted(allowed) or ["GET", "HEAD"]  # of static files


async def handle_database(request: Request, error: sqlalchemy.exc.SQLAlchemyError) -> Response:
    """Return the response for a failed write or read of the job database.

    The status is 507 if the disk of the database is full, else 503.
    """
    request_id = request_id_of(request)
    if lacks_space(error):
        log.error("database full", extra={"request_id": request_id, "reason": reason_of(error)})
    else:
        log.error("database not available", exc_info=error, extra={"request_id": request_id})
    return database_error(error).response(request_id)


async def handle_os_error(request: Request, error: OSError) -> Response:
    """Return the response for an OSError: 507 for a full disk, 503 for an error of an object store.

    Any other OSError is raised again.
    """
    if isinstance(error, ObjectStoreError) and not lacks_space(error):
        detail = f"{reason_of(error)}; try again later"
        return OverloadedError(detail, retry_after_s=5).response(request_id_of(request))
    if not lacks_space(error):
        raise error
    log.error("disk full", extra={"request_id": request_id_of(request), "reason": reason_of(error)})
    return storage_error(error).response(request_id_of(request))


EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProblemError: handle_problem,
    RequestValidationError: handle_validation,
    HTTPException: handle_http,
    **dict.fromkeys(DATABASE_UNAVAILABLE, handle_database),
    OSError: handle_os_error,
}
