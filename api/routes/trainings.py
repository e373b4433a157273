"""Trainings: create, watch, pause, resume and publish them; the families that can be trained.

A training is a job of kind "training".
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter

from api.access import caller_of
from api.dependencies import CurrentCaller, CurrentTraining, Owner, State
from api.errors import ConflictError, NotFoundError, OverloadedError
from api.openapi import EVENTS, PICTURE, SSE, bytes_response, problem_responses
from api.prefer import Prefer
from api.responses.curves import curves
from api.responses.render import PNG, JsonRoute, json_response
from api.routes.jobs import After, Limit, ModelName, event_stream, last_event_id, list_jobs_after
from api.schemas import trainings as schemas
from api.schemas.jobs import JobResponse, JobStatus
from api.schemas.trainings import PublicationBody, TrainingBody, TrainingResponse
from api.state import AppState
from api.training_jobs import insert_publication, insert_training, prepare_training, run_auxiliary_job
from core.catalog.families import load_families
from core.jobs.records import TRAINING, Job

router = APIRouter(prefix="/v1/trainings", tags=["trainings"], route_class=JsonRoute)
families_router = APIRouter(prefix="/v1/families", tags=["trainings"], route_class=JsonRoute)

_ESTIMATE_TIMEOUT_S = 30.0  # for a request without `Prefer`; a dry run takes some seconds
_LAST_CHECKPOINT_S, _CHECK_S = 10.0, 0.2  # most time for a last checkpoint, and time between two looks at the workers


@router.post(
    "",
    summary="Train a model",
    status_code=202,
    response_model=TrainingResponse,
    responses={
        200: {"description": "The estimate of a dry run", "model": schemas.EstimateResponse},
        202: {"description": "A training, or a dry run that takes longer"},
        **problem_responses(400, 404, 409, 410, 422, 500, 503),
    },
)
async def create_training(request: Request, state: State, caller: CurrentCaller, body: TrainingBody) -> Response:
    """Start a training or, with `dry_run`, estimate its memory and time."""
    row = await prepare_training(state, request, body)
    if body.dry_run:
        prefer = Prefer.of(request, state.settings, _ESTIMATE_TIMEOUT_S)
        result, job = await run_auxiliary_job(state, caller, row, prefer.wait_s)
        if result is not None:
            estimate = {**result, "recipe": row.request["recipe"]}
            return json_response(schemas.EstimateResponse.model_validate(estimate), prefer.headers)
        headers = {"Location": f"/v1/jobs/{job.id}", "Retry-After": "1", **prefer.headers}
        return json_response(TrainingResponse.of(job), headers, 202)
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
) -> schemas.TrainingPage:
    """Return a page of the caller's trainings, newest first."""
    filters = {"kind": TRAINING} | {name: value for name, value in (("status", status), ("model", model)) if value}
    jobs = await list_jobs_after(state, owner, filters, after, limit)
    estimates = await state.job_service.wait_estimates.of(jobs)
    trainings = [TrainingResponse.of(job, estimate) for job, estimate in zip(jobs, estimates, strict=True)]
    return schemas.TrainingPage.of(trainings, "id", limit)


@router.get("/{job_id}", summary="A training", responses=problem_responses(404))
async def get_training(response: Response, state: State, job: CurrentTraining) -> schemas.TrainingDetailResponse:
    """Return a training with the metrics of its last epoch."""
    lines = await _metrics(state, job.id)
    if not job.ended:
        response.headers["Retry-After"] = "1"
    (estimate,) = await state.job_service.wait_estimates.of([job])
    return schemas.TrainingDetailResponse.of(job, estimate, metrics=lines[-1] if lines else None)


@router.get(
    "/{job_id}/metrics",
    summary="A training's metrics by epoch; as SSE as they come",
    response_model=schemas.MetricsPage,
    responses={
        200: {"description": "An item per epoch; as `text/event-stream` each as it comes", "content": {SSE: {}}},
        204: EVENTS[204],
        **problem_responses(404, 422, 429),
    },
)
async def get_training_metrics(request: Request, state: State, job: CurrentTraining) -> Response:
    """Return the metrics of all epochs, or stream them as events after `Last-Event-ID`.

    The metrics are streamed if `Accept` contains `text/event-stream`.
    """
    if SSE not in request.headers.get("accept", ""):
        return json_response(schemas.MetricsPage.of(await _metrics(state, job.id), "epoch"))
    seq = last_event_id(request)
    if job.ended and not await state.job_service.events(job.id, seq):
        return Response(status_code=204)
    return event_stream(request, state, job.id, seq, metrics_only=True)


@router.get(
    "/{job_id}/checkpoints", summary="A training's checkpoints; the last one is kept", responses=problem_responses(404)
)
async def list_training_checkpoints(state: State, job: CurrentTraining) -> schemas.CheckpointPage:
    """Return the checkpoints that a training has written, each with the losses of its epoch."""
    lines = {line.epoch: line.model_dump(exclude_unset=True) for line in await _metrics(state, job.id)}
    checkpoints = []
    for event in await state.job_service.events(job.id):
        if event.name == "checkpoint":
            line = lines.get(event.data["epoch"], {})
            metrics = {name: value for name, value in line.items() if name.endswith("loss")}
            fields = {"object": "training.checkpoint", **event.data, "metrics": metrics, "kept": False}
            checkpoints.append(schemas.CheckpointResponse.model_validate(fields))
    if checkpoints:
        checkpoints[-1].kept = await asyncio.to_thread(state.runs.has_checkpoint, job.id)
    return schemas.CheckpointPage.of(checkpoints, "step_number")


@router.get("/{job_id}/curves.png", summary="A training's losses as a picture", **bytes_response(PICTURE, 404))
async def get_training_curves(state: State, job: CurrentTraining) -> Response:
    """Return a PNG that plots the training and validation losses over the epochs.

    The axes are empty before the end of the first epoch.
    """
    lines = [line.model_dump() for line in await _metrics(state, job.id)]
    picture = await asyncio.to_thread(curves, f"{job.model}: loss per image", lines)
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


@router.get(
    "/{job_id}/preview", summary="A preview of what a training's model generates", **bytes_response(PICTURE, 404)
)
async def get_training_preview(state: State, job: CurrentTraining) -> Response:
    """Return the newest preview of a training, a PNG. The status is 404 if there is none yet."""
    try:
        picture = await asyncio.to_thread(state.runs.preview, job.id)
    except FileNotFoundError as error:
        raise NotFoundError(f"the training is {job.status} and has no preview yet") from error
    return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)


@router.get("/{job_id}/previews", summary="A training's previews by epoch", responses=problem_responses(404))
async def list_training_previews(state: State, job: CurrentTraining) -> schemas.PreviewPage:
    """Return the previews that are kept of a training, at most 64, about evenly spaced over its
    epochs.
    """
    path = f"/v1/trainings/{job.id}/previews"
    sizes = await asyncio.to_thread(state.runs.preview_sizes, job.id)
    previews = []
    for epoch, size in sorted(sizes.items()):
        fields = {"object": "training.preview", "epoch": epoch, "bytes": size, "links": {"image": f"{path}/{epoch}"}}
        previews.append(schemas.PreviewResponse.model_validate(fields))
    return schemas.PreviewPage.of(previews, "epoch")


@router.get("/{job_id}/previews/{epoch}", summary="The preview of an epoch", **bytes_response(PICTURE, 404, 422))
async def get_epoch_preview(
    state: State, job: CurrentTraining, epoch: Annotated[int, PathParameter(ge=0, lt=1 << 62)]
) -> Response:
    """Return the preview of a training after an epoch, a PNG. The status is 404 if none is kept of
    that epoch.
    """
    try:
        picture = await asyncio.to_thread(state.runs.preview, job.id, epoch)
    except FileNotFoundError as error:
        detail = f"the training has no preview of epoch {epoch}; GET /v1/trainings/{job.id}/previews lists those kept"
        raise NotFoundError(detail) from error
    # a training that is resumed repeats epochs, and makes the same pictures again
    return Response(picture, 200, {"Cache-Control": "private, max-age=3600"}, PNG)


async def _metrics(state: AppState, job_id: str) -> list[schemas.EpochMetrics]:
    """Return the metrics of the epochs of a training so far, oldest first."""
    events = await state.job_service.events(job_id)
    return [schemas.EpochMetrics.model_validate(event.data) for event in events if event.name == "metrics"]


# --- control ---


@router.post("/{job_id}/pause", summary="Pause a training with a checkpoint", responses=problem_responses(404, 409))
async def pause_training(state: State, owner: Owner, job: CurrentTraining) -> TrainingResponse:
    """Pause a queued or running training; a paused one stays paused.

    The status is 409 for a training that has ended.
    """
    paused = job.status == "paused" or await state.job_service.write(lambda job_store: job_store.pause(job.id))
    return await _changed(state, owner, job, "a queued or running one can be paused", changed=paused)


@router.post("/{job_id}/resume", summary="Resume a paused training", responses=problem_responses(404, 409))
async def resume_training(state: State, owner: Owner, job: CurrentTraining) -> TrainingResponse:
    """Resume a paused training; a queued or running one is left as it is.

    The status is 409 for a training that has ended.
    """
    active = job.status in {"queued", "running"}
    resumed = active or await state.job_service.write(lambda job_store: job_store.resume(job.id))
    return await _changed(state, owner, job, "a paused one can be resumed", changed=resumed)


async def _changed(state: AppState, owner: str, job: Job, rule: str, *, changed: bool) -> TrainingResponse:
    """Finish a request to pause or resume a training: return the training as it is now.

    `changed` says whether the job store has made the change. If so, the training workers are woken.
    If not, because the training's status does not allow the change, raises ConflictError, whose
    detail ends with `rule`: which trainings can be changed.
    """
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
async def publish_training(
    request: Request, response: Response, state: State, job: CurrentTraining, body: PublicationBody | None = None
) -> JobResponse:
    """Start a job that publishes the last checkpoint of a paused, failed or cancelled training.

    The status is 409 for other trainings and without a checkpoint, and 503 if the version is to be
    activated and no inference worker is running.
    """
    if job.status not in {"failed", "cancelled", "paused"}:
        rule = "a paused, failed or cancelled one can be published"
        raise ConflictError(f"the training is {job.status}; {rule}", job_status=job.status)
    if not await _has_left_checkpoint(state, job):
        raise ConflictError("the training has left no checkpoint", job_status=job.status)
    if job.request.get("serve") != "never" and not state.batch_sender.live_workers():
        detail = "no inference worker is running, which would load the version before it is activated; start one "
        raise OverloadedError(f"{detail}(python -m workers.inference), then publish again", retry_after_s=10)
    webhook = await state.webhooks.check(body.webhook if body else None, caller_of(request.scope))
    publication = await insert_publication(state, request, job, webhook)
    response.headers.update({"Location": f"/v1/jobs/{publication.id}", "Retry-After": "1"})
    return JobResponse.of(publication)


async def _has_left_checkpoint(state: AppState, job: Job) -> bool:
    """Return whether a training that was stopped has left a checkpoint.

    First waits until no training worker runs it, at most `_LAST_CHECKPOINT_S`: its worker stores a
    last checkpoint after the training has been paused or cancelled.
    """
    for _ in range(int(_LAST_CHECKPOINT_S / _CHECK_S)):
        if not await state.job_service.training_workers.runs(job.id):
            break
        await asyncio.sleep(_CHECK_S)
    return await asyncio.to_thread(state.runs.has_checkpoint, job.id)


# --- families ---


@families_router.get("", summary="List what can be trained, with its options")
async def list_families(state: State) -> schemas.FamilyPage:
    """Return the families with their recipes and the JSON Schemas of their options."""
    known = await asyncio.to_thread(load_families, state.settings)
    devices = await state.job_service.training_workers.devices() or 1
    gpus = {"type": "integer", "minimum": 1, "maximum": devices, "default": 1}
    data = [
        schemas.FamilyResponse(name=name, **family.model_dump(), gpus=gpus) for name, family in sorted(known.items())
    ]
    return schemas.FamilyPage.of(data, "name")
