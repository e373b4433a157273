"""`GET /v1/me`: who the caller is, what it may do, and what it uses of its limits."""

import orjson
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.access import caller_of
from api.key_file import ROLES
from api.openapi import answered
from api.responses.render import JSON
from api.routes.operations import AppState

_NUMBERS = {"type": "object", "additionalProperties": {"type": ["integer", "null"]}}
_ME = {
    "type": "object",
    "required": ["name", "roles", "limits", "usage"],
    "properties": {
        "object": {"const": "caller"},
        "name": {"type": ["string", "null"], "description": "Of the key; null where keys are not used"},
        "roles": {"type": "array", "items": {"enum": list(ROLES)}},
        "key_expires_at": {"type": ["string", "null"]},
        "limits": {**_NUMBERS, "description": "null is no limit"},
        "usage": {**_NUMBERS, "description": "Of these limits; of waiting requests and rows, in this API process"},
    },
}


def add_me(app: FastAPI, app_state: AppState) -> None:
    """Put the route into the application."""
    router = APIRouter(prefix="/v1")

    @router.get(
        "/me",
        summary="Who you are here, and your limits",
        tags=["access"],
        response_class=Response,
        responses=answered(_ME),
    )
    async def me(request: Request) -> Response:
        caller = caller_of(request.scope)
        body = {
            "object": "caller",
            "name": caller.name or None,
            "roles": [role for role in ROLES if role in caller.roles],
            "key_expires_at": caller.key_expiry,
            "limits": app_state.quotas.limits(caller),
            "usage": {**app_state.batch_sender.usage(caller.name), **await app_state.quotas.usage(caller)},
        }
        return Response(orjson.dumps(body), 200, {"Cache-Control": "no-store"}, JSON)

    app.include_router(router)
