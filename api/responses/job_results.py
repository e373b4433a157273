"""Makes the responses about a job: 202, its result, or the error if it has no result."""

from functools import partial

import orjson
from fastapi import Request, Response

from api.errors import GONE, ConflictError, GoneError, ModelFailedError
from api.prefer import Prefer
from api.responses.render import (
    JSON,
    NPZ,
    PNG,
    ResultMetadata,
    choose,
    json_response,
    negotiate,
    with_acceptance_rate,
    write,
)
from api.responses.result_files import Rendering
from api.responses.upscaled import OutputFormat, kinds_of
from api.row_files import array_bytes
from api.schemas.jobs import JobResponse, job_fields
from api.state import AppState
from core.broker.codec import unpack
from core.catalog.operations import BY_METHOD
from core.jobs.records import Job

_FILE_NAMES = {JSON: "json", PNG: "png", NPZ: "npz"}


def accepted(job: Job, prefer: Prefer) -> Response:
    """Return the 202 response for a job: the job as its body, its URL as `Location`."""
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1", **prefer.headers, "Vary": "Prefer"}
    if job.device_kind:
        headers["Reverie-Device-Kind"] = job.device_kind
    return json_response(JobResponse.of(job), headers, 202)


def check_succeeded(job: Job) -> None:
    """Check that an ended job has a result.

    Raises ModelFailedError if the job failed, ConflictError if it was cancelled, and GoneError if
    its result has expired.
    """
    if job.status == "failed":
        raise ModelFailedError.of(job.problem or {})
    if job.status != "succeeded":
        raise ConflictError(f"the job is {job.status}; it has no result", job_status=job.status)
    if job.expired:
        raise GoneError(GONE)


def _check_ended(job: Job) -> None:
    """Raise ConflictError if a job is queued, running or paused, or if it failed.

    A job that has succeeded or was cancelled passes this check.
    """
    if not job.ended:
        raise ConflictError(f"the job is {job.status}; wait for its end", job_status=job.status, retry_after_s=1)
    if job.status == "failed":
        raise ConflictError("the job failed; `job_problem` says why", job_problem=job_fields(job)["problem"])


async def result_response(state: AppState, request: Request, job: Job) -> Response:
    """Return a job's result in the format that `Accept` prefers, or a byte range of it.

    Raises NotAcceptableError if no format is acceptable, ConflictError if the job has not
    succeeded, and GoneError if the result has expired.
    """
    accept = request.headers.get("accept", "")
    operation = BY_METHOD.get(job.method)
    media = ""
    if operation is None:  # a training worker's job, whose result is JSON
        choose(accept, [JSON])
    elif not operation.tiled:
        media = negotiate(accept, operation)
    _check_ended(job)
    check_succeeded(job)
    if operation is None:
        chunks = await state.job_service.read(lambda job_store: job_store.result(job.id))
        return Response(orjson.dumps(unpack(chunks[0].data or b"")), media_type=JSON)
    if operation.tiled:
        output = OutputFormat.read(accept, kinds_of(job.request["format"]))
        return await state.upscales.respond(request, job, output, {})
    return await state.results.respond(request, job.id, _FILE_NAMES[media], media, partial(_render, state, job, media))


async def whole_result_response(state: AppState, job: Job, media: str, headers: dict[str, str]) -> Response:
    """Return the complete result of a job that has ended, with `headers` added.

    Raises ModelFailedError if the job failed, ConflictError if it was cancelled, and GoneError if
    its result has expired or was deleted.
    """
    check_succeeded(job)
    make = partial(_render, state, job, media)
    return await state.results.whole(job.id, _FILE_NAMES[media], media, make, headers)


async def _render(state: AppState, job: Job, media: str) -> Rendering:
    """Return a description of how to write a succeeded job's result in the media type `media`.

    Raises GoneError if the result was deleted.
    """
    request = job.request
    columns = BY_METHOD[job.method].columns(job.rows_per_image)
    metadata = ResultMetadata(job.model, job.version, job.seed, tuple(request.get("conversions", ())), columns)
    metadata.device_kind = job.device_kind or ""
    try:
        fields = with_acceptance_rate(await state.job_service.result(job))
    except LookupError as error:
        raise GoneError(GONE) from error
    make = partial(write, fields=fields, metadata=metadata, media=media)
    return Rendering(make, array_bytes(fields), metadata.headers(fields))
