"""`GET /v1/me`: the caller's name, roles, limits and usage."""

from fastapi import APIRouter, Response

from api.auth import ROLES
from api.dependencies import CurrentCaller, State
from api.responses.render import JsonRoute
from api.schemas.service import CallerResponse

router = APIRouter(prefix="/v1", tags=["access"], route_class=JsonRoute)


@router.get("/me", summary="The caller, its limits and usage")
async def get_me(response: Response, state: State, caller: CurrentCaller) -> CallerResponse:
    """Return the caller's name, roles, limits and usage."""
    response.headers["Cache-Control"] = "no-store"
    return CallerResponse(
        object="caller",
        name=caller.name or None,
        roles=[role for role in ROLES if role in caller.roles],
        key_expires_at=caller.key_expiry,
        limits=state.quotas.limits(caller),
        usage={**state.batch_sender.usage(caller.name), **await state.quotas.usage(caller)},
    )
