"""Versions of a model: list, get, download, import and delete them."""

import asyncio
import contextlib
import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from api import audit
from api.auth import Caller
from api.dependencies import CurrentCaller, State
from api.errors import ConflictError, InvalidError, NotFoundError
from api.openapi import BINARY, PICTURE, bytes_response, no_content, problem_responses, upload
from api.request_content import RAW
from api.requests import validate_fields
from api.responses.large_responses import LimitedFileResponse
from api.responses.render import PNG, JsonRoute, json_response
from api.routes.models import model_response
from api.schemas.jobs import JobResponse
from api.schemas.models import VersionForm, VersionPage, VersionResponse
from api.state import AppState
from api.streaming_upload import StreamingUpload
from api.training_jobs import auxiliary_row, run_auxiliary_job
from api.versions import find_version, is_created_here, remove_versions
from core.blob_cache import digest_of
from core.catalog.checkpoint_file import ImportRejectedError, check_import, read_preview
from core.catalog.families import load_families
from core.catalog.recipes import NAME
from core.catalog.registry import ModelVersion
from core.catalog.versions import FILE
from core.files import work_folder
from core.jobs.records import Job, import_key

router = APIRouter(prefix="/v1/models/{name}/versions", tags=["models"], route_class=JsonRoute)

IMPORT_TIMEOUT_S = 120.0
_FILE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {RAW: BINARY}},
    206: {"description": "The part that `Range` asked for", "content": {RAW: BINARY}},
}


def version_response(state: AppState, caller: Caller, entry: ModelVersion) -> VersionResponse:
    """Return the response body for a version: its card, its links, and whether it is active."""
    path = f"/v1/models/{entry.name}/versions/{entry.version}"
    links = {"self": path, "file": f"{path}/file", "preview": f"{path}/preview", "model": f"/v1/models/{entry.name}"}
    job = entry.card.provenance.get("job")
    active = state.registry.find(entry.name)
    return VersionResponse(
        object="version",
        model=entry.name,
        version=entry.version,
        serves=active is not None and active.version == entry.version,
        card=model_response(state, caller, entry),
        links={**links, **({"training": f"/v1/trainings/{job}"} if job else {})},
    )


@router.get("", summary="A model's versions, oldest first", responses=problem_responses(404))
async def list_versions(state: State, caller: CurrentCaller, name: str) -> VersionPage:
    """Return all versions of a model, oldest first."""
    await find_version(state, caller, name)
    entries = [state.registry.find(f"{name}@{version}") for version in state.registry.versions(name)]
    data = [version_response(state, caller, entry) for entry in entries if entry is not None]
    return VersionPage.of(data, "version")


@router.get("/{version}", summary="A version and its card", responses=problem_responses(404))
async def get_version(state: State, caller: CurrentCaller, name: str, version: str) -> VersionResponse:
    """Return a version of a model with its card."""
    return version_response(state, caller, await find_version(state, caller, name, version))


@router.get("/{version}/preview", summary="A preview of what a version generates", **bytes_response(PICTURE, 404))
async def get_version_preview(state: State, caller: CurrentCaller, name: str, version: str) -> Response:
    """Return the preview image in a version's checkpoint. The status is 404 if there is no preview."""
    entry = await find_version(state, caller, name, version)
    try:
        picture = await asyncio.to_thread(lambda: read_preview(entry.file()))
    except FileNotFoundError as error:
        raise _deleted_error(entry) from error
    if picture is None:
        raise NotFoundError(f"{name[:120]}@{version[:40]} has no preview; ask for samples")
    return Response(picture, 200, {"Cache-Control": "private, immutable"}, PNG)


@router.get("/{version}/file", summary="A version as one safetensors file", **bytes_response(_FILE, 404, 416, 503))
async def download_version(state: State, caller: CurrentCaller, name: str, version: str) -> Response:
    """Return the checkpoint of a version, a safetensors file with the card in its header."""
    entry = await find_version(state, caller, name, version)
    headers = {"Cache-Control": "private, immutable"}
    filename = f"{entry.name}-{entry.version}.safetensors"
    try:
        path = await asyncio.to_thread(entry.file)
        await asyncio.to_thread(path.stat)
    except FileNotFoundError as error:
        raise _deleted_error(entry) from error
    return LimitedFileResponse(state.responses, path, headers, RAW, filename)


def _deleted_error(entry: ModelVersion) -> NotFoundError:
    """Return the error for a version whose file was deleted during the request."""
    return NotFoundError(f"{entry.ref} was deleted meanwhile; GET /v1/models/{entry.name} lists its versions")


@router.delete("/{version}", summary="Delete a version that is not active", **no_content(403, 404, 409))
async def delete_version(state: State, caller: CurrentCaller, name: str, version: str) -> None:
    """Delete a version of a model.

    The status is 409 if it is active, if an unfinished job uses it, or if it comes with the
    service.
    """
    entry = await find_version(state, caller, name, version)
    state.permissions.check_change("model", name, caller)
    if not is_created_here(state, name, version):
        raise ConflictError(f"{entry.ref} comes with the service and cannot be deleted")
    state.registry.refresh(force=True)
    if (await find_version(state, caller, name)).version == version:
        others = [other for other in state.registry.versions(name) if other != version]
        remedy = f"PATCH /v1/models/{name} to another one first" if others else f"DELETE /v1/models/{name} instead"
        raise ConflictError(f"{entry.ref} is the version that serves; {remedy}")
    await remove_versions(state, name, [version])


@router.post(
    "",
    summary="Import a version from a safetensors file with a card",
    status_code=201,
    response_model=VersionResponse,
    responses={
        200: {"description": "The same file is a version already", "model": VersionResponse},
        202: {"description": "A job", "model": JobResponse},
        **problem_responses(400, 408, 413, 415, 422, 500, 503, 507),
    },
    openapi_extra=upload(VersionForm),
)
async def import_version(request: Request, state: State, caller: CurrentCaller, name: str) -> Response:
    """Import a safetensors file as a new version of a model.

    The name in the file's model card must be that of the model, and its weights must fit its
    config. The file is in a form, or is the body itself as `application/octet-stream` with `shared`
    in the query. The version gets the next free number. It becomes active only if the model has no
    other version. If a version already has the same bytes, that version is returned with status
    200.
    """
    if not NAME.fullmatch(name):
        raise InvalidError(f"{name[:120]!r} is not a name: a-z, 0-9, '.', '-' and '_', at most 63 of them")
    await state.permissions.check_new("model", name, caller)
    row = auxiliary_row(request, "import", name, {"model": name})
    with work_folder(state.paths.auxiliary_job(row.id)) as folder:
        file = folder.path / "file"
        upload = StreamingUpload(folder.path, ("file",), ("shared", "webhook"), state.settings.min_free_disk_bytes)
        fields = await upload.read(request)
        webhook = fields.pop("webhook", None)
        shared = _parse_shared(fields)
        if webhook is not None:
            row = await _with_webhook(state, caller, row, webhook)
        await state.quotas.check_room(caller, file.stat().st_size)
        if (same := await asyncio.to_thread(_check_import, state, file, name)) is not None:
            return json_response(version_response(state, caller, same))
        if state.shared:  # any training worker may run the job
            await asyncio.to_thread(state.blobs.take, import_key(row.id), file)
        else:
            file.rename(folder.path / FILE)
        await state.permissions.claim("model", name, caller, shared=shared)
        row = replace(row, request={**row.request, "shared": shared})
        result, job = await run_auxiliary_job(
            state, caller, row, IMPORT_TIMEOUT_S, folder.hand_over if not state.shared else _nothing
        )
    if result is None:
        return json_response(JobResponse.of(job), {"Location": f"/v1/jobs/{job.id}"}, 202)
    state.registry.scan()
    entry = await find_version(state, caller, name, result["version"])
    audit.describe(request, version=entry.version)
    headers = {"Location": f"/v1/models/{name}/versions/{entry.version}"}
    return json_response(version_response(state, caller, entry), headers, 201)


def _nothing() -> None:
    """Do nothing when an import is committed, because its file is already in the blob store."""


async def _with_webhook(state: AppState, caller: Caller, row: Job, text: str) -> Job:
    """Return the job with the webhook that `text`, a form field with JSON, describes.

    Raises InvalidError if the webhook is not valid.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidError.in_field("webhook", 'send JSON such as {"url": "https://example.com"}') from error
    form = validate_fields(VersionForm, {"webhook": value})
    webhook = await state.webhooks.check(form.webhook, caller)
    return replace(row, webhook=webhook.as_dict() if webhook else None)


def _parse_shared(fields: dict[str, str]) -> bool | None:
    """Return the field `shared` of an import; None if it is missing. Raises InvalidError."""
    try:
        return VersionForm.model_validate(fields).shared
    except ValidationError as error:
        detail = "shared: send true or false"
        raise InvalidError(detail, errors=[{"field": "shared", "detail": detail}]) from error


def _check_import(state: AppState, file: Path, name: str) -> ModelVersion | None:
    """Check an uploaded checkpoint; return the version of the model `name` that has the same bytes.

    Returns None if there is no such version. Raises InvalidError if the file is not a valid
    checkpoint, or if its family is unknown, or if its name, family or image size is not that of the
    model.
    """
    try:
        card = check_import(file, name)
    except ImportRejectedError as error:
        raise InvalidError.in_fields(["file"], f"the file cannot be imported: {error}") from error
    known = load_families(state.settings)
    if card.family not in known and all(entry.card.family != card.family for entry in state.registry.active()):
        detail = f"its family {card.family[:60]!r} is not known here; there are: {', '.join(known)}"
        raise InvalidError.in_fields(["file"], detail)
    active = state.registry.find(name)
    if active is not None and (active.card.family, active.image) != (card.family, card.image):
        detail = f"{name} is a {active.card.family} of {'×'.join(map(str, active.image))}; this is another"
        raise InvalidError.in_fields(["file"], detail)
    size_bytes, uploaded = file.stat().st_size, ""
    for version in state.registry.versions(name):
        entry = state.registry.find(f"{name}@{version}")
        with contextlib.suppress(FileNotFoundError):  # the version was deleted meanwhile
            if entry is None or entry.size_bytes != size_bytes:
                continue
            if entry.shared is not None and not uploaded:
                uploaded = digest_of(file)
            if entry.shared.sha256 == uploaded if entry.shared else filecmp.cmp(file, entry.path, shallow=False):
                return entry
    return None
