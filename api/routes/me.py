"""`GET /v1/me`: who the caller is, what it may do, and what it uses of its limits."""

from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import CurrentCaller, State
from api.key_file import ROLES
from api.openapi import answered
from api.responses.json import json_response

router = APIRouter(prefix="/v1", tags=["access"])

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


@router.get("/me", summary="Who you are here, and your limits", response_class=Response, responses=answered(_ME))
async def get_me(state: State, caller: CurrentCaller) -> Response:
    """Return the caller's name, roles, limits and usage."""
    body = {
        "object": "caller",
        "name": caller.name or None,
        "roles": [role for role in ROLES if role in caller.roles],
        "key_expires_at": caller.key_expiry,
        "limits": state.quotas.limits(caller),
        "usage": {**state.batch_sender.usage(caller.name), **await state.quotas.usage(caller)},
    }
    return json_response(body, {"Cache-Control": "no-store"})
