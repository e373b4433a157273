"""Finds, activates and deletes versions of models, and deletes old versions periodically."""

import asyncio
import logging
import time
from collections.abc import Sequence
from operator import methodcaller

from api import audit
from api.auth import Caller
from api.errors import ConflictError, NotFoundError, OverloadedError
from api.state import AppState
from core.catalog.registry import ModelVersion
from core.catalog.rollout import (
    drain_reason,
    has_loaded,
    is_loaded,
    load_error,
    may_be_loaded,
    missing_workers,
    slow_workers,
)
from core.catalog.versions import VersionActiveError, VersionRemovedError

log = logging.getLogger(__name__)

NO_WORKER_TIMEOUT_S = 3.0  # seconds without a live worker after which an activation fails
PRUNE_S = 30.0
_POLL_S = 0.05
_GRACE_S = 0.4  # seconds after which all API processes know that a version is hidden
_INTERRUPTED_S = 60.0  # seconds after which an unfinished deletion counts as interrupted


async def find_version(state: AppState, caller: Caller, name: str, version: str = "") -> ModelVersion:
    """Return a version of a model, by default the active one.

    Raises NotFoundError if there is no such version, or if the caller may not see the model.
    """
    await state.permissions.refresh()
    models = state.permissions.models(caller)
    entry = models.find(f"{name}@{version}" if version else name) if "@" not in name else None
    if entry is None and (known := models.versions(name)):
        raise NotFoundError(f"{name[:120]} has no version {version[:40]!r}; there are: {', '.join(known)}")
    if entry is None:
        raise NotFoundError(f"no model {name[:120]!r}; GET /v1/models lists them")
    return entry


# --- activation ---


async def activate_version(state: AppState, entry: ModelVersion) -> str:
    """Wait until the workers have loaded a version, then activate it.

    Workers that have not loaded it in time are stopped; returns a sentence that says so, or "" if
    there are none. Raises ConflictError if a worker cannot load it, if it is being deleted, or if
    another version is chosen meanwhile; and OverloadedError if no worker has loaded it in time.
    Then it does not become active.
    """
    versions = state.versions
    try:
        await asyncio.to_thread(versions.stage, entry.name, entry.version)
    except VersionRemovedError as error:
        raise ConflictError(f"{error}; GET /v1/models/{entry.name}/versions lists the others") from error
    try:
        reason = await _wait_until_loaded(state, entry)
        active = await asyncio.to_thread(versions.activate_candidate, entry.name, entry.version)
    except BaseException:
        await asyncio.to_thread(versions.unstage, entry.name, entry.version)
        raise
    if not active:
        raise _superseded_error(entry)
    state.registry.refresh(force=True)
    return reason


async def _wait_until_loaded(state: AppState, entry: ModelVersion) -> str:
    """Wait until every worker has loaded a version, at most `rollout_timeout_s`.

    Then stops the workers that have not loaded it, and returns a sentence that says so; "" if there
    are none. Raises OverloadedError if no worker has loaded it in time, or if none is alive; and
    ConflictError if a worker cannot load it, or if another version is staged or activated.
    """
    timeout_s = state.settings.rollout_timeout_s
    start = last_alive = time.monotonic()
    while not is_loaded(workers := state.batch_sender.live_workers(), entry.ref):
        if await asyncio.to_thread(state.versions.is_superseded, entry.name, entry.version):
            raise _superseded_error(entry)
        now = time.monotonic()
        last_alive = now if may_be_loaded(workers, entry.ref) else last_alive
        late = now - start > timeout_s
        if late and has_loaded(workers, entry.ref) and not load_error(workers, entry.ref):
            reason = drain_reason(workers, entry.ref, timeout_s)
            log.warning("workers stopped", extra={"version": entry.ref, "reason": reason})
            await state.batch_sender.drain_workers(slow_workers(workers, entry.ref), reason)
            return reason
        if late or now - last_alive > NO_WORKER_TIMEOUT_S:
            missing = missing_workers(workers, entry.ref)
            detail = f"{missing}, after {now - start:.0f} s; the previous version stays active"
            raise OverloadedError(detail, retry_after_s=10)
        await asyncio.sleep(_POLL_S)
    if reason := load_error(workers, entry.ref):
        raise ConflictError(f"a worker cannot load {entry.ref}: {reason}; the previous version stays active")
    return ""


def _superseded_error(entry: ModelVersion) -> ConflictError:
    """Return the error of an activation during which another one began."""
    detail = f"{entry.ref} does not become active: another version was chosen meanwhile"
    return ConflictError(f"{detail}; GET /v1/models/{entry.name} shows which is active")


# --- deletion ---


def is_created_here(state: AppState, name: str, version: str) -> bool:
    """Return whether a version was made or imported by this service.

    Its file is then in the state folder. Other versions are files of the operator.
    """
    entry = state.registry.find(f"{name}@{version}")
    return entry is not None and state.registry.is_made(entry)


async def remove_versions(state: AppState, name: str, versions: Sequence[str], *, model: bool = False) -> None:
    """Delete versions of the model `name`; with `model`, delete the whole model.

    Checks that no unfinished job uses the versions, hides them from new requests, and checks again.
    Raises ConflictError if an unfinished job uses a version, or if one is being activated or,
    without `model`, is active; then nothing is deleted.
    """
    store = state.versions
    await _check_unused(state, name, versions, model=model)
    hiding = asyncio.create_task(asyncio.to_thread(lambda: store.hide(name, versions, model=model)))
    try:
        await asyncio.shield(hiding)  # a cancelled thread would go on and hide the versions
        state.registry.refresh(force=True)
        await asyncio.sleep(_GRACE_S)
        await _check_unused(state, name, versions, model=model)
    except VersionActiveError as error:
        raise ConflictError(f"{error} is active, or being activated; wait, or activate another version") from error
    except BaseException:
        await asyncio.shield(_unhide(state, name, versions, hiding))
        raise
    await asyncio.to_thread(store.discard, name, versions)


async def _unhide(state: AppState, name: str, versions: Sequence[str], hiding: asyncio.Task[dict[str, str]]) -> None:
    """Wait for the task that hides versions, and make the versions available again."""
    await asyncio.wait([hiding])
    if isinstance(hiding.exception(), VersionActiveError):
        return
    pointer = {} if hiding.exception() else hiding.result()
    await asyncio.to_thread(state.versions.unhide, name, versions, pointer)
    state.registry.refresh(force=True)


async def _check_unused(state: AppState, name: str, versions: Sequence[str], *, model: bool) -> None:
    """Raise ConflictError if an unfinished job uses one of these versions of the model `name`.

    With `model`, raise it if an unfinished job uses any version of the model.
    """
    for version in ("",) if model else versions:
        if ids := await state.job_service.read(methodcaller("unfinished_ids", model=name, version=version)):
            ref = f"{name}@{version}" if version else name
            raise ConflictError(f"{ref} is in use by {len(ids)} unfinished job(s); wait until they end, or cancel them")


# --- retention ---


async def prune_versions(state: AppState) -> None:
    """Delete old versions every `PRUNE_S` seconds, until cancelled.

    Also finishes deletions that were interrupted because their process ended.
    """
    store = state.versions
    while True:
        await asyncio.sleep(PRUNE_S)
        try:
            await asyncio.to_thread(store.discard_interrupted, _INTERRUPTED_S)
            if state.settings.keep_versions:
                await prune_versions_once(state)
        except Exception:
            log.exception("old versions not deleted")


async def prune_versions_once(state: AppState) -> None:
    """Delete the inactive versions of each model, except its newest `keep_versions` inactive ones.

    Versions that an unfinished job uses, and versions that the operator has installed, are kept
    too.
    """
    for entry in await asyncio.to_thread(state.registry.active):
        created = [one for one in state.registry.versions(entry.name) if is_created_here(state, entry.name, one)]
        inactive = [version for version in created if version != entry.version]
        for version in inactive[: -state.settings.keep_versions]:
            try:
                await remove_versions(state, entry.name, [version])
            except ConflictError as error:
                log.info("old version kept", extra={"version": f"{entry.name}@{version}", "reason": error.detail})
                continue
            resource = f"/v1/models/{entry.name}/versions/{version}"
            audit.record("delete", owner="service", resource=resource, status=204, request_id="", reason="retention")
