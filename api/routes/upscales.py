"""`POST /v1/upscales`: enlarges one image of any size.

The tiles of the image are the rows that workers process.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response

from api.access import caller_of
from api.deadline import deadline_of
from api.errors import InvalidError, NotFoundError, request_id_of
from api.permissions import Models
from api.prefer import Prefer
from api.request_content import FORM, Content, decode_base64, media_type, parse_body, read_form
from api.request_span import traceparent_of
from api.requests import InferenceRequest, seed_or_random, valid_urls, validate_fields, validate_options
from api.responses.job_results import accepted, check_succeeded
from api.responses.render import ResultMetadata
from api.responses.upscaled import OutputFormat, UpscaleSpec, storage_failed
from api.routes.operations import (
    add_plain_route,
    check_outbound,
    compute_or_accept,
    create_job,
    insert_job_once,
    wait_for_job,
)
from api.schemas.operations import UpscaleFields
from api.state import AppState
from api.stored_content import IMAGES_URL
from core.broker.codec import MARGINS
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion
from core.imaging.encoders import FORMATS, format_size_error
from core.imaging.pictures import UnusableImageError
from core.imaging.tiling import Layout, Photograph, Tiling, open_photograph
from core.jobs.records import Job
from core.settings import Settings

OPERATION = BY_METHOD["upscale"]
MAX_SYNC_TILES = 64  # a picture with more tiles becomes a job at once
TILE_AREA = 2.25  # a tile may have so many times the pixels of the model's image

_INLINE_BYTES = 64 << 10  # a larger body is parsed in a thread
_ACCEPTED = (
    "send multipart/form-data with a file named `image`, the picture itself as image/* with the other fields in the "
    "query, or application/json"
)


def add_upscales(app: FastAPI, state: AppState) -> None:
    """Add the route `POST /v1/upscales` to the application."""
    state.inputs.builders[OPERATION.method] = partial(_build_request, state)

    async def route(request: Request) -> Response:
        inference_request, output = await _read_request(request, state)
        by_job = inference_request.always_job
        prefer = (
            await check_outbound(state, request, inference_request) if by_job else Prefer.of(request, state.settings)
        )
        key = request.headers.get("idempotency-key")
        if key is None and prefer.wait_s > 0 and inference_request.rows <= MAX_SYNC_TILES and not by_job:
            return await _respond_sync(state, request, inference_request, output, prefer)
        try:
            if key is not None:
                await asyncio.to_thread(lambda: inference_request.content.fingerprint)  # a cached property
                job = await insert_job_once(state, inference_request, prefer, key)
            else:
                job = await create_job(state, inference_request)
        except OSError as error:
            raise storage_failed(error) from error
        del inference_request  # the pixels are in the blob store now
        if key is None and prefer.wait_s > 0:
            job = await wait_for_job(state, request, job, prefer.wait_s)
        return await _job_response(state, request, job, output, prefer)

    add_plain_route(app, OPERATION, route)


async def _respond_sync(
    state: AppState, request: Request, inference_request: InferenceRequest, output: OutputFormat, prefer: Prefer
) -> Response:
    """Return the enlarged image in the format `output`, if it is computed in time.

    Otherwise returns 202 with a job that continues the work.
    """
    spec, photograph = inference_request.upscale, inference_request.photograph
    assert spec is not None  # noqa: S101 - every request of this route has both
    assert photograph is not None  # noqa: S101
    tiling = spec.layout.tiling
    tiles = await asyncio.to_thread(tiling.cut, lambda begin, end: photograph.pixels[begin:end], 0, tiling.count)
    inference_request.items = {"images": tiles, MARGINS: np.array([tiling.margins], np.int64)}
    fields = await compute_or_accept(state, request, inference_request, prefer)
    if isinstance(fields, Response):
        return fields
    entry, conversions = inference_request.entry, inference_request.conversions + spec.conversions_to(output.kind)
    metadata = ResultMetadata(entry.name, entry.version, inference_request.seed, conversions)
    metadata.device_kind, metadata.restarts = inference_request.device_kind, inference_request.restarts
    body = await state.upscales.render(spec, photograph.alpha, fields, metadata, output)
    headers = {**metadata.headers({}), **prefer.headers, "Vary": "Accept, Prefer"}
    return state.responses.of_body(body, 200, headers, output.media)


async def _job_response(state: AppState, request: Request, job: Job, output: OutputFormat, prefer: Prefer) -> Response:
    """Return the image of a job that has ended; otherwise 202 with the job.

    Raises ModelFailedError, ConflictError or GoneError if the job has ended without a result.
    """
    if not job.ended:
        return accepted(job, prefer)
    check_succeeded(job)
    headers = {**prefer.headers, "Content-Location": f"/v1/jobs/{job.id}/result"}
    response = await state.upscales.respond(request, job, output, headers)
    response.headers["Vary"] = "Accept, Prefer"
    return response


# --- reading and validation of requests ---


async def _read_request(request: Request, state: AppState) -> tuple[InferenceRequest, OutputFormat]:
    """Read and validate a request; return it with its image decoded, and its response's format.

    The image is not decoded if it must first be fetched by URL. Raises a ProblemError if the body,
    a field or the image is not valid, or if no format is acceptable.
    """
    content = await _read_content(request)
    fields = validate_fields(UpscaleFields, content.fields)
    entry = _find_model(fields.model, state.models(request))
    options = validate_options(entry.operations[OPERATION.method], fields, UpscaleFields.model_fields, content.texts)
    output = OutputFormat.read(request.headers.get("accept", ""), [fields.format] if fields.format else FORMATS)
    if fields.image_url is not None:
        inference_request = _without_image(content, fields, entry, options)
        inference_request.output_kind = output.kind
    else:
        inference_request = await _with_image(state, content, fields, entry, options, output.kind)
    inference_request.webhook_body = fields.webhook
    inference_request.caller, inference_request.request_id = caller_of(request.scope), request_id_of(request)
    inference_request.deadline_at = deadline_of(request.scope)
    inference_request.traceparent = traceparent_of(request.scope)
    return inference_request, output


def _without_image(
    content: Content, fields: UpscaleFields, entry: ModelVersion, options: dict[str, Any]
) -> InferenceRequest:
    """Return the request for a job whose image must first be downloaded.

    Until then its number of rows, which are the tiles of the image, is given as 1. Raises
    InvalidError if the URL is not valid, or if an image was sent too.
    """
    if content.uploads or fields.image is not None:
        raise InvalidError.in_field(IMAGES_URL, "send either `image` or `image_url`")
    urls = {IMAGES_URL: valid_urls(IMAGES_URL, fields.image_url or "")}
    return InferenceRequest(OPERATION, entry, options, seed_or_random(fields.seed), 1, content, input_urls=urls)


async def _build_request(state: AppState, job: Job, content: Content) -> InferenceRequest:
    """Return the complete request of a job whose image has been fetched.

    Raises NotFoundError if its model was deleted, and InvalidError if the image cannot be used.
    """
    entry = state.registry.find(f"{job.model}@{job.version}")
    if entry is None:
        raise NotFoundError(f"the model {job.model}@{job.version} was deleted before the picture was fetched")
    fields = validate_fields(UpscaleFields, content.fields)
    assert fields.format is not None  # noqa: S101 - stored with the job
    return await _with_image(state, content, fields, entry, job.options, fields.format)


async def _with_image(
    state: AppState, content: Content, fields: UpscaleFields, entry: ModelVersion, options: dict[str, Any], kind: str
) -> InferenceRequest:
    """Decode the image that was sent with a request, and return the complete request.

    `kind` is the file format of the result. Raises InvalidError if the image cannot be used.
    """
    photograph = await _read_photograph(state, content, fields.image, kind, int(options["scale"]))
    tiling = _tiling(photograph, entry, options)
    layout = Layout(tiling, photograph.channels, alpha=photograph.alpha is not None)
    seed = seed_or_random(fields.seed)
    inference_request = InferenceRequest(OPERATION, entry, options, seed, tiling.count, content)
    inference_request.photograph, inference_request.conversions = photograph, photograph.notes
    inference_request.upscale = UpscaleSpec(layout, int(options["scale"]), kind, fields.quality)
    return inference_request


def _tiling(photograph: Photograph, entry: ModelVersion, options: dict[str, Any]) -> Tiling:
    """Return how an image is divided into tiles.

    Tiles have the size of the model's images or, if the model allows any size, one that fits the
    image.
    """
    (_, height, width), spec = entry.image, entry.card.operations[OPERATION.method]
    if spec.any_size:
        return Tiling.fit(*photograph.size, int(TILE_AREA * height * width), spec.margin_for(options))
    return Tiling(*photograph.size, (height, width), (spec.margin, spec.margin))


def _find_model(name: str | None, models: Models) -> ModelVersion:
    """Return the model `name`; without a name, the first active model that enlarges images.

    Raises NotFoundError if there is no such model, and InvalidError if the model cannot enlarge
    images.
    """
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
        raise InvalidError.in_fields(["model"], f"{entry.name} cannot enlarge pictures; those that can: {known}")
    return entry


async def _read_content(request: Request) -> Content:
    """Return the fields and the image file in a body.

    Raises UnsupportedMediaError for another media type, MalformedError if the body cannot be
    parsed, and InvalidError for a field that is given twice or an unknown file field.
    """
    body = await request.body()
    media = media_type(request.headers.get("content-type", ""))
    if media == FORM:
        return await read_form(request, ["image"], 2, "the picture's field is `image`")
    if len(body) < _INLINE_BYTES:
        return parse_body(body, media, request, _ACCEPTED)
    return await asyncio.to_thread(parse_body, body, media, request, _ACCEPTED)


async def _read_photograph(state: AppState, content: Content, image: str | None, kind: str, scale: int) -> Photograph:
    """Return the decoded image of a request, which was uploaded or is the base64 text `image`.

    `kind` is the file format of the result. Raises InvalidError if there is not exactly one image,
    if it cannot be decoded, or, before decoding, if the result would be too large.
    """
    sent: Sequence[bytes | str] = [*content.uploads, *([image] if image is not None else [])]
    if len(sent) != 1:
        number = f"{len(sent)} were sent" if sent else "missing"
        raise InvalidError.in_field("image", f"{number}; send one PNG, JPEG or WebP file")
    try:
        file = sent[0] if isinstance(sent[0], bytes) else await asyncio.to_thread(decode_base64, sent[0])
        picture = await asyncio.to_thread(open_photograph, file)
        width, height = picture.size
        reason = _size_error(height, width, scale, state.settings)
        if reason := reason or format_size_error(kind, height * scale, width * scale):
            raise InvalidError.in_field("image", reason)
        return await state.upscales.decode(picture)
    except UnusableImageError as error:
        raise InvalidError.in_field("image", str(error)) from error


def _size_error(height: int, width: int, scale: int, settings: Settings) -> str | None:
    """Return why the enlarged image would have too many pixels; None if its size is allowed."""
    limit, pixels = settings.max_upscaled_pixels, height * width * scale**2
    if pixels <= limit:
        return None
    return (
        f"{width}×{height} pixels {scale} times larger are {pixels / 1e6:.1f} megapixels, more than the "
        f"{limit / 1e6:g} that are made here; at this scale send at most {limit / scale**2 / 1e6:.4g} megapixels"
    )
