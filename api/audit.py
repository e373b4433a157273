"""The audit log: one line for each deletion, switch, import and cancellation, and for each key that was refused."""

import logging
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import Request

log = logging.getLogger("api.audit")
log.setLevel(logging.INFO)  # written whatever REVERIE_LOG_LEVEL says

_DETAILS = "reverie_audit"


def record(action: str, *, owner: str, resource: str, status: int, request_id: str, **details: Any) -> None:
    """Write a line: who did what to which resource, and what came of it."""
    said = {"owner": owner, "action": action, "resource": resource, "outcome": outcome(status), "status": status}
    log.info("audit", extra={**said, "request_id": request_id, **details})


def outcome(status: int) -> str:
    """Return a status in a word."""
    if status == 499:
        return "client disconnected"
    if status == 202:
        return "accepted"
    return "done" if status < 400 else "refused" if status < 500 else "failed"


def describe(request: Request, **details: Any) -> None:
    """Add details to the request's line, such as the version that was chosen."""
    request.scope.setdefault(_DETAILS, {}).update(details)


def details_of(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """Return what a route has added."""
    found: dict[str, Any] = scope.get(_DETAILS, {})
    return found
