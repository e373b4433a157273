"""`POST /v1/upscales`: one picture of any size in, a larger one out; its tiles are the rows that the workers see."""

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
from api.requests import RAW, SEED_LIMIT, Content, InferenceRequest, file_of, options_of, parsed, typed, validated
from api.responses.job_results import accepted, applied, check_succeeded, overloaded
from api.responses.render import About
from api.responses.upscaled import UpscaleSpec, Wish, unwritten
from api.routes.operations import PlainRoute, computed, insert_job_once
from api.schemas.upscales import UpscaleFields
from api.state import AppState
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion
from core.imaging.encoders import FORMATS, fault
from core.imaging.pictures import UnusableImageError
from core.imaging.tiling import Layout, Photograph, opened
from core.jobs.records import TERMINAL, Job
from core.settings import Settings

OPERATION = BY_METHOD["upscale"]

AT_ONCE = 64
"""Up to so many tiles a picture is worked on in memory; a larger one is a job from the start, and lies in the store."""

_LOOK_S = 1.0


def add_upscales(app: FastAPI, app_state: AppState) -> None:
    """Put the route into the application."""
    route = PlainRoute(
        f"/v1/{OPERATION.path}",
        _route(app_state),
        methods=["POST"],
        summary=OPERATION.summary,
        operation_id=f"create_{OPERATION.path}",
        tags=["operations"],
        response_class=Response,
    )
    app.router.routes.append(route)


def _route(app_state: AppState) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        inference_request, wish = await _read(request, app_state)
        prefer = Prefer.read(",".join(request.headers.getlist("prefer")), app_state.settings)
        key = request.headers.get("idempotency-key")
        if key is None and prefer.wait_s > 0 and inference_request.rows <= AT_ONCE:
            return await _now(app_state, request, inference_request, wish, prefer)
        try:
            if key is not None:
                await asyncio.to_thread(
                    lambda: inference_request.fingerprint
                )  # of all that was sent; kept for what follows
                job = await insert_job_once(app_state, request, inference_request, prefer, key)
            elif app_state.job_service.full:
                raise overloaded("too many unfinished jobs")
            else:
                async with app_state.quotas.job(caller_of(request.scope)):
                    job = await app_state.job_service.create(
                        inference_request, owner_of(request), request_id_of(request)
                    )
        except OSError as error:
            raise unwritten(error) from error
        del inference_request  # the pixels lie in the store now
        if key is None and prefer.wait_s > 0:
            job = await _awaited(app_state, request, job, prefer.wait_s)
        return await _told(app_state, request, job, wish, prefer)

    return route


async def _now(
    app_state: AppState, request: Request, inference_request: InferenceRequest, wish: Wish, prefer: Prefer
) -> Response:
    """Answer from memory while the client waits; after too long, promise a job."""
    order, photograph = inference_request.order, inference_request.photograph
    assert order is not None  # noqa: S101 - every ask of this route has both
    assert photograph is not None  # noqa: S101
    tiling = order.layout.tiling
    tiles = await asyncio.to_thread(tiling.cut, lambda begin, end: photograph.pixels[begin:end], 0, tiling.count)
    call = PendingRequest(
        inference_request.entry,
        OPERATION.method,
        inference_request.options,
        inference_request.seed,
        inference_request.rows,
        {"images": tiles},
        request_id=request_id_of(request),
        owner=owner_of(request),
    )
    fields = await computed(app_state, request, inference_request, call, prefer)
    if isinstance(fields, Response):
        return fields
    about = About(
        inference_request.entry.name,
        inference_request.entry.version,
        inference_request.seed,
        inference_request.notes + order.lost(wish.kind),
    )
    body = await app_state.upscales.answer(order, photograph.alpha, fields, about, wish)
    headers = {**about.headers({}), **applied(prefer), "Vary": "Accept, Prefer"}
    return app_state.responses.response(body, headers, wish.media)


async def _awaited(app_state: AppState, request: Request, job: Job, wait_s: float) -> Job:
    """The job as it stands after the wait; it was promised to nobody yet, so it ends if the client leaves."""
    until = time.monotonic() + wait_s
    found: Job | None = job
    try:
        while found is not None and found.status not in TERMINAL:
            left = until - time.monotonic()
            if left <= 0:
                break
            found = await app_state.job_service.wait(job.id, owner_of(request), min(left, _LOOK_S))
            if await request.is_disconnected():
                await app_state.job_service.cancel(job.id)
                break
    except asyncio.CancelledError:
        await asyncio.shield(app_state.job_service.cancel(job.id))
        raise
    if found is None:
        raise NotFoundError("the job was deleted before it had ended")
    return found


async def _told(app_state: AppState, request: Request, job: Job, wish: Wish, prefer: Prefer) -> Response:
    """A job's picture, or where to look for it."""
    if job.status not in TERMINAL:
        return accepted(job, prefer)
    check_succeeded(job)
    headers = {**applied(prefer), "Content-Location": f"/v1/jobs/{job.id}/result"}
    answer = await app_state.upscales.respond(request, job, wish, headers)
    answer.headers["Vary"] = "Accept, Prefer"
    return answer


# --- from a body to an ask ---


async def _read(request: Request, app_state: AppState) -> tuple[InferenceRequest, Wish]:
    """The ask in a request, and the form wished for. Raises the ProblemError that says what is wrong with it."""
    content = await _content(request)
    form = validated(UpscaleFields, content.fields)
    entry = _entry(form.model, app_state.models(request))
    choice = entry.choices[OPERATION.method]
    options = options_of(choice, form.options, form.model_extra or {}, UpscaleFields.model_fields, content.texts)
    wish = Wish.read(request.headers.get("accept", ""), [form.format] if form.format else FORMATS)
    photograph = await _photograph(app_state, content, form, wish.kind, int(options["scale"]))
    _, height, width = entry.image
    layout = Layout.of(
        photograph.size,
        photograph.channels,
        alpha=photograph.alpha is not None,
        tile=(height, width),
        margin=entry.margin,
    )
    order = UpscaleSpec(layout, int(options["scale"]), wish.kind, form.quality)
    seed = secrets.randbelow(SEED_LIMIT) if form.seed is None else form.seed
    inference_request = InferenceRequest(
        OPERATION,
        entry,
        options,
        seed,
        layout.tiling.count,
        content,
        notes=photograph.notes,
        photograph=photograph,
        order=order,
    )
    return inference_request, wish


def _entry(name: str | None, registry: Models) -> ModelVersion:
    able = [entry for entry in registry.serving() if OPERATION.method in entry.choices]
    known = ", ".join(entry.name for entry in able) or "none"
    if name is None:
        if not able:
            raise NotFoundError("no model here enlarges pictures; GET /v1/models lists what there is")
        return able[0]
    entry = registry.find(name)
    if entry is None:
        raise NotFoundError(f"no model {name[:120]!r}; those that enlarge pictures: {known}")
    if OPERATION.method not in entry.choices:
        raise InvalidError(f"{entry.name} cannot enlarge pictures; those that can: {known}")
    return entry


async def _content(request: Request) -> Content:
    body = await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == FORM:
        return await _form(request)
    if kind == "application/json":
        return Content(parsed(body) if len(body) < 1 << 16 else await asyncio.to_thread(parsed, body))
    if kind.startswith("image/") or kind == RAW:
        fields, texts = typed(request.query_params.multi_items())
        return Content(fields, [body], texts=texts)
    raise UnsupportedMediaError(
        f"{kind[:60] or 'a body without a Content-Type'} is not read here; send multipart/form-data with a file named "
        "`image`, the picture itself as image/* with the other fields in the query, or application/json"
    )


async def _form(request: Request) -> Content:
    uploads, values = [], request.query_params.multi_items()
    form_boundary(request.headers.get("content-type", ""))
    async with request.form(max_files=2) as form:  # python-multipart's own faults come as HTTP 400
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


async def _photograph(app_state: AppState, content: Content, form: UpscaleFields, kind: str, scale: int) -> Photograph:
    """The request's picture, once it is known that its answer is within the limits."""
    sent: Sequence[bytes | str] = [*content.uploads, *([form.image] if form.image is not None else [])]
    if len(sent) != 1:
        number = f"{len(sent)} were sent" if sent else "missing"
        raise _wrong(f"{number}; send one PNG, JPEG or WebP file")
    try:
        file = sent[0] if isinstance(sent[0], bytes) else await asyncio.to_thread(file_of, sent[0])
        picture = await asyncio.to_thread(opened, file)
        width, height = picture.size
        beyond = _too_large(height, width, scale, app_state.settings) or fault(kind, height * scale, width * scale)
        photograph = None if beyond else await app_state.upscales.decode(picture)
    except UnusableImageError as error:
        raise _wrong(str(error)) from error
    if photograph is None:
        raise _wrong(str(beyond))
    return photograph


def _too_large(height: int, width: int, scale: int, settings: Settings) -> str | None:
    most = settings.max_upscaled_pixels
    pixels = height * width * scale**2
    if pixels <= most:
        return None
    return (
        f"{width}×{height} pixels {scale} times larger are {pixels / 1e6:.1f} megapixels, more than the "
        f"{most / 1e6:g} that are made here; at this scale send at most {most / scale**2 / 1e6:.4g} megapixels"
    )


def _wrong(detail: str) -> InvalidError:
    return InvalidError(f"image: {detail}", errors=[{"field": "image", "detail": detail}])
