"""Deleting models and their versions, by request and by the rule of how many old versions are kept."""

import asyncio
import logging
from collections.abc import Sequence
from operator import methodcaller

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api import audit
from api.access import caller_of
from api.errors import ConflictError
from api.openapi import problem_responses
from api.routes.operations import AppState
from api.routes.versions import found
from core.catalog.recipes import StatePaths
from core.catalog.versions import ServingError, Versions

log = logging.getLogger(__name__)

PRUNE_S = 30.0
_GRACE_S = 0.4
"""How long another API process may still use a version for a job after it is out of sight; they look more often."""

_INTERRUPTED_S = 60.0


def add_removal(app: FastAPI, app_state: AppState) -> None:
    """Put the routes into the application."""
    router = APIRouter(prefix="/v1")

    @router.delete(
        "/models/{name}",
        summary="Delete a model with all its versions",
        tags=["models"],
        status_code=204,
        responses=problem_responses(403, 404, 409),
    )
    async def delete_model(request: Request, name: str) -> Response:
        await found(app_state, request, name)
        app_state.permissions.check_change("model", name, caller_of(request.scope))
        versions = app_state.registry.versions(name)
        shipped = [version for version in versions if not _made_here(app_state, name, version)]
        if shipped:
            ship = "version" if len(shipped) == 1 else "versions"
            raise ConflictError(
                f"{name} comes with the service ({ship} {', '.join(shipped[:10])}) and stays; delete its other "
                "versions one by one"
            )
        audit.describe(request, versions=versions)
        await _remove(app_state, name, versions, model=True)
        await app_state.permissions.release("model", name)
        return Response(status_code=204)

    @router.delete(
        "/models/{name}/versions/{version}",
        summary="Delete a version that does not serve",
        tags=["models"],
        status_code=204,
        responses=problem_responses(403, 404, 409),
    )
    async def delete_version(request: Request, name: str, version: str) -> Response:
        entry = await found(app_state, request, name, version)
        app_state.permissions.check_change("model", name, caller_of(request.scope))
        if not _made_here(app_state, name, version):
            raise ConflictError(f"{entry.ref} comes with the service and stays")
        app_state.registry.refresh(run_inline=True)
        if (await found(app_state, request, name)).version == version:
            others = [other for other in app_state.registry.versions(name) if other != version]
            way = f"PATCH /v1/models/{name} to another one first" if others else f"DELETE /v1/models/{name} instead"
            raise ConflictError(f"{entry.ref} serves; {way}")
        await _remove(app_state, name, [version])
        return Response(status_code=204)

    app.include_router(router)


def _made_here(app_state: AppState, name: str, version: str) -> bool:
    """Whether a version lies in the state folder; others are the operator's files."""
    entry = app_state.registry.find(f"{name}@{version}")
    return entry is not None and entry.path.is_relative_to(StatePaths(app_state.settings.state).checkpoints)


async def _remove(app_state: AppState, name: str, versions: Sequence[str], *, model: bool = False) -> None:
    """Delete versions that no job uses. Raises ConflictError, and then all is as it was."""
    store = Versions(StatePaths(app_state.settings.state).checkpoints)
    await _check_unused(app_state, name, versions, model=model)
    try:
        said = await asyncio.to_thread(lambda: store.hide(name, versions, model=model))
    except ServingError as error:
        raise ConflictError(f"{error} serves, or is being loaded to serve; wait, or choose another to serve") from error
    try:
        app_state.registry.refresh(run_inline=True)
        await asyncio.sleep(_GRACE_S)
        await _check_unused(app_state, name, versions, model=model)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(store.unhide, name, versions, said))
        app_state.registry.refresh(run_inline=True)
        raise
    await asyncio.to_thread(store.discard, name, versions)


async def _check_unused(app_state: AppState, name: str, versions: Sequence[str], *, model: bool) -> None:
    for version in ("",) if model else versions:
        users = await app_state.job_service.look(methodcaller("unfinished_of", name, version))
        if users:
            ref = f"{name}@{version}" if version else name
            raise ConflictError(
                f"{ref} is in use by {len(users)} unfinished job(s); wait for their end, or cancel them"
            )


async def prune(app_state: AppState) -> None:
    """Delete old versions for ever, as `REVERIE_KEEP_VERSIONS` says, and finish deletions that were interrupted."""
    store = Versions(StatePaths(app_state.settings.state).checkpoints)
    while True:
        await asyncio.sleep(PRUNE_S)
        try:
            await asyncio.to_thread(store.discard_interrupted, _INTERRUPTED_S)
            if app_state.settings.keep_versions:
                await prune_once(app_state)
        except Exception:
            log.exception("old versions not deleted")


async def prune_once(app_state: AppState) -> None:
    """Delete what is beyond the number of versions to keep: a model's oldest that neither serve nor are used."""
    for entry in await asyncio.to_thread(app_state.registry.serving):
        made = [one for one in app_state.registry.versions(entry.name) if _made_here(app_state, entry.name, one)]
        spare = [version for version in made if version != entry.version]
        for version in spare[: -app_state.settings.keep_versions]:
            try:
                await _remove(app_state, entry.name, [version])
            except ConflictError as error:
                log.info("old version kept", extra={"version": f"{entry.name}@{version}", "reason": error.detail})
                continue
            resource = f"/v1/models/{entry.name}/versions/{version}"
            audit.record("delete", owner="service", resource=resource, status=204, request_id="", reason="retention")
