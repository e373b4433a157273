"""`POST /v1/upscales`: enlarges one picture of any size; its tiles are the rows that workers process."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from api.access import caller_of
from api.batching.requests import PendingRequest
from api.dependencies import owner_of
from api.errors import InvalidError, NotFoundError, UnsupportedMediaError, request_id_of
from api.multipart import FORM, form_boundary
from api.permissions import Models
from api.prefer import Prefer
from api.requests import RAW, SEED_LIMIT, Content, InferenceRequest, file_of, parsed, typed, validate_options, validated
from api.responses.job_results import accepted, applied, check_succeeded, overloaded
from api.responses.render import About
from api.responses.upscaled import OutputFormat, UpscaleSpec, storage_failed
from api.routes.operations import PlainRoute, compute_or_accept, insert_job_once
from api.schemas.upscales import UpscaleFields
from api.state import AppState
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion
from core.imaging.encoders import FORMATS, format_size_error
from core.imaging.pictures import UnusableImageError
from core.imaging.tiling import Layout, Photograph, open_photograph
from core.jobs.records import TERMINAL, Job
from core.settings import Settings

OPERATION = BY_METHOD["upscale"]

MAX_SYNC_TILES = 64
"""A picture of more tiles is a job from the start, and its pixels are in the blob store."""

_DISCONNECT_POLL_S = 1.0


def add_upscales(app: FastAPI, state: AppState) -> None:
    """Add the route to the application; it is a PlainRoute, as it shares the hot path of the operations."""
    route = PlainRoute(
        f"/v1/{OPERATION.path}",
        _route(state),
        methods=["POST"],
        summary=OPERATION.summary,
        operation_id=f"create_{OPERATION.path}",
        tags=["operations"],
        response_class=Response,
    )
    app.router.routes.append(route)


def _route(state: AppState) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        inference_request, output = await _read_request(request, state)
        prefer = Prefer.read(",".join(request.headers.getlist("prefer")), state.settings)
        key = request.headers.get("idempotency-key")
        if key is None and prefer.wait_s > 0 and inference_request.rows <= MAX_SYNC_TILES:
            return await _respond_sync(state, request, inference_request, output, prefer)
        try:
            if key is not None:
                await asyncio.to_thread(lambda: inference_request.fingerprint)  # a cached property
                job = await insert_job_once(state, request, inference_request, prefer, key)
            elif state.job_service.full:
                raise overloaded("too many unfinished jobs")
            else:
                owner = owner_of(request)
                async with state.quotas.job(caller_of(request.scope)):
                    job = await state.job_service.create(inference_request, owner, request_id_of(request))
        except OSError as error:
            raise storage_failed(error) from error
        del inference_request  # the pixels are in the blob store now
        if key is None and prefer.wait_s > 0:
            job = await _wait_for_job(state, request, job, prefer.wait_s)
        return await _job_response(state, request, job, output, prefer)

    return route


async def _respond_sync(
    state: AppState, request: Request, inference_request: InferenceRequest, output: OutputFormat, prefer: Prefer
) -> Response:
    """Return the picture while the client waits; after too long, return 202 with a job that goes on."""
    spec, photograph = inference_request.order, inference_request.photograph
    assert spec is not None  # noqa: S101 - every request of this route has both
    assert photograph is not None  # noqa: S101
    tiling = spec.layout.tiling
    tiles = await asyncio.to_thread(tiling.cut, lambda begin, end: photograph.pixels[begin:end], 0, tiling.count)
    entry = inference_request.entry
    pending = PendingRequest(
        entry,
        OPERATION.method,
        inference_request.options,
        inference_request.seed,
        inference_request.rows,
        {"images": tiles},
        request_id=request_id_of(request),
        owner=owner_of(request),
    )
    fields = await compute_or_accept(state, request, inference_request, pending, prefer)
    if isinstance(fields, Response):
        return fields
    notes = inference_request.notes + spec.conversions_to(output.kind)
    about = About(entry.name, entry.version, inference_request.seed, notes)
    body = await state.upscales.render(spec, photograph.alpha, fields, about, output)
    headers = {**about.headers({}), **applied(prefer), "Vary": "Accept, Prefer"}
    return state.responses.response(body, headers, output.media)


async def _wait_for_job(state: AppState, request: Request, job: Job, wait_s: float) -> Job:
    """Return the job after the wait; it is cancelled if the client disconnects, which does not know it yet."""
    deadline = time.monotonic() + wait_s
    current: Job | None = job
    try:
        while current is not None and current.status not in TERMINAL:
            time_left_s = deadline - time.monotonic()
            if time_left_s <= 0:
                break
            current = await state.job_service.wait(job.id, owner_of(request), min(time_left_s, _DISCONNECT_POLL_S))
            if await request.is_disconnected():
                await state.job_service.cancel(job.id)
                break
    except asyncio.CancelledError:
        await asyncio.shield(state.job_service.cancel(job.id))
        raise
    if current is None:
        raise NotFoundError("the job was deleted before it had ended")
    return current


async def _job_response(state: AppState, request: Request, job: Job, output: OutputFormat, prefer: Prefer) -> Response:
    """Return the picture of an ended job, or 202 with the job."""
    if job.status not in TERMINAL:
        return accepted(job, prefer)
    check_succeeded(job)
    headers = {**applied(prefer), "Content-Location": f"/v1/jobs/{job.id}/result"}
    response = await state.upscales.respond(request, job, output, headers)
    response.headers["Vary"] = "Accept, Prefer"
    return response


# --- from a body to a validated request ---


async def _read_request(request: Request, state: AppState) -> tuple[InferenceRequest, OutputFormat]:
    """Return the validated request and the format of its response. Raises the ProblemError for what is wrong."""
    content = await _read_content(request)
    form = validated(UpscaleFields, content.fields)
    entry = _find_model(form.model, state.models(request))
    choice = entry.operations[OPERATION.method]
    options = validate_options(choice, form.options, form.model_extra or {}, UpscaleFields.model_fields, content.texts)
    output = OutputFormat.read(request.headers.get("accept", ""), [form.format] if form.format else FORMATS)
    photograph = await _read_photograph(state, content, form, output.kind, int(options["scale"]))
    _, height, width = entry.image
    layout = Layout.of(
        photograph.size,
        photograph.channels,
        alpha=photograph.alpha is not None,
        tile=(height, width),
        margin=entry.margin,
    )
    inference_request = InferenceRequest(
        OPERATION,
        entry,
        options,
        secrets.randbelow(SEED_LIMIT) if form.seed is None else form.seed,
        layout.tiling.count,
        content,
        notes=photograph.notes,
        photograph=photograph,
        order=UpscaleSpec(layout, int(options["scale"]), output.kind, form.quality),
    )
    return inference_request, output


def _find_model(name: str | None, models: Models) -> ModelVersion:
    """Return the named model, or the first that enlarges pictures. Raises NotFoundError, InvalidError."""
    able = [entry for entry in models.active() if OPERATION.method in entry.operations]
    known = ", ".join(entry.name for entry in able) or "none"
    if name is None:
        if not able:
            raise NotFoundError("no model here enlarges pictures; GET /v1/models lists what there is")
        return able[0]
    entry = models.find(name)
    if entry is None:
        raise NotFoundError(f"no model {name[:120]!r}; those that enlarge pictures: {known}")
    if OPERATION.method not in entry.operations:
        raise InvalidError(f"{entry.name} cannot enlarge pictures; those that can: {known}")
    return entry


async def _read_content(request: Request) -> Content:
    """Return the fields and the picture of a body of any type. Raises UnsupportedMediaError, InvalidError."""
    body = await request.body()
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media == FORM:
        return await _read_form(request)
    if media == "application/json":
        return Content(parsed(body) if len(body) < 1 << 16 else await asyncio.to_thread(parsed, body))
    if media.startswith("image/") or media == RAW:
        fields, texts = typed(request.query_params.multi_items())
        return Content(fields, [body], texts=texts)
    raise UnsupportedMediaError(
        f"{media[:60] or 'a body without a Content-Type'} is not read here; send multipart/form-data with a file named "
        "`image`, the picture itself as image/* with the other fields in the query, or application/json"
    )


async def _read_form(request: Request) -> Content:
    uploads, values = [], request.query_params.multi_items()
    form_boundary(request.headers.get("content-type", ""))
    async with request.form(max_files=2) as form:  # errors of python-multipart are HTTP 400
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                values.append((name, value))
            elif not value.filename and not value.size:
                continue  # what a browser sends for a file field without a file
            elif name == "image":
                uploads.append(await value.read())
            else:
                raise InvalidError(f"no file field {name[:60]!r}; the picture's field is `image`")
    fields, texts = await asyncio.to_thread(typed, values)
    return Content(fields, uploads, texts=texts)


async def _read_photograph(state: AppState, content: Content, form: UpscaleFields, kind: str, scale: int) -> Photograph:
    """Decode the picture once its result is known to be within the limits. Raises InvalidError."""
    sent: Sequence[bytes | str] = [*content.uploads, *([form.image] if form.image is not None else [])]
    if len(sent) != 1:
        number = f"{len(sent)} were sent" if sent else "missing"
        raise _image_error(f"{number}; send one PNG, JPEG or WebP file")
    try:
        file = sent[0] if isinstance(sent[0], bytes) else await asyncio.to_thread(file_of, sent[0])
        picture = await asyncio.to_thread(open_photograph, file)
        width, height = picture.size
        reason = _size_error(height, width, scale, state.settings) or format_size_error(
            kind, height * scale, width * scale
        )
        if reason:
            raise _image_error(reason)
        return await state.upscales.decode(picture)
    except UnusableImageError as error:
        raise _image_error(str(error)) from error


def _size_error(height: int, width: int, scale: int, settings: Settings) -> str | None:
    """Return why a picture would become too large, if it would."""
    limit = settings.max_upscaled_pixels
    pixels = height * width * scale**2
    if pixels <= limit:
        return None
    return (
        f"{width}×{height} pixels {scale} times larger are {pixels / 1e6:.1f} megapixels, more than the "
        f"{limit / 1e6:g} that are made here; at this scale send at most {limit / scale**2 / 1e6:.4g} megapixels"
    )


def _image_error(detail: str) -> InvalidError:
    return InvalidError(f"image: {detail}", errors=[{"field": "image", "detail": detail}])
