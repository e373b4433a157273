"""Models: list, get, update (active version, sharing) and delete them."""

from fastapi import APIRouter, Request, Response

from api import audit
from api.auth import Caller
from api.dependencies import CurrentCaller, State
from api.errors import ConflictError, NotFoundError
from api.openapi import PICTURE, UNCHANGED, bytes_response, no_content, problem_responses
from api.responses.render import PNG, JsonRoute, not_modified
from api.schemas.models import ModelChange, ModelPage, ModelResponse
from api.state import AppState
from api.versions import activate_version, find_version, is_created_here, remove_versions
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)


def model_response(state: AppState, caller: Caller, entry: ModelVersion) -> ModelResponse:
    """Return the response body for a version of a model: its card, versions, owner and links.

    The owner is None for callers that may not change the model.
    """
    card = entry.card.json
    operations = {BY_METHOD[method].path: spec for method, spec in card["operations"].items() if method in BY_METHOD}
    sheet = f"/v1/models/{entry.ref}/sheet"
    links = {"self": f"/v1/models/{entry.name}", "sheet": sheet, **{path: f"/v1/{path}" for path in operations}}
    fields = {"name": entry.name, "version": entry.version, "operations": operations, "links": links}
    fields |= {"versions": state.registry.versions(entry.name)}
    ownership = state.permissions.describe("model", entry.name, caller)
    return ModelResponse.model_validate({**card, **fields, **ownership})


@router.get("", summary="List models")
async def list_models(state: State, caller: CurrentCaller) -> ModelPage:
    """Return all models that the caller may use, with their active versions, sorted by name."""
    await state.permissions.refresh()
    models = state.permissions.models(caller).active()
    return ModelPage.of([model_response(state, caller, entry) for entry in models], "name")


@router.get("/{name}", summary="A model's card", responses=problem_responses(404))
async def get_model(state: State, caller: CurrentCaller, name: str) -> ModelResponse:
    """Return the active version of a model, or the version that `name@version` names."""
    return model_response(state, caller, await _find(state, caller, name))


async def _find(state: AppState, caller: Caller, name: str) -> ModelVersion:
    """Return the version that `name` or `name@version` names.

    Raises NotFoundError if there is no such version, or if the caller may not see the model.
    """
    await state.permissions.refresh()
    entry = state.permissions.models(caller).find(name)
    if entry is None:
        raise NotFoundError(f"no model {name[:120]!r}; GET /v1/models lists them")
    return entry


@router.get(
    "/{name}/sheet", summary="A model's sample sheet", **bytes_response({**PICTURE, **UNCHANGED}, 404, 429, 500, 503)
)
async def get_model_sheet(request: Request, state: State, caller: CurrentCaller, name: str) -> Response:
    """Return a PNG with samples of the active version, or of the version that `name@version` names.

    The PNG is the preview that was made at the version's publication or, if there is none, shows
    samples with seed 0 and default options. The status is 404 if the model has no preview and
    cannot draw samples.
    """
    entry = await _find(state, caller, name)
    sheet = await state.sheets.sheet(entry, caller)
    headers = {"ETag": f'"{sheet.digest[:32]}"', "Cache-Control": "private, no-cache", "Reverie-Model": entry.ref}
    return not_modified(request, headers) or Response(sheet.png, 200, headers, PNG)


@router.patch(
    "/{name}",
    summary="Choose the active version, and whether the model is shared",
    responses=problem_responses(400, 404, 409, 422, 503),
)
async def update_model(
    request: Request, state: State, caller: CurrentCaller, name: str, change: ModelChange
) -> ModelResponse:
    """Activate a version of a model, or set whether everybody may use the model, or both.

    The version is activated when all workers have loaded it. Workers that have not loaded it after
    `REVERIE_ROLLOUT_TIMEOUT_S` are stopped, and the version is activated on the others.
    """
    audit.describe(request, **change.model_dump(exclude_none=True))
    await find_version(state, caller, name)
    state.permissions.check_change("model", name, caller)
    if change.shared is not None:
        state.permissions.check_share("model", name, caller, shared=change.shared)
    if change.version is not None:
        reason = await activate_version(state, await find_version(state, caller, name, change.version))
        audit.describe(request, **({"rollout": reason} if reason else {}))
    if change.shared is not None:
        await state.permissions.share("model", name, caller, shared=change.shared)
    return model_response(state, caller, await find_version(state, caller, name))


@router.delete("/{name}", summary="Delete a model with all its versions", **no_content(403, 404, 409))
async def delete_model(request: Request, state: State, caller: CurrentCaller, name: str) -> None:
    """Delete a model with all its versions.

    The status is 409 if an unfinished job uses the model, or if one of its versions comes with the
    service.
    """
    await find_version(state, caller, name)
    ownership = await state.permissions.check_deletion("model", name, caller)
    versions = state.registry.versions(name)
    if shipped := [version for version in versions if not is_created_here(state, name, version)]:
        noun = f"version{'s' * (len(shipped) > 1)} {', '.join(shipped[:10])}"
        detail = f"{name} comes with the service ({noun}) and cannot be deleted"
        raise ConflictError(f"{detail}; delete its other versions one by one")
    audit.describe(request, versions=versions)
    await remove_versions(state, name, versions, model=True)
    await state.permissions.release("model", name, ownership)
