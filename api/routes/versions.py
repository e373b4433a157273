"""Versions of a model: which one serves, and each of them as one file, out and in."""

import asyncio
import hashlib
import time
from pathlib import Path
from typing import Any, Self

import orjson
from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from api.access import caller_of
from api.audit import describe
from api.errors import ConflictError, InvalidError, NotFoundError, OverloadedError
from api.openapi import MODEL, answered, listed, problem_responses
from api.responses.render import JSON, PNG
from api.routes.operations import AppState, job_body, model_body
from api.routes.trainings import auxiliary_job, auxiliary_row
from api.streaming_upload import StreamingUpload
from core.catalog.recipes import NAME, StatePaths, families
from core.catalog.registry import ModelVersion
from core.catalog.versions import FILE, ImportRejectedError, Versions, awaited, inspect, loaded, preview, refused
from core.work_folder import work_folder

LOAD_S = 60.0
"""How long workers may take to load a version before a switch is given up."""

NO_WORKER_S = 3.0
"""How long no worker may be alive before a switch is given up: one that is heard of now and then is waited for."""

IMPORT_S = 120.0
_LOOK_S = 0.05
_RAW = "application/octet-stream"
_SHARED = {
    "type": "boolean",
    "description": "Whether everybody may use the model; by default a new one is its owner's alone.",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


class Chosen(BaseModel):
    """What is to change of a model; at least one field."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"example": {"version": "1"}, "minProperties": 1},
    )

    version: str | None = Field(None, max_length=40, description="Which of the model's `versions` is to serve.")
    shared: bool | None = Field(None, description="Whether everybody may use the model, or its owner alone.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.version is None and self.shared is None:
            raise ValueError("send `version`, `shared` or both")
        return self


class _ImportFields(BaseModel):
    """What may stand beside the file, in the form or the query."""

    shared: bool | None = None


_VERSION = {
    "type": "object",
    "required": ["model", "version", "serves", "links"],
    "properties": {
        "model": {"type": "string"},
        "version": {"type": "string"},
        "serves": {"type": "boolean", "description": "Whether the bare name means this version"},
        "card": MODEL,
        "links": {"type": "object", "required": ["self", "file"]},
    },
}


def add_versions(app: FastAPI, app_state: AppState) -> None:
    """Put the routes into the application."""
    router = APIRouter(prefix="/v1")
    versions = Versions(StatePaths(app_state.settings.state).checkpoints)
    _add_switch(router, app_state, versions)
    _add_looking(router, app_state)
    _add_file(router, app_state)
    _add_import(router, app_state)
    app.include_router(router)


def version_body(app_state: AppState, request: Request, entry: ModelVersion) -> dict[str, Any]:
    """A version as clients see it."""
    here = f"/v1/models/{entry.name}/versions/{entry.version}"
    links = {"self": here, "file": f"{here}/file", "preview": f"{here}/preview", "model": f"/v1/models/{entry.name}"}
    job = entry.card["provenance"].get("job") if isinstance(entry.card["provenance"], dict) else None
    serving = app_state.registry.find(entry.name)
    return {
        "object": "version",
        "model": entry.name,
        "version": entry.version,
        "serves": serving is not None and serving.version == entry.version,
        "card": model_body(app_state, request, entry),
        "links": {**links, **({"training": f"/v1/trainings/{job}"} if job else {})},
    }


async def found(app_state: AppState, request: Request, name: str, version: str = "") -> ModelVersion:
    """Return a version, or the one that serves. Raises NotFoundError where the caller may see none."""
    await app_state.permissions.refresh()
    models = app_state.models(request)
    entry = models.find(f"{name}@{version}" if version else name) if "@" not in name else None
    if entry is None and (known := models.versions(name)):
        raise NotFoundError(f"{name[:120]} has no version {version[:40]!r}; there are: {', '.join(known)}")
    if entry is None:
        raise NotFoundError(f"no model {name[:120]!r}; GET /v1/models lists them")
    return entry


# --- which one serves ---


def _add_switch(router: APIRouter, app_state: AppState, versions: Versions) -> None:
    @router.patch(
        "/models/{name}",
        summary="Choose the version that serves, and whether the model is shared",
        tags=["models"],
        response_class=Response,
        responses={**answered(MODEL), **problem_responses(400, 404, 409, 422, 503)},
    )
    async def switch(request: Request, name: str, chosen: Chosen) -> Response:
        caller = caller_of(request.scope)
        describe(request, **chosen.model_dump(exclude_none=True))
        await found(app_state, request, name)
        app_state.permissions.check_change("model", name, caller)
        if chosen.shared is not None:
            app_state.permissions.check_share("model", name, caller, shared=chosen.shared)
        if chosen.version is not None:
            await _serve(app_state, versions, await found(app_state, request, name, chosen.version))
        if chosen.shared is not None:
            await app_state.permissions.share("model", name, caller, shared=chosen.shared)
        return Response(
            orjson.dumps(model_body(app_state, request, await found(app_state, request, name))), 200, {}, JSON
        )


async def _serve(app_state: AppState, versions: Versions, entry: ModelVersion) -> None:
    """Have a version serve once the workers have loaded it."""
    await asyncio.to_thread(versions.announce, entry.name, entry.version)
    try:
        await _loaded(app_state, entry)
    except BaseException:
        await asyncio.to_thread(versions.withdraw, entry.name, entry.version)
        raise
    await asyncio.to_thread(versions.serve, entry.name, entry.version)
    app_state.registry.refresh(run_inline=True)


async def _loaded(app_state: AppState, entry: ModelVersion) -> None:
    """Return when every worker has the version warm; until then the one before it serves."""
    begun = alive = time.monotonic()
    while not loaded(workers := app_state.batch_sender.live_workers(), entry.ref):
        now = time.monotonic()
        alive = now if workers else alive
        if now - begun > LOAD_S or now - alive > NO_WORKER_S:
            raise OverloadedError(
                f"{awaited(workers, entry.ref)}, after {now - begun:.0f} s; the version before it goes on serving",
                headers={"Retry-After": "10"},
            )
        await asyncio.sleep(_LOOK_S)
    if why := refused(workers, entry.ref):
        raise ConflictError(f"a worker cannot load {entry.ref}: {why}; the version before it goes on serving")


# --- looking ---


def _add_looking(router: APIRouter, app_state: AppState) -> None:
    @router.get(
        "/models/{name}/versions",
        summary="A model's versions, oldest first",
        tags=["models"],
        response_class=Response,
        responses={**answered(listed(_VERSION)), **problem_responses(404)},
    )
    async def list_versions(request: Request, name: str) -> Response:
        await found(app_state, request, name)
        entries = [app_state.registry.find(f"{name}@{version}") for version in app_state.registry.versions(name)]
        data = [version_body(app_state, request, entry) for entry in entries if entry is not None]
        ends = {"first_id": data[0]["version"], "last_id": data[-1]["version"]}
        return Response(orjson.dumps({"object": "list", "data": data, "has_more": False, **ends}), 200, {}, JSON)

    @router.get(
        "/models/{name}/versions/{version}",
        summary="A version and its card",
        tags=["models"],
        response_class=Response,
        responses={**answered(_VERSION), **problem_responses(404)},
    )
    async def one(request: Request, name: str, version: str) -> Response:
        entry = await found(app_state, request, name, version)
        return Response(orjson.dumps(version_body(app_state, request, entry)), 200, {}, JSON)

    @router.get(
        "/models/{name}/versions/{version}/preview",
        summary="What a version makes",
        tags=["models"],
        response_class=Response,
        responses={200: {"description": "A picture", "content": {PNG: _BINARY}}, **problem_responses(404)},
    )
    async def picture(request: Request, name: str, version: str) -> Response:
        entry = await found(app_state, request, name, version)
        drawn = await asyncio.to_thread(preview, entry.path)
        if drawn is None:
            raise NotFoundError(f"{name[:120]}@{version[:40]} carries no preview; ask for samples")
        return Response(drawn, 200, {"Cache-Control": "private, immutable"}, PNG)


def _add_file(router: APIRouter, app_state: AppState) -> None:
    @router.get(
        "/models/{name}/versions/{version}/file",
        summary="A version as one safetensors file",
        tags=["models"],
        response_class=Response,
        responses={
            200: {"description": "The file", "content": {_RAW: _BINARY}},
            206: {"description": "The part that `Range` asked for", "content": {_RAW: _BINARY}},
            **problem_responses(404, 416),
        },
    )
    async def export(request: Request, name: str, version: str) -> Response:
        entry = await found(app_state, request, name, version)
        headers = {"Cache-Control": "private, immutable"}
        filename = f"{entry.name}-{entry.version}.safetensors"
        return FileResponse(entry.path, headers=headers, media_type=_RAW, filename=filename)


# --- in ---


def _add_import(router: APIRouter, app_state: AppState) -> None:
    form = {"type": "object", "required": ["file"], "properties": {"file": _BINARY["schema"], "shared": _SHARED}}
    accepted = {"description": "A job", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Job"}}}}

    @router.post(
        "/models/{name}/versions",
        summary="Import a version from a safetensors file with a card",
        tags=["models"],
        response_class=Response,
        responses={
            200: {"description": "The same file is a version already", "content": {JSON: {"schema": _VERSION}}},
            201: {"description": "A new version; another goes on serving", "content": {JSON: {"schema": _VERSION}}},
            202: accepted,
            **problem_responses(400, 408, 413, 415, 422, 500, 503, 507),
        },
        openapi_extra={
            "parameters": [{"name": "shared", "in": "query", "schema": _SHARED}],
            "description": f"At most {app_state.settings.max_version_bytes} bytes. Only safetensors whose card "
            "is of this name, with exactly the weights that its family has for its config. The version is the next "
            "free number.",
            "requestBody": {
                "required": True,
                "content": {_RAW: _BINARY, "multipart/form-data": {"schema": form}},
            },
        },
    )
    async def import_version(request: Request, name: str) -> Response:
        if not NAME.fullmatch(name):
            raise InvalidError(f"{name[:120]!r} is no name: a-z, 0-9, '.', '-' and '_', at most 63 of them")
        caller = caller_of(request.scope)
        await app_state.permissions.check_new("model", name, caller)
        row = auxiliary_row(request, "import", name, {"model": name})
        with work_folder(StatePaths(app_state.settings.state).auxiliary_job(row["id"])) as folder:
            fields = await StreamingUpload(
                folder.path, ("file",), ("shared",), app_state.settings.min_free_disk_bytes
            ).read(request)
            shared = _shared(fields)
            await app_state.quotas.check_room(caller, (folder.path / "file").stat().st_size)
            same = await asyncio.to_thread(_checked, app_state, folder.path / "file", name)
            if same is not None:
                return Response(orjson.dumps(version_body(app_state, request, same)), 200, {}, JSON)
            (folder.path / "file").rename(folder.path / FILE)
            await app_state.permissions.claim("model", name, caller, shared=shared)
            result, job = await auxiliary_job(app_state, caller, row, IMPORT_S, folder.hand_over)
        if result is None:
            return Response(orjson.dumps(job_body(job)), 202, {"Location": f"/v1/jobs/{job['id']}"}, JSON)
        app_state.registry.scan()
        entry = await found(app_state, request, name, result["version"])
        describe(request, version=entry.version)
        headers = {"Location": f"/v1/models/{name}/versions/{entry.version}"}
        return Response(orjson.dumps(version_body(app_state, request, entry)), 201, headers, JSON)


def _shared(fields: dict[str, str]) -> bool | None:
    try:
        return _ImportFields.model_validate(fields).shared
    except ValidationError as error:
        detail = "shared: send true or false"
        raise InvalidError(detail, errors=[{"field": "shared", "detail": detail}]) from error


def _checked(app_state: AppState, file: Path, name: str) -> ModelVersion | None:
    """Refuse what is no version of this model; answers the version that has the same bytes, if one has."""
    try:
        card = inspect(file, name)
    except ImportRejectedError as error:
        raise InvalidError(f"the file cannot be imported: {error}") from error
    known = families(app_state.settings)
    if card["family"] not in known and all(
        entry.card["family"] != card["family"] for entry in app_state.registry.serving()
    ):
        raise InvalidError(f"its family {str(card['family'])[:60]!r} is not known here; there are: {', '.join(known)}")
    there = app_state.registry.find(name)
    if there is not None and (there.card["family"], there.card["image"]) != (card["family"], card["image"]):
        raise InvalidError(f"{name} is a {there.card['family']} of {'×'.join(map(str, there.image))}; this is another")
    size, digest = file.stat().st_size, None
    for version in app_state.registry.versions(name):
        entry = app_state.registry.find(f"{name}@{version}")
        if entry is not None and entry.path.stat().st_size == size:
            digest = digest or _sha256(file)
            if _sha256(entry.path) == digest:
                return entry
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
