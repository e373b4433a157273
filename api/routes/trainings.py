"""Trainings: start, watch, pause, resume and publish them. Each is a job of kind "training"."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auxiliary_jobs import run_auxiliary_job
from api.dependencies import CurrentCaller, CurrentTraining, Owner, State, check_cursor
from api.errors import ConflictError, NotFoundError, OverloadedError
from api.job_events import EventStream
from api.openapi import EVENTS, PICTURE, SSE, problem_responses
from api.prefer import Prefer
from api.responses.curves import curves
from api.responses.job_results import applied
from api.responses.json import JsonRoute, json_response
from api.responses.render import PNG
from api.routes.jobs import After, Limit, ModelName, last_event_id, stream_owner
from api.schemas.jobs import JobResponse, JobStatus
from api.schemas.trainings import (
    CheckpointPage,
    CheckpointResponse,
    EpochMetrics,
    EstimateResponse,
    MetricsPage,
    TrainingBody,
    TrainingDetailResponse,
    TrainingPage,
    TrainingResponse,
)
from api.state import AppState
from api.training_requests import check_devices, insert_publication, insert_training, training_row
from core.jobs.records import TERMINAL, TRAINING, Job

router = APIRouter(prefix="/v1/trainings", tags=["trainings"], route_class=JsonRoute)

_ESTIMATE_TIMEOUT_S = 30.0
"""How long to wait for a dry run without a preference; it takes some seconds."""


@router.post(
    "",
    summary="Train a model",
    status_code=202,
    response_model=TrainingResponse,
    responses={
        200: {"description": "The estimate of a dry run", "model": EstimateResponse},
        202: {"description": "A training, or a dry run that takes longer"},
        **problem_responses(400, 404, 409, 410, 422, 500, 503),
    },
)
async def create_training(request: Request, state: State, caller: CurrentCaller, body: TrainingBody) -> Response:
    """Start a training, or estimate what it would take."""
    if state.job_service.full:
        raise OverloadedError("too many unfinished jobs; try again in a moment", headers={"Retry-After": "2"})
    await check_devices(state, body.gpus)
    await state.permissions.check_new("model", body.name, caller)
    row = await training_row(state, request, body)
    if body.dry_run:
        prefer = Prefer.read(",".join(request.headers.getlist("prefer")), state.settings, _ESTIMATE_TIMEOUT_S)
        result, job = await run_auxiliary_job(state, caller, row, prefer.wait_s)
        if result is not None:
            estimate = {**result, "recipe": row.request["recipe"]}
            return json_response(EstimateResponse.model_validate(estimate), applied(prefer))
        headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1", **applied(prefer)}
        return json_response(TrainingResponse.of(job), headers, 202)
    await state.permissions.claim("model", body.name, caller, shared=body.shared)
    job = await insert_training(state, request, body, row)
    headers = {"Location": f"/v1/jobs/{job.id}", "Content-Location": f"/v1/trainings/{job.id}"}
    return json_response(TrainingResponse.of(job), {**headers, "Retry-After": "1"}, 202)


# --- watching ---


@router.get("", summary="List trainings, newest first", responses=problem_responses(422))
async def list_trainings(
    state: State,
    owner: Owner,
    status: JobStatus | None = None,
    model: ModelName = None,
    after: After = None,
    limit: Limit = 20,
) -> TrainingPage:
    """Return a page of the caller's trainings."""
    filters = {"kind": TRAINING} | {name: value for name, value in (("status", status), ("model", model)) if value}
    check_cursor(after, known=not after or await state.job_service.get(after, owner) is not None)
    jobs = await state.job_service.list_jobs(owner, filters, after, limit + 1)
    return TrainingPage.of([TrainingResponse.of(job) for job in jobs[:limit]], "id", has_more=len(jobs) > limit)


@router.get("/{job_id}", summary="A training", responses=problem_responses(404))
async def get_training(response: Response, state: State, job: CurrentTraining) -> TrainingDetailResponse:
    """Return a training with the metrics of its last epoch."""
    lines = await _metrics(state, job.id)
    if job.status not in TERMINAL:
        response.headers["Retry-After"] = "1"
    return TrainingDetailResponse.of(job, metrics=lines[-1] if lines else None)


@router.get(
    "/{job_id}/metrics",
    summary="A training's metrics by epoch; as SSE as they come",
    response_model=MetricsPage,
    responses={
        200: {"description": "An item per epoch; as `text/event-stream` each as it comes", "content": {SSE: {}}},
        204: EVENTS[204],
        **problem_responses(404, 422, 429),
    },
)
async def get_training_metrics(request: Request, state: State, job: CurrentTraining) -> Response:
    """Return the metrics of all epochs, or stream them after `Last-Event-ID`."""
    job_id = job.id
    if SSE not in request.headers.get("accept", ""):
        return json_response(MetricsPage.of(await _metrics(state, job_id), "epoch"))
    seq = last_event_id(request)
    if job.status in TERMINAL and not await state.job_service.events(job_id, seq):
        return Response(status_code=204)
    return EventStream(_events(state, job_id, seq), state.streams, stream_owner(state, request))


@router.get(
    "/{job_id}/checkpoints", summary="A training's checkpoints; the last one is kept", responses=problem_responses(404)
)
async def list_training_checkpoints(state: State, job: CurrentTraining) -> CheckpointPage:
    """Return the checkpoints that a training has written."""
    return CheckpointPage.of(await _checkpoints(state, job.id), "step_number")


@router.get(
    "/{job_id}/curves.png",
    summary="A training's losses as a picture",
    response_class=Response,
    responses={**PICTURE, **problem_responses(404)},
)
async def get_training_curves(state: State, job: CurrentTraining) -> Response:
    """Return a plot of the losses over the epochs."""
    lines = [line.model_dump() for line in await _metrics(state, job.id)]
    picture = await asyncio.to_thread(curves, f"{job.model}: loss per image", lines)
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


@router.get(
    "/{job_id}/preview",
    summary="A preview of what a training's model generates",
    response_class=Response,
    responses={**PICTURE, **problem_responses(404)},
)
async def get_training_preview(state: State, job: CurrentTraining) -> Response:
    """Return the newest preview of a training."""
    file = state.paths.run(job.id) / "preview.png"
    try:
        picture = await asyncio.to_thread(file.read_bytes)
    except FileNotFoundError as error:
        raise NotFoundError(f"the training is {job.status} and has no preview yet") from error
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


async def _metrics(state: AppState, job_id: str) -> list[EpochMetrics]:
    events = await state.job_service.events(job_id)
    return [EpochMetrics.model_validate(event.data) for event in events if event.name == "metrics"]


async def _checkpoints(state: AppState, job_id: str) -> list[CheckpointResponse]:
    events = await state.job_service.events(job_id)
    lines = {line.epoch: line.model_dump(exclude_unset=True) for line in await _metrics(state, job_id)}
    checkpoints = []
    for event in events:
        if event.name == "checkpoint":
            data = event.data
            metrics = {name: value for name, value in lines.get(data["epoch"], {}).items() if name.endswith("loss")}
            fields = {"object": "training.checkpoint", **data, "metrics": metrics, "kept": False}
            checkpoints.append(CheckpointResponse.model_validate(fields))
    for last in checkpoints[-1:]:
        last.kept = (state.paths.run(job_id) / "state.pt").exists()
    return checkpoints


async def _events(state: AppState, job_id: str, seq: int) -> AsyncIterator[str]:
    """Yield metrics as they come, then how the training ended."""
    yield "retry: 2000\n\n"
    async for update in state.job_service.job_events.listen(job_id, seq):
        if not update.exists:
            return  # it was deleted meanwhile
        for event in update.events:
            if event.last or event.name == "metrics":
                yield event.text
            if event.last:
                return
        if not update.events:
            yield ": keep-alive\n\n"


# --- control ---


@router.post("/{job_id}/pause", summary="Pause a training with a checkpoint", responses=problem_responses(404, 409))
async def pause_training(state: State, owner: Owner, job: CurrentTraining) -> TrainingResponse:
    """Pause a queued or running training."""
    job_id = job.id
    paused = job.status == "paused" or await state.job_service.write(lambda job_store: job_store.pause(job_id))
    return await _changed(state, owner, job, "a queued or running one can be paused", changed=paused)


@router.post("/{job_id}/resume", summary="Resume a paused training", responses=problem_responses(404, 409))
async def resume_training(state: State, owner: Owner, job: CurrentTraining) -> TrainingResponse:
    """Resume a paused training."""
    job_id = job.id
    going = job.status in {"queued", "running"}
    resumed = going or await state.job_service.write(lambda job_store: job_store.resume(job_id))
    return await _changed(state, owner, job, "a paused one can be resumed", changed=resumed)


async def _changed(state: AppState, owner: str, job: Job, rule: str, *, changed: bool) -> TrainingResponse:
    """Return the training as it is now. Raises ConflictError if its status did not allow the change."""
    current = await state.job_service.get(job.id, owner) or job
    if not changed:
        raise ConflictError(f"the training is {current.status}; {rule}", job_status=current.status)
    await state.job_service.wake_training_workers(job.id)
    return TrainingResponse.of(current)


@router.post(
    "/{job_id}/publish",
    summary="Make the last checkpoint of an unfinished training a version",
    status_code=202,
    responses=problem_responses(404, 409, 503),
)
async def publish_training(request: Request, response: Response, state: State, job: CurrentTraining) -> JobResponse:
    """Publish a training that was paused or cancelled, or that failed."""
    if job.status not in {"failed", "cancelled", "paused"}:
        rule = "a paused, failed or cancelled one can be published"
        raise ConflictError(f"the training is {job.status}; {rule}", job_status=job.status)
    if not (state.paths.run(job.id) / "state.pt").exists():
        raise ConflictError("the training has left no checkpoint", job_status=job.status)
    if job.request.get("serve") != "never" and not state.batch_sender.live_workers():
        raise OverloadedError(
            "no inference worker is running, which would load the version before it is activated; start one "
            "(python -m workers.inference), then publish again",
            headers={"Retry-After": "10"},
        )
    publication = await insert_publication(state, request, job)
    response.headers.update({"Location": f"/v1/jobs/{publication.id}", "Retry-After": "1"})
    return JobResponse.of(publication)
