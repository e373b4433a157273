"""Jobs: list, get, cancel and delete them; their results, previews and event streams."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.access import caller_of
from api.dependencies import CurrentJob, Owner, State, check_cursor
from api.errors import ConflictError, InvalidError, NotFoundError
from api.exposure import client_address, trusted_proxies
from api.job_events import EventStream
from api.openapi import EVENTS, PICTURE, RESULT, bytes_response, no_content, problem_responses
from api.responses.job_results import result_response
from api.responses.render import PNG, JsonRoute
from api.schemas.jobs import JobPage, JobResponse, JobStatus
from api.state import AppState
from core.jobs.records import Job

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)

WORD = r"^[A-Za-z0-9_.-]*$"  # not `\w`, which for pydantic is any letter, and in JSON Schema an ASCII one
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
    """Return a page of the caller's jobs, newest first."""
    filters = {name: value for name, value in (("status", status), ("kind", kind), ("model", model)) if value}
    jobs = await list_jobs_after(state, owner, filters, after, limit)
    estimates = await state.job_service.wait_estimates.of(jobs)
    return JobPage.of(
        [JobResponse.of(job, estimate) for job, estimate in zip(jobs, estimates, strict=True)], "id", limit
    )


async def list_jobs_after(
    state: AppState, owner: str, filters: dict[str, str], after: str | None, limit: int
) -> list[Job]:
    """Return an owner's jobs that come after the job with the id `after`, newest first.

    Returns up to `limit + 1` jobs: one more shows that there is another page. `filters` are values
    that the jobs' fields must have, keyed by field. If `after` is None, the list starts with the
    newest job. Raises InvalidError if the owner has no job `after`.
    """
    check_cursor(after, known=not after or await state.job_service.get(after, owner) is not None)
    return await state.job_service.read(lambda job_store: job_store.list_jobs(owner, filters, after, limit + 1))


@router.get("/{job_id}", summary="A job", responses=problem_responses(404))
async def get_job(response: Response, state: State, job: CurrentJob) -> JobResponse:
    """Return a job's status, progress and links, and how long it may wait."""
    if not job.ended:
        response.headers["Retry-After"] = "1"
    (estimate,) = await state.job_service.wait_estimates.of([job])
    return JobResponse.of(job, estimate)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=problem_responses(404, 409))
async def cancel_job(state: State, owner: Owner, job: CurrentJob) -> JobResponse:
    """Cancel a job; a cancelled job stays cancelled.

    The status is 409 if it has succeeded or failed.
    """
    ended = not await state.job_service.cancel(job.id) and job.status != "cancelled"
    job = await state.job_service.get(job.id, owner) or job
    if ended:
        raise ConflictError(f"the job has {job.status} already", job_status=job.status)
    return JobResponse.of(job)


@router.delete("/{job_id}", summary="Delete an ended job", **no_content(404, 409))
async def delete_job(state: State, job: CurrentJob) -> None:
    """Delete an ended job with its result. The status is 409 if the job has not ended."""
    if not job.ended:
        raise ConflictError(f"the job is {job.status}; cancel it first", job_status=job.status)
    await state.job_service.delete(job.id)


@router.get("/{job_id}/result", summary="A job's result", **bytes_response(RESULT, 404, 406, 409, 410, 416, 503, 507))
async def get_job_result(request: Request, state: State, job: CurrentJob) -> Response:
    """Return the result of a succeeded job in the format that `Accept` prefers.

    The status is 409 for a job without a result, and 410 if the result has expired.
    """
    return await result_response(state, request, job)


@router.get("/{job_id}/preview", summary="A preview of a running job's pictures", **bytes_response(PICTURE, 404))
async def get_job_preview(state: State, job: CurrentJob) -> Response:
    """Return the newest preview of a running job, a PNG. The status is 404 if there is none."""
    picture = await state.job_service.preview(job.id) if not job.ended else None
    if picture is None:
        raise NotFoundError(f"the job is {job.status} and has no preview; long jobs with pictures have one")
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


@router.get("/{job_id}/events", summary="A job's events as they come (SSE)", **bytes_response(EVENTS, 404, 422, 429))
async def stream_job_events(request: Request, state: State, job: CurrentJob) -> Response:
    """Stream the events of a job, from the start or after `Last-Event-ID`, until it has ended.

    The status is 204 if the job has ended and no event follows.
    """
    job_id, seq = job.id, last_event_id(request)
    if (seq or job.ended) and not await state.job_service.events(job_id, seq):
        if job.ended:
            return Response(status_code=204)  # after a 204, EventSource does not reconnect
        seq = min(seq, len(await state.job_service.events(job_id)))  # events are numbered from 1
    return event_stream(request, state, job_id, seq)


def last_event_id(request: Request) -> int:
    """Return the number in the Last-Event-ID header; 0 without the header.

    Raises InvalidError if it is not a number.
    """
    text = request.headers.get("last-event-id", "0")
    if not text.isdecimal() or len(text) > 18:
        raise InvalidError("Last-Event-ID must be the id of an event of this job")
    return int(text)


def event_stream(
    request: Request, state: AppState, job_id: str, seq: int, *, metrics_only: bool = False
) -> EventStream:
    """Return a stream of a job's events after the event with number `seq`.

    With `metrics_only`, it has only the metrics of a training, and the status with which the
    training ends. Raises TooManyRequestsError if the caller has too many open streams.
    """
    limited = caller_of(request.scope).name  # streams are counted per API key; without keys, per IP address
    if not limited:
        peer = request.client.host if request.client else "unknown"
        limited = client_address(peer, dict(request.scope["headers"]), trusted_proxies(state.settings))
    return EventStream(_event_texts(state, job_id, seq, metrics_only=metrics_only), state.streams, limited)


async def _event_texts(state: AppState, job_id: str, seq: int, *, metrics_only: bool) -> AsyncIterator[str]:
    """Yield a job's events after number `seq` as server-sent events, until it ends or is deleted.

    With `metrics_only`, only metrics and the last status are sent.
    """
    yield "retry: 2000\n\n"
    async for update in state.job_service.job_events.listen(job_id, seq):
        if not update.exists:
            return
        for event in update.events:
            if event.last or event.name == "metrics" or not metrics_only:
                yield event.text
            if event.last:
                return
        if update.preview and not metrics_only:  # not stored, so without a number
            yield f'event: preview\ndata: {{"link":"/v1/jobs/{job_id}/preview"}}\n\n'
        elif not update.events:
            yield ": keep-alive\n\n"
