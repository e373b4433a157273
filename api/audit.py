"""Writes the audit log.

It has one line for each deletion, activation, import, cancellation and rejected key.
"""

import logging
from typing import Any

from starlette.requests import Request

log = logging.getLogger("api.audit")
log.setLevel(logging.INFO)  # independent of REVERIE_LOG_LEVEL

DETAILS = "reverie_audit"  # key of the ASGI scope for the details that `describe` has added


def record(action: str, *, owner: str, resource: str, status: int, request_id: str, **details: Any) -> None:
    """Write a line to the audit log.

    `action` is a word for what was done, such as "delete", and `resource` the URL path to which it
    was done. `status` is the HTTP status of the response; `details` are further fields of the line.
    """
    fields = {"owner": owner, "action": action, "resource": resource, "outcome": outcome(status), "status": status}
    log.info("audit", extra={**fields, "request_id": request_id, **details})


def outcome(status: int) -> str:
    """Return the word by which the audit log names the result of a request with an HTTP status.

    202: "accepted", 499: "client disconnected", other 4xx: "refused", 5xx: "failed", all others:
    "done".
    """
    if status == 499:
        return "client disconnected"
    if status == 202:
        return "accepted"
    return "done" if status < 400 else "refused" if status < 500 else "failed"


def describe(request: Request, **details: Any) -> None:
    """Add details, such as the activated version, to the request's line in the audit log."""
    request.scope.setdefault(DETAILS, {}).update(details)
