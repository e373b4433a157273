"""Exception handlers: every error becomes `application/problem+json`."""

import logging
import traceback
from collections.abc import Callable, Coroutine
from typing import Any

import sqlalchemy.exc
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount

from api.errors import (
    TITLES,
    FullError,
    OverloadedError,
    ProblemError,
    field_errors,
    problem,
    request_id_of,
    respond,
    storage_error,
)
from core.storage import lacks_space, reason_of

log = logging.getLogger(__name__)


async def handle_problem(request: Request, error: Exception) -> Response:
    """Return the response of a ProblemError."""
    assert isinstance(error, ProblemError)  # noqa: S101 - registered for this class alone
    traceback.clear_frames(error.__traceback__)  # they may hold megabytes of a body while the response is being sent
    return error.response(request_id_of(request))


async def handle_http(request: Request, error: Exception) -> Response:
    """Return the response of what the router raises: unknown paths and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class alone
    status, headers = error.status_code, dict(error.headers or {})
    detail = error.detail
    if status == 404:
        detail = f"no such route: {request.url.path[:200]}; see /docs"
    elif status == 405:
        headers = {"Allow": ", ".join(allowed_methods(request))}
        detail = f"{request.method} is not possible here; allowed: {headers['Allow']}"
    elif isinstance(error.__cause__, ValueError):  # FastAPI hides why it cannot read a body
        detail = f"the body cannot be read: {str(error.__cause__).partition(';')[0]}"
    body = problem(status, TITLES.get(status, "Refused"), detail)
    return respond(request_id_of(request), body, headers)


def allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes with a request's path."""
    allowed: set[str] = set()
    for method in ("DELETE", "GET", "PATCH", "POST"):
        scope = {**request.scope, "method": method}
        routes = (route for route in request.app.router.routes if not isinstance(route, Mount))
        if any(route.matches(scope)[0] is Match.FULL for route in routes):
            allowed.add(method)
    if "GET" in allowed and not request.url.path.endswith("/events"):  # see RequestMiddleware
        allowed.add("HEAD")
    return sorted(allowed) or ["GET", "HEAD"]  # of static files


async def handle_validation(request: Request, error: Exception) -> Response:
    """Return 422 with the fields that are not valid."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class alone
    errors = field_errors(error.errors())
    detail = "; ".join(f"{one['field']}: {one['detail']}" for one in errors)
    return respond(request_id_of(request), problem(422, "Invalid request", detail, errors=errors))


async def handle_database(request: Request, error: Exception) -> Response:
    """Return 507 for a full database, 503 for one that cannot be used now."""
    request_id = request_id_of(request)
    if lacks_space(error):
        log.error("database full", extra={"request_id": request_id, "reason": reason_of(error)})
        full = FullError(
            f"the job database has no room ({reason_of(error)}); delete ended jobs, or try again later",
            headers={"Retry-After": "30"},
        )
        return full.response(request_id)
    log.error("database not available", exc_info=error, extra={"request_id": request_id})
    overloaded = OverloadedError("the job database cannot be used now; try again later", headers={"Retry-After": "5"})
    return overloaded.response(request_id)


async def handle_os_error(request: Request, error: Exception) -> Response:
    """Return 507 for a full disk; any other OSError is an internal error."""
    if not isinstance(error, OSError) or not lacks_space(error):
        raise error
    log.error("disk full", extra={"request_id": request_id_of(request), "reason": reason_of(error)})
    return storage_error(error).response(request_id_of(request))


EXCEPTION_HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    ProblemError: handle_problem,
    RequestValidationError: handle_validation,
    HTTPException: handle_http,
    sqlalchemy.exc.OperationalError: handle_database,
    OSError: handle_os_error,
}
