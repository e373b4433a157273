"""OpenAI's image routes, for samples and inpaintings, and the route to which their URLs lead."""

import asyncio
import base64
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, BinaryIO

import orjson
from fastapi import APIRouter, Query, Request, Response

from api.dependencies import CurrentJob, State
from api.errors import GONE, ConflictError, GoneError, InvalidError, NotFoundError, OverloadedError
from api.openai_errors import PREFIX
from api.openapi import BINARY, TIMEOUT, openai_responses, upload
from api.permissions import Models
from api.prefer import Prefer
from api.request_content import FORM, Content, media_type, read_form, unsupported
from api.requests import InferenceRequest, request_of_content, validate_fields
from api.responses.job_results import check_succeeded
from api.responses.large_responses import written_bytes
from api.responses.openai_images import MAX_SIDE, ImageOutput, check_factor, check_pixels, describe_images, prepare_edit
from api.responses.render import JSON, JsonRoute
from api.responses.result_files import Rendering
from api.routes.openai.parameters import known_only
from api.routes.operations import PNG_BY_WORKER, compute_or_accept, create_job, wait_for_job
from api.row_files import ROW_FILE_BYTES
from api.schemas.openai import ImageEditForm, ImageFormat, ImageGenerationBody, ImageParameters, OpenAIImages
from api.state import AppState
from core.broker.codec import Fields
from core.catalog.operations import BY_METHOD, Operation
from core.catalog.registry import ModelVersion
from core.imaging.encoders import MEDIA
from core.imaging.pictures import Pixels, decode_own_png
from core.jobs.records import Job

router = APIRouter(prefix=f"{PREFIX}/images", tags=["openai"], route_class=JsonRoute)

SAMPLE, INPAINT = BY_METHOD["sample"], BY_METHOD["inpaint"]
WAIT_S = 590.0  # OpenAI's clients wait ten minutes
_JSON_FIELDS = ("n", "output_compression", "seed", "stream", "options")  # of a form; the other fields are texts


@router.post(
    "/generations",
    summary="Draw images",
    response_model=OpenAIImages,
    responses=openai_responses(400, 404, 429, 500, 503, 504, 507),
    openapi_extra={"parameters": [TIMEOUT]},
)
async def create_openai_images(request: Request, state: State, body: ImageGenerationBody) -> Response:
    """Draw `n` samples of a model. The prompt is not used."""
    entry = _find_model(state.models(request), body.model, SAMPLE)
    return await _respond(state, request, body, SAMPLE, entry, Content({}))


@router.post(
    "/edits",
    summary="Fill in the transparent part of an image",
    response_model=OpenAIImages,
    responses=openai_responses(400, 404, 429, 500, 503, 504, 507),
    openapi_extra={**upload(ImageEditForm), "parameters": [TIMEOUT]},
)
async def edit_openai_image(request: Request, state: State) -> Response:
    """Return `n` images in which the transparent pixels of `mask` are filled in.

    Without `mask`, the transparent pixels of the image are filled in.
    """
    form = await _read_edit(request)
    fields = {**form.texts, **{name: form.fields[name] for name in _JSON_FIELDS if name in form.fields}}
    parameters = validate_fields(ImageEditForm, fields)
    entry = _find_model(state.models(request), parameters.model, INPAINT)
    images = [*form.uploads, *form.named["image[]"]]
    masks = form.named["mask"]
    if len(images) != 1:
        raise InvalidError.in_field("image", f"{len(images)} were sent; send one image as a file")
    if len(masks) > 1:
        raise InvalidError.in_field("mask", f"{len(masks)} were sent; send one")
    image, mask = await asyncio.to_thread(prepare_edit, images[0], masks[0] if masks else None, entry.image)
    content = Content({}, [image], {"mask": [mask]}, form.texts)
    return await _respond(state, request, parameters, INPAINT, entry, content)


async def _read_edit(request: Request) -> Content:
    """Return the fields and files of an edit, which is a form."""
    media = media_type(request.headers.get("content-type", ""))
    if media != FORM:
        raise unsupported(media, f"send {FORM} with a file `image` and, unless it is transparent, a file `mask`")
    return await read_form(request, ("image", "image[]", "mask"), 4, "the files are `image` and `mask`")


@router.get(
    "/{job_id}/{index}",
    summary="An image of a job, by a link of `response_format: url`",
    response_class=Response,
    responses={
        200: {"description": "The image", "content": dict.fromkeys(MEDIA.values(), BINARY)},
        206: {"description": "The part that `Range` asked for", "content": dict.fromkeys(MEDIA.values(), BINARY)},
        304: {"description": "The image is the one that `If-None-Match` names"},
        **openai_responses(404, 409, 410, 416, 422, 500),
    },
)
async def get_openai_image(
    request: Request,
    state: State,
    job: CurrentJob,
    index: int,
    output_format: ImageFormat = "png",
    quality: Annotated[int, Query(ge=0, le=100)] = 100,
    factor: Annotated[int, Query(ge=1, le=MAX_SIDE)] = 1,
) -> Response:
    """Return image number `index` of a job, from 0, enlarged `factor` times."""
    operation = BY_METHOD.get(job.method)
    if operation is None or not operation.pictures or operation.tiled or not 0 <= index < job.rows:
        raise NotFoundError(f"no image {index} of the job {job.id}")
    if not job.ended:
        raise ConflictError(f"the job is {job.status}; wait for its end", job_status=job.status, retry_after_s=1)
    check_succeeded(job)
    output = ImageOutput(output_format, quality, factor)

    async def render() -> Rendering:
        try:
            fields = await state.job_service.result(job)
        except LookupError as error:
            raise GoneError(GONE) from error
        image = fields["images"][index]
        check_factor(output, decode_own_png(image) if isinstance(image, bytes) else image)
        return Rendering(lambda out: out.write(_file(image, output)), 0, {})

    name = f"{index}.{factor}.{quality}.{output_format}"
    return await state.results.respond(request, job.id, name, output.media, render)


# --- models and options ---


def _find_model(models: Models, ref: str | None, operation: Operation) -> ModelVersion:
    """Return the model `ref`; if `ref` is None, the first active model that fits.

    A model fits if it has the operation and its images are higher than one pixel. Raises
    NotFoundError if there is no model `ref`, and InvalidError if this model lacks the operation, or
    if no model fits.
    """
    able = [entry for entry in models.active() if operation.method in entry.operations]
    names = ", ".join(entry.name for entry in able) or "none"
    if ref is None:
        default = next((entry for entry in able if entry.image.height > 1), None)
        if default is None:
            raise InvalidError.in_field("model", f"missing; these can do this: {names}")
        return default
    entry = models.find(ref)
    if entry is None:
        detail = f"no model {ref[:120]!r}; these can do this: {names}"
        raise NotFoundError(detail, errors=[{"field": "model", "detail": detail}], code="model_not_found")
    if operation.method not in entry.operations:
        verb = "fill in images" if operation is INPAINT else "draw images"
        raise InvalidError.in_field("model", f"{ref[:120]} cannot {verb}; these can: {names}")
    return entry


def _inference_request(
    state: AppState,
    request: Request,
    parameters: ImageParameters,
    operation: Operation,
    entry: ModelVersion,
    content: Content,
) -> InferenceRequest:
    """Return the request for the operation that draws the images.

    `parameters` are OpenAI's; `content` has the uploaded images. Raises InvalidError for unknown
    parameters, and for options that the model does not accept.
    """
    options = entry.operations[operation.method].schema.get("properties", {})
    more = f"; options of {entry.name}: {', '.join(sorted(options))}" if options else ""
    extra = {name: value for name, value in (parameters.model_extra or {}).items() if name not in options}
    known_only(extra, type(parameters).model_fields, more)
    chosen = {name: value for name, value in (parameters.model_extra or {}).items() if name in options}
    fields = {"model": entry.ref, "count": parameters.n or 1, "options": parameters.options, **chosen}
    if parameters.seed is not None:
        fields["seed"] = parameters.seed
    texts = {name: text for name, text in content.texts.items() if name in chosen}
    content = Content(fields, content.uploads, content.named, texts)
    return request_of_content(request, content, operation, state.models(request), state.settings)


# --- responses ---


async def _respond(
    state: AppState,
    request: Request,
    parameters: ImageParameters,
    operation: Operation,
    entry: ModelVersion,
    content: Content,
) -> Response:
    """Draw the images of a request for generations or edits; return OpenAI's response with them.

    Raises InvalidError if `n` is too large or an option is not valid.
    """
    n = parameters.n or 1
    if n > state.settings.max_count:
        raise InvalidError.in_field("n", f"{n} is more than the {state.settings.max_count} of one request")
    output = ImageOutput.of(parameters, entry.image)
    check_pixels(n, output, entry.image)
    work = _inference_request(state, request, parameters, operation, entry, content)
    describe: Callable[[Any], dict[str, str]]
    images: Iterable[Any]
    if parameters.response_format == "url":
        job = await _finished_job(state, request, work)
        describe, images = partial(_link, request, job, output), range(n)
    else:
        describe, images = partial(_data, output), (await _compute(state, request, work, output))["images"]
    width, height = output.size(entry.image)
    text = describe_images(_work_text(operation, entry, work.seed), parameters, output, entry.image)
    body = {
        "created": int(time.time()),
        "output_format": output.format,
        "size": f"{width}x{height}",
        "background": "opaque",
        "model": entry.ref,
        "seed": work.seed,
        **({"conversions": list(work.conversions)} if work.conversions else {}),
    }
    write = partial(
        _write, body=body, images=images, describe=lambda image: {**describe(image), "revised_prompt": text}
    )
    headers = {"Cache-Control": "no-store"}
    if n * width * height > ROW_FILE_BYTES:
        return await state.responses.written(write, headers, JSON)
    return state.responses.of_body(await asyncio.to_thread(written_bytes, write), 200, headers, JSON)


def _write(
    out: BinaryIO, body: dict[str, Any], images: Iterable[Any], describe: Callable[[Any], dict[str, str]]
) -> None:
    """Write the JSON of a response to `out`: the fields of `body`, and `data`, a list of images.

    `describe` returns the entry in `data` for one of the `images`.
    """
    out.write(orjson.dumps(body)[:-1] + b',"data":[')
    out.writelines((b"," if index else b"") + orjson.dumps(describe(image)) for index, image in enumerate(images))
    out.write(b"]}")


def _work_text(operation: Operation, entry: ModelVersion, seed: int) -> str:
    """Return the sentence of `revised_prompt` that says what the model did."""
    what = "Transparent pixels were filled in by" if operation is INPAINT else "These are samples of"
    return f"{what} {entry.ref} with seed {seed}"


async def _compute(state: AppState, request: Request, work: InferenceRequest, output: ImageOutput) -> Fields:
    """Return the result of an operation, with the images in the field `images`.

    If it takes longer than `WAIT_S` seconds, the request becomes a job that continues, and
    OverloadedError is raised.
    """
    # the worker's files are returned as they are
    png = output == ImageOutput() and work.rows <= PNG_BY_WORKER
    fields = await compute_or_accept(state, request, work, Prefer(WAIT_S, ""), png=png)
    if isinstance(fields, Response):
        raise _too_slow(fields.headers["location"])
    return fields


async def _finished_job(state: AppState, request: Request, work: InferenceRequest) -> Job:
    """Run the operation as a job, and return the job when it has succeeded.

    Raises ModelFailedError, ConflictError or GoneError if the job has ended without a result. If it
    has not ended after `WAIT_S` seconds, raises OverloadedError, and the job continues.
    """
    created = await create_job(state, work)
    job = await wait_for_job(state, request, created, WAIT_S)
    if not job.ended:
        raise _too_slow(f"/v1/jobs/{created.id}")
    check_succeeded(job)
    return job


def _too_slow(path: str) -> OverloadedError:
    """Return the error for images that are not ready in time; `path` is the URL path of their job."""
    detail = f"the images are not ready after {WAIT_S:.0f} s; GET {path} shows the job that makes them"
    return OverloadedError(detail, headers={"X-Should-Retry": "false"})


def _data(output: ImageOutput, image: Pixels | bytes) -> dict[str, str]:
    """Return the entry of an image in the `data` of a response, with its file as base64."""
    return {"b64_json": base64.b64encode(_file(image, output)).decode()}


def _link(request: Request, job: Job, output: ImageOutput, index: int) -> dict[str, str]:
    """Return the entry of an image in the `data` of a response, with the URL of its file.

    `index` is the number of the image in its job, from 0. The query of the URL has the format,
    quality and factor of `output` that differ from the defaults.
    """
    options = {"output_format": output.format, "quality": output.quality, "factor": output.factor}
    default = {"output_format": "png", "quality": 100, "factor": 1}
    chosen = {name: value for name, value in options.items() if value != default[name]}
    return {"url": str(request.url_for("get_openai_image", job_id=job.id, index=index).include_query_params(**chosen))}


def _file(image: Pixels | bytes, output: ImageOutput) -> bytes:
    """Return the image file in the format of `output`, from pixels or from the worker's PNG."""
    if not isinstance(image, bytes):
        return output.encode(image)
    return image if output == ImageOutput() else output.encode(decode_own_png(image))
