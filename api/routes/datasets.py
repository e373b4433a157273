"""Datasets: upload them, fetch them by name, list, get, share and delete them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from api import audit
from api.auth import Caller
from api.dataset_conversion import NO_ROOM, convert
from api.dependencies import CurrentCaller, State, check_cursor
from api.errors import ConflictError, FullError, MalformedError, NotFoundError, TooLargeError
from api.openapi import PICTURE, bytes_response, no_content, problem_responses, upload
from api.prefer import Prefer
from api.request_content import media_type
from api.requests import valid_urls, validate_fields
from api.responses.job_results import accepted
from api.responses.render import JSON, PNG, JsonRoute, json_response
from api.routes.jobs import Limit
from api.schemas.datasets import (
    DatasetChange,
    DatasetForm,
    DatasetPage,
    DatasetResponse,
    DatasetUrlBody,
    NamedDatasetBody,
)
from api.schemas.jobs import JobResponse
from api.state import AppState
from api.streaming_upload import StreamingUpload
from api.training_jobs import auxiliary_row, run_auxiliary_job
from core.datasets.readers.base import DISK_FULL
from core.datasets.store import Datasets, InUseError, NameTakenError
from core.jobs.records import Job
from core.resources import NameOwnedError

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], route_class=JsonRoute)

Split = Literal["train", "validation", "test"]

PATH = "/v1/datasets"
_MAX_JSON_BYTES = 64 << 10
_NAMED_BYTES = 70_000 * 28 * 28  # size of each dataset that is known by name


@router.post(
    "",
    summary="Upload a dataset, or fetch one by name",
    status_code=201,
    response_model=DatasetResponse,
    responses={
        200: {"description": "It exists already, with the same content", "model": DatasetResponse},
        202: {"description": "The job that fetches a dataset by name or URL", "model": JobResponse},
        **problem_responses(400, 403, 408, 409, 413, 415, 422, 429, 507),
    },
    openapi_extra=upload(DatasetForm, json=(NamedDatasetBody, DatasetUrlBody)),
)
async def create_dataset(request: Request, state: State, caller: CurrentCaller) -> Response:
    """Store an uploaded dataset, or start a job that fetches one.

    A JSON body names a public dataset such as MNIST, or the URL of a file. An upload is a form, or
    an `application/octet-stream` body with the other fields in the query. If a dataset of that name
    has the same content, it is returned with status 200.
    """
    if media_type(request.headers.get("content-type", "")) == JSON:
        return await _create_by_job(request, state, caller)
    about, new = await store_upload(request, state, caller, DatasetForm)
    headers = {"Location": f"{PATH}/{about['name']}"}
    return json_response(_response(state, caller, about), headers, 201 if new else 200)


async def store_upload(
    request: Request, state: AppState, caller: Caller, form_type: type[DatasetForm], *, keep_filename: bool = False
) -> tuple[dict[str, Any], bool]:
    """Convert an uploaded file and store it as a dataset.

    Returns the dataset's description, and whether it is new. The other fields of the upload are
    those of `form_type`. With `keep_filename`, the description contains the client's name of the
    file, as `filename`. Raises a ProblemError if the upload is not valid, cannot be converted, or
    is too large for the disk or the caller's limits; ConflictError if a dataset with this name has
    other content, or if the name belongs to another owner; and ClientDisconnect if the client
    disconnects.
    """
    await state.quotas.check_room(caller, 1)
    async with _work_folder(state.datasets) as folder:
        fields = tuple(form_type.model_fields)
        upload = StreamingUpload(folder, ("file", "labels"), fields, state.settings.min_free_disk_bytes)
        form = validate_fields(form_type, await upload.read(request))
        name, options = form.name, form.conversion(state.settings)
        await state.permissions.exists("dataset", name, caller)
        async with state.conversions:
            about = await convert(request, folder, options, state.settings)
        if keep_filename and "file" in upload.filenames:
            about["filename"] = upload.filenames["file"]
        if not await state.permissions.exists("dataset", name, caller):
            await state.quotas.check_room(caller, int(about.get("bytes", 0)))
            await state.permissions.claim("dataset", name, caller, shared=form.shared)
        confirm = partial(state.resources.confirm, "dataset", name, caller.name, shared=form.shared)
        about, new = await asyncio.to_thread(_add, state.datasets, folder / "made", name, about, confirm)
        await state.permissions.refresh()
        if not new and form.shared is not None:
            await state.permissions.share("dataset", name, caller, shared=form.shared)
    return about, new


async def _create_by_job(request: Request, state: AppState, caller: Caller) -> Response:
    """Start a job that fetches the dataset which a JSON body describes; return 202 with the job.

    With `Prefer: wait=N`, returns 201 with the dataset if the job ends in time. If a dataset with
    this name, made from the same source, exists already, returns 200 with it and starts no job.
    """
    try:
        fields = orjson.loads(await _read_small(request))
    except orjson.JSONDecodeError as error:
        raise MalformedError(f'the body is not JSON ({error}); send for example {{"source": "mnist"}}') from error
    if isinstance(fields, dict) and "source_url" in fields:
        return await _create_by_url(request, state, caller, validate_fields(DatasetUrlBody, fields))
    body = validate_fields(NamedDatasetBody, fields)
    name = body.name or body.source
    webhook = await state.webhooks.check(body.webhook, caller)
    if not await state.permissions.exists("dataset", name, caller):
        await state.quotas.check_room(caller, _NAMED_BYTES)
        await state.permissions.claim("dataset", name, caller, shared=body.shared)
    else:
        if body.shared is not None:
            await state.permissions.share("dataset", name, caller, shared=body.shared)
        about = await find_dataset(state, caller, name)
        shares = about.get("split", {}).get("shares", {})
        if (about.get("source"), shares.get("validation")) == (body.source, body.validation):
            return json_response(_response(state, caller, about), {"Location": f"{PATH}/{name}"})
    row = auxiliary_row(request, "dataset", "", {**_stored(body), "name": name}, webhook=webhook)
    return await _respond_by_job(request, state, caller, row)


async def _create_by_url(request: Request, state: AppState, caller: Caller, body: DatasetUrlBody) -> Response:
    """Start a job that downloads and converts the file at a URL; return 202 with the job.

    With `Prefer: wait=N`, returns 201 with the dataset if the job ends in time. Raises InvalidError
    if a field, the URL or the webhook is not valid.
    """
    body.conversion(state.settings)  # checks `resize`
    urls = valid_urls("source_url", body.source_url)
    await state.inputs.check({"source_url": urls})
    webhook = await state.webhooks.check(body.webhook, caller)
    if not await state.permissions.exists("dataset", body.name, caller):
        await state.quotas.check_room(caller, 1)
        await state.permissions.claim("dataset", body.name, caller, shared=body.shared)
    elif body.shared is not None:
        await state.permissions.share("dataset", body.name, caller, shared=body.shared)
    row = auxiliary_row(request, "dataset", "", {**_stored(body), "source_url": urls[0]}, webhook=webhook)
    return await _respond_by_job(request, state, caller, row)


def _stored(body: NamedDatasetBody | DatasetUrlBody) -> dict[str, Any]:
    """Return the fields of a body that its job stores: all except the webhook."""
    return body.model_dump(exclude={"webhook"})


async def _respond_by_job(request: Request, state: AppState, caller: Caller, row: Job) -> Response:
    """Insert the job `row`, which makes a dataset, and return 202 with the job.

    If the request has `Prefer: wait=N` and the job ends in time, returns 201 with the dataset.
    """
    state.job_service.check_room()
    prefer = Prefer.of(request, state.settings, 0.0)
    result, job = await run_auxiliary_job(state, caller, row, prefer.wait_s)
    if result is None:
        return accepted(job, prefer)
    await state.permissions.refresh()
    headers = {"Location": f"{PATH}/{row.request['name']}", **prefer.headers}
    return json_response(_response(state, caller, result), headers, 201)


@router.get("", summary="List datasets, by name", responses=problem_responses(422))
async def list_datasets(
    state: State, caller: CurrentCaller, after: Annotated[str, Query(max_length=64)] = "", limit: Limit = 20
) -> DatasetPage:
    """Return a page of the datasets that the caller may use, sorted by name."""
    await state.permissions.refresh()
    known = state.permissions.can_use("dataset", after, caller)
    known = known and await asyncio.to_thread(state.datasets.get, after) is not None
    check_cursor(after, known=known)
    datasets = await asyncio.to_thread(
        state.datasets.listing, after, limit + 1, lambda name: state.permissions.can_use("dataset", name, caller)
    )
    return DatasetPage.of([_response(state, caller, about) for about in datasets], "name", limit)


@router.get("/{name}", summary="A dataset", responses=problem_responses(404))
async def get_dataset(state: State, caller: CurrentCaller, name: str) -> DatasetResponse:
    """Return the description of a dataset."""
    return _response(state, caller, await find_dataset(state, caller, name))


@router.get("/{name}/preview", summary="Some of a dataset's pictures as a grid", **bytes_response(PICTURE, 404, 422))
async def get_dataset_preview(
    state: State,
    caller: CurrentCaller,
    name: str,
    split: Split = "train",
    count: Annotated[int, Query(ge=1, le=400)] = 64,
) -> Response:
    """Return a PNG with a grid of `count` pictures of a split, evenly spaced over it.

    The status is 404 if the split has no pictures.
    """
    await find_dataset(state, caller, name)
    picture = await asyncio.to_thread(state.datasets.preview, name, split, count)
    if picture is None:
        raise NotFoundError(f"the dataset {name} has no pictures in its {split} split")
    return Response(picture, 200, {"Cache-Control": "no-cache"}, PNG)


@router.patch("/{name}", summary="Share a dataset with everybody, or not", responses=problem_responses(403, 404, 422))
async def update_dataset(
    request: Request, state: State, caller: CurrentCaller, name: str, change: DatasetChange
) -> DatasetResponse:
    """Set whether everybody may use a dataset, or only its owner."""
    audit.describe(request, shared=change.shared)
    await find_dataset(state, caller, name)
    await state.permissions.share("dataset", name, caller, shared=change.shared)
    return _response(state, caller, await find_dataset(state, caller, name))


@router.delete("/{name}", summary="Delete a dataset that is not in use", **no_content(403, 404, 409))
async def delete_dataset(state: State, caller: CurrentCaller, name: str) -> None:
    """Delete a dataset. The status is 409 if an unfinished training uses it."""
    about = await find_dataset(state, caller, name)
    ownership = await state.permissions.check_deletion("dataset", name, caller)
    try:
        deleted = await asyncio.to_thread(state.datasets.delete, name, about["created_at"])
    except InUseError as error:
        users = ", ".join(error.users[:10])
        raise ConflictError(f"{name} is in use by {users}; wait until they end, or cancel them first") from error
    if deleted:
        await state.permissions.release("dataset", name, ownership)


async def find_dataset(state: AppState, caller: Caller, name: str) -> dict[str, Any]:
    """Return the description of a dataset that the caller may use.

    Raises NotFoundError if there is no such dataset.
    """
    await state.permissions.refresh()
    usable = state.permissions.can_use("dataset", name, caller)
    about = await asyncio.to_thread(state.datasets.get, name) if usable else None
    if about is None:
        raise NotFoundError(f"no dataset {name[:120]!r}; GET {PATH} lists them")
    return about


def _response(state: AppState, caller: Caller, about: dict[str, Any]) -> DatasetResponse:
    """Return the response body for a dataset: its description `about`, its owner, and its links."""
    path = f"{PATH}/{about['name']}"
    ownership = state.permissions.describe("dataset", about["name"], caller)
    links = {"self": path, "preview": f"{path}/preview", "images": f"{path}/images"}
    return DatasetResponse.model_validate({**about, **ownership, "links": links})


# --- uploads ---


@asynccontextmanager
async def _work_folder(datasets: Datasets) -> AsyncIterator[Path]:
    """Create a temporary folder for a conversion, yield it, and delete it after the block.

    Raises FullError if the disk is full when the folder is created, or in the block.
    """
    scratch = datasets.scratch_folder()
    try:
        folder = await asyncio.to_thread(scratch.__enter__)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(scratch.__exit__, None, None, None))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise FullError(NO_ROOM) from error


async def _read_small(request: Request) -> bytes:
    """Return the body of a JSON request, of at most `_MAX_JSON_BYTES` bytes.

    Raises TooLargeError for a longer body. The route itself limits only uploads, which may be
    large.
    """
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_JSON_BYTES:
            raise TooLargeError(f"a JSON body here has at most {_MAX_JSON_BYTES} bytes")
    return body


def _add(
    datasets: Datasets, converted: Path, name: str, about: dict[str, Any], confirm: Callable[..., None]
) -> tuple[dict[str, Any], bool]:
    """Store the dataset in the folder `converted`; return its description and whether it is new.

    `confirm` is that of `Datasets.add`. Raises ConflictError if a dataset with this name has other
    content, or if the name belongs to another owner.
    """
    try:
        return datasets.add(converted, name, about, confirm)
    except NameOwnedError as error:
        raise ConflictError(f"the name {name} was taken by another dataset meanwhile; choose another name") from error
    except NameTakenError as error:
        detail = f"there is a dataset {name} with other content; use another name, or delete that one first"
        raise ConflictError(detail) from error
