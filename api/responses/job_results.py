"""Responses about jobs: a 202, the result of an ended one, and the errors of one without a result."""

import asyncio
from functools import partial
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from api.errors import GONE, ConflictError, GoneError, ModelFailedError, OverloadedError
from api.prefer import Prefer
from api.responses.json import json_response
from api.responses.render import JSON, NPZ, PNG, About, choose, negotiate, render, summed
from api.responses.upscaled import OutputFormat, kinds_of
from api.schemas.jobs import JobResponse, job_fields
from api.state import AppState
from core.broker.codec import unpack
from core.catalog.operations import BY_METHOD
from core.jobs.records import TERMINAL, Job

_FILE_NAMES = {JSON: "json", PNG: "png", NPZ: "npz"}


def accepted(job: Job, prefer: Prefer) -> Response:
    """Return 202 with the job and where to look for it."""
    headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1", **applied(prefer), "Vary": "Prefer"}
    return json_response(JobResponse.of(job), headers, 202)


def applied(prefer: Prefer) -> dict[str, str]:
    """Return the header that says which preference was followed."""
    return {"Preference-Applied": prefer.applied} if prefer.applied else {}


def overloaded(reason: str) -> OverloadedError:
    """Return the refusal of a request that there is no room for now."""
    return OverloadedError(f"{reason}; try again in a moment", headers={"Retry-After": "2"})


def failed(problem: dict[str, Any]) -> ModelFailedError:
    """Return the error for a problem that a worker reported."""
    error = ModelFailedError(problem["detail"], headers={"Retry-After": "2"} if problem["status"] == 503 else None)
    error.more = {"status": problem["status"], "title": problem["title"]}
    return error


def check_succeeded(job: Job) -> None:
    """Raise the problem of an ended job that has no result, or whose result has expired."""
    if job.status == "failed":
        raise failed(job.problem or {})
    if job.status != "succeeded":
        raise ConflictError(f"the job is {job.status}; it has no result", job_status=job.status)
    if job.expired:
        raise GoneError(GONE)


def _check_ended(job: Job) -> None:
    """Raise ConflictError for a job that has not ended, or has failed."""
    if job.status not in TERMINAL:
        raise ConflictError(
            f"the job is {job.status}; wait for its end",
            job_status=job.status,
            headers={"Retry-After": "1"},
        )
    if job.status == "failed":
        raise ConflictError("the job failed; `job_problem` says why", job_problem=job_fields(job)["problem"])


async def result_response(state: AppState, request: Request, job: Job) -> Response:
    """Return a job's result in the form that `Accept` asks for, whole or in part."""
    accept = request.headers.get("accept", "")
    if job.method not in BY_METHOD:  # a training worker's job has a JSON result
        choose(accept, [JSON])
        _check_ended(job)
        check_succeeded(job)
        chunks = await state.job_service.read(lambda job_store: job_store.result(job.id))
        return Response(orjson.dumps(unpack(chunks[0].data or b"")), media_type=JSON)
    operation = BY_METHOD[job.method]
    media = "" if operation.tiled else negotiate(accept, operation)
    _check_ended(job)
    check_succeeded(job)
    if operation.tiled:
        output = OutputFormat.read(accept, kinds_of(job.request["format"]))
        return await state.upscales.respond(request, job, output, {})
    return await state.results.respond(request, job.id, _FILE_NAMES[media], media, partial(_render, state, job, media))


async def whole_result_response(state: AppState, job: Job, media: str, headers: dict[str, str]) -> Response:
    """Return the whole result of an ended job with more headers. Raises its problem if it has none."""
    check_succeeded(job)
    make = partial(_render, state, job, media)
    return await state.results.whole(job.id, _FILE_NAMES[media], media, make, headers)


async def _render(state: AppState, job: Job, media: str) -> tuple[bytes, dict[str, str]]:
    """Return the body of a succeeded job's result and its headers. Raises GoneError."""
    request = job.request
    columns = BY_METHOD[job.method].columns(job.rows_per_image)
    about = About(job.model, job.version, job.seed, tuple(request.get("conversions", ())), columns)
    try:
        fields = summed(await state.job_service.result(job))
    except LookupError as error:
        raise GoneError(GONE) from error
    return await asyncio.to_thread(render, fields, about, media), about.headers(fields)
