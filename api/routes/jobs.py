"""Jobs: list, cancel, delete, and their results and events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import CurrentJob, Owner, State, check_cursor, owner_of
from api.errors import ConflictError, InvalidError, NotFoundError
from api.exposure import client_address, trusted_proxies
from api.job_events import EventStream
from api.openapi import EVENTS, PICTURE, RESULT, problem_responses
from api.responses.job_results import result_response
from api.responses.json import JsonRoute
from api.responses.render import PNG
from api.schemas.jobs import JobPage, JobResponse, JobStatus
from api.state import AppState
from core.jobs.records import TERMINAL

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)

WORD = r"^[\w.-]*$"
ModelName = Annotated[str | None, Query(max_length=120, pattern=WORD)]
After = Annotated[str | None, Query(max_length=60, pattern=WORD)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("", summary="List jobs, newest first", responses=problem_responses(422))
async def list_jobs(
    state: State,
    owner: Owner,
    status: JobStatus | None = None,
    kind: Annotated[str | None, Query(max_length=40, pattern=WORD)] = None,
    model: ModelName = None,
    after: After = None,
    limit: Limit = 20,
) -> JobPage:
    """Return a page of the caller's jobs."""
    filters = {name: value for name, value in (("status", status), ("kind", kind), ("model", model)) if value}
    check_cursor(after, known=not after or await state.job_service.get(after, owner) is not None)
    jobs = await state.job_service.list_jobs(owner, filters, after, limit + 1)
    return JobPage.of([JobResponse.of(job) for job in jobs[:limit]], "id", has_more=len(jobs) > limit)


@router.get("/{job_id}", summary="A job", responses=problem_responses(404))
async def get_job(response: Response, job: CurrentJob) -> JobResponse:
    """Return a job."""
    if job.status not in TERMINAL:
        response.headers["Retry-After"] = "1"
    return JobResponse.of(job)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=problem_responses(404, 409))
async def cancel_job(state: State, owner: Owner, job: CurrentJob) -> JobResponse:
    """Cancel a job; one that is cancelled already stays so."""
    ended = not await state.job_service.cancel(job.id) and job.status != "cancelled"
    job = await state.job_service.get(job.id, owner) or job
    if ended:
        raise ConflictError(f"the job has {job.status} already", job_status=job.status)
    return JobResponse.of(job)


@router.delete("/{job_id}", summary="Delete an ended job", status_code=204, responses=problem_responses(404, 409))
async def delete_job(state: State, job: CurrentJob) -> None:
    """Delete an ended job with its result."""
    if job.status not in TERMINAL:
        raise ConflictError(f"the job is {job.status}; cancel it first", job_status=job.status)
    await state.job_service.delete(job.id)


@router.get(
    "/{job_id}/result",
    summary="A job's result",
    response_class=Response,
    responses={**RESULT, **problem_responses(404, 406, 409, 410, 416)},
)
async def get_job_result(request: Request, state: State, job: CurrentJob) -> Response:
    """Return the result of an ended job."""
    return await result_response(state, request, job)


@router.get(
    "/{job_id}/preview",
    summary="A preview of a running job's pictures",
    response_class=Response,
    responses={**PICTURE, **problem_responses(404)},
)
async def get_job_preview(state: State, job: CurrentJob) -> Response:
    """Return the newest preview of a running job."""
    picture = await state.job_service.preview(job.id) if job.status not in TERMINAL else None
    if picture is None:
        raise NotFoundError(f"the job is {job.status} and has no preview; long jobs with pictures have one")
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


@router.get(
    "/{job_id}/events",
    summary="A job's events as they come (SSE)",
    response_class=Response,
    responses={**EVENTS, **problem_responses(404, 422, 429)},
)
async def stream_job_events(request: Request, state: State, job: CurrentJob) -> Response:
    """Stream the events of a job after `Last-Event-ID`."""
    job_id, seq = job.id, last_event_id(request)
    if (seq or job.status in TERMINAL) and not await state.job_service.events(job_id, seq):
        if job.status in TERMINAL:
            return Response(status_code=204)  # EventSource does not reconnect
        seq = min(seq, len(await state.job_service.events(job_id)))  # they are numbered from 1
    return EventStream(_events(state, job_id, seq), state.streams, stream_owner(state, request))


async def _events(state: AppState, job_id: str, seq: int) -> AsyncIterator[str]:
    """Yield the job's events as they come, and between them, without a number, that there is another preview."""
    yield "retry: 2000\n\n"
    async for update in state.job_service.job_events.listen(job_id, seq):
        if not update.exists:
            return  # it was deleted meanwhile
        for event in update.events:
            yield event.text
            if event.last:
                return
        if update.preview:
            yield f'event: preview\ndata: {{"link":"/v1/jobs/{job_id}/preview"}}\n\n'
        elif not update.events:
            yield ": keep-alive\n\n"


def last_event_id(request: Request) -> int:
    """Return the number of the last event that a client has seen. Raises InvalidError."""
    text = request.headers.get("last-event-id", "0")
    if not text.isdecimal() or len(text) > 18:
        raise InvalidError("Last-Event-ID must be the id of an event of this job")
    return int(text)


def stream_owner(state: AppState, request: Request) -> str:
    """Return whom an event stream counts for: the owner, or without keys the address."""
    owner = owner_of(request)
    if owner:
        return owner
    peer = request.client.host if request.client else "unknown"
    return client_address(peer, dict(request.scope["headers"]), trusted_proxies(state.settings))
