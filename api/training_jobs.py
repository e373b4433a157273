"""Creates jobs for the training workers: trainings, and auxiliary jobs, which are short."""

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request

from api import errors
from api.access import caller_of
from api.auth import Caller
from api.deadline import deadline_of
from api.request_span import traceparent_of
from api.requests import idempotency_key
from api.schemas.trainings import TrainingBody
from api.state import AppState
from core.broker.codec import unpack
from core.catalog.families import load_families
from core.catalog.recipes import resolve_recipe
from core.catalog.registry import ModelVersion
from core.catalog.validation import InvalidOptionsError, canonical
from core.jobs.records import TRAINING, IdempotencyKey, Job
from core.webhooks.records import Webhook


def auxiliary_row(
    request: Request, kind: str, model: str, body: dict[str, Any], seed: int = 0, webhook: Webhook | None = None
) -> Job:
    """Return the record of a new job for the training workers, not yet inserted.

    `kind` is the job's kind, such as "publication", `model` the name of the model that the job is
    for, and `body` what the job stores as its request.
    """
    return Job(
        kind=kind,
        owner=caller_of(request.scope).name,
        model=model,
        method=kind,
        request=body,
        request_id=errors.request_id_of(request),
        seed=seed,
        deadline_at=deadline_of(request.scope),
        traceparent=traceparent_of(request.scope) or None,
        webhook=webhook.as_dict() if webhook else None,
    )


async def run_auxiliary_job(
    state: AppState, caller: Caller, row: Job, wait_s: float, committed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any] | None, Job]:
    """Insert the auxiliary job `row`, wait for its end, and return its result and the job.

    If the job has not ended after `wait_s` seconds, the result is None. `committed` is called when
    the job is committed, before the wait. Raises TooManyRequestsError if the caller has reached a
    limit, and InvalidError or ModelFailedError if the job failed.
    """
    async with state.quotas.job(caller):
        await state.job_service.write(lambda job_store: job_store.insert(row))
    committed()
    await state.job_service.wake_training_workers(row.id)
    job = await state.job_service.wait(row.id, row.owner, wait_s) or row
    if job.status == "succeeded":
        chunks = await state.job_service.read(lambda job_store: job_store.result(row.id))
        return dict(unpack(chunks[0].data or b"")), job
    if (problem := job.problem) is not None:
        if problem["status"] == errors.InvalidError.status:
            raise errors.InvalidError(problem["detail"], job_id=row.id)
        raise errors.ModelFailedError.of(problem)
    return None, job


async def check_devices(state: AppState, gpus: int) -> None:
    """Raise InvalidError if a training requests more devices than any training worker has.

    Raises OverloadedError if no worker reports its devices. One device is always accepted.
    """
    if gpus == 1:
        return  # accepted even if no training worker is alive yet
    devices = await state.job_service.training_workers.devices()
    if devices is None:
        detail = "no training worker is running that says how many devices it has; start one "
        raise errors.OverloadedError(f"{detail}(python -m workers.training), or leave `gpus` at 1", retry_after_s=10)
    if gpus > devices:
        detail = f"{gpus} is more than the {devices} device{'s' * (devices > 1)} of the training workers here"
        raise errors.InvalidError.in_field("gpus", detail)


async def prepare_training(state: AppState, request: Request, body: TrainingBody) -> Job:
    """Check that a training may be created; return its record, not yet inserted.

    Raises OverloadedError if there are too many jobs, InvalidError for a recipe, webhook or number
    of devices that is not valid, NotFoundError if there is no such dataset, and ConflictError or
    ForbiddenError if the caller may not use the model's name.
    """
    state.job_service.check_room()
    await check_devices(state, body.gpus)
    await state.permissions.check_new("model", body.name, caller_of(request.scope))
    return await _training_row(state, request, body)


async def _training_row(state: AppState, request: Request, body: TrainingBody) -> Job:
    """Return the record of a new training or dry run, not yet inserted.

    Raises InvalidError if its recipe or webhook is not valid, and NotFoundError if there is no such
    dataset.
    """
    caller = caller_of(request.scope)
    webhook = await state.webhooks.check(body.webhook, caller)
    recipe = await asyncio.to_thread(_resolve_recipe, state, caller, body)
    stored = {**body.model_dump(exclude={"recipe", "webhook"}), "recipe": recipe}
    return auxiliary_row(request, "estimate" if body.dry_run else TRAINING, body.name, stored, recipe["seed"], webhook)


def _resolve_recipe(state: AppState, caller: Caller, body: TrainingBody) -> dict[str, Any]:
    """Return the complete recipe of a training: the family's defaults with the changes of the body.

    Raises InvalidError for an unknown family, an invalid recipe, or the name of a model to whose
    active version the training does not fit; NotFoundError if there is no such dataset.
    """
    known = load_families(state.settings)
    if body.family not in known:
        detail = f"no family {body.family[:60]!r}; there are: {', '.join(known)}"
        raise errors.InvalidError(detail, errors=[{"field": "family", "detail": detail}])
    dataset = state.datasets.get(body.dataset)
    if dataset is None or not state.permissions.can_use("dataset", body.dataset, caller):
        raise errors.NotFoundError(f"no dataset {body.dataset[:60]!r}; GET /v1/datasets lists them, POST makes one")
    overrides = {**body.recipe.model_dump(), "summary": body.summary}
    try:
        recipe = resolve_recipe(body.family, known[body.family], dataset, body.name, overrides, body.gpus)
    except InvalidOptionsError as error:
        raise errors.InvalidError(str(error), errors=error.errors) from error
    active = state.registry.find(body.name)
    if active is not None and (reason := _mismatch(active, body.family, recipe["config"])):
        raise errors.InvalidError(f"{reason}; choose another name", errors=[{"field": "name", "detail": reason}])
    return recipe


def _mismatch(active: ModelVersion, family: str, config: dict[str, Any]) -> str:
    """Return why a training does not fit the active version of the model it would add to.

    Returns "" if it fits: its family is that of the version, and its `config` has the same image
    size.
    """
    if active.card.family != family:
        return f"{active.name} is of the family {active.card.family}"
    shape = tuple(config.get(side, getattr(active.image, side)) for side in ("channels", "height", "width"))
    if shape != active.image:
        return f"{active.name} has images of {'×'.join(map(str, active.image))}, these are {'×'.join(map(str, shape))}"
    return ""


# See docs/decisions.md#a-model-name-has-one-training-at-a-time
async def insert_training(state: AppState, request: Request, body: TrainingBody, row: Job) -> Job:
    """Insert a training and wake the training workers; return its job.

    The caller becomes the owner of the model's name. If the request repeats an Idempotency-Key,
    returns the first request's job. Raises ConflictError if another training of the model is
    unfinished, InvalidError if the key was used with another body, GoneError if the job of the
    first request was deleted, and NotFoundError if the dataset was deleted meanwhile.
    """
    await state.permissions.claim("model", body.name, caller_of(request.scope), shared=body.shared)
    header, key = request.headers.get("idempotency-key"), None
    fields = body.model_dump(exclude=None if body.webhook else {"webhook"})
    fingerprint = hashlib.sha256(orjson.dumps(canonical(fields), option=orjson.OPT_SORT_KEYS)).hexdigest()
    if header is not None:
        ttl_s = state.settings.idempotency_key_ttl_s
        key = IdempotencyKey("POST /v1/trainings", idempotency_key(header), fingerprint, ttl_s)
    async with state.quotas.job(caller_of(request.scope), training=True):
        added = await state.job_service.write(lambda store: store.insert(row, exclusive=True, idempotency_key=key))
    if added.conflict:
        detail = f"a training of {body.name} is {added.conflict}; wait for its end, cancel it, or choose another name"
        raise await _conflict_with(state, row.owner, added.job_id, detail, "training_id")
    if added.fingerprint and added.fingerprint != fingerprint:
        detail = "this Idempotency-Key was used with another body; send the same body or another key"
        raise errors.InvalidError(detail, job_id=added.job_id)
    if added.job_id == row.id and not await _hold_dataset(state, request, body.dataset, row.id):
        await state.job_service.cancel(row.id)
        raise errors.NotFoundError(f"the dataset {body.dataset!r} was deleted meanwhile")
    await state.job_service.wake_training_workers(added.job_id)
    job = await state.job_service.get(added.job_id, row.owner)
    if job is None:
        raise errors.GoneError("the training of this Idempotency-Key was deleted; use another key")
    return job


async def _hold_dataset(state: AppState, request: Request, dataset: str, job_id: str) -> bool:
    """Record that the job `job_id` uses a dataset, so that the dataset cannot be deleted.

    Returns False, and records nothing, if the dataset was deleted or the caller may not use it.
    """
    if not await asyncio.to_thread(state.datasets.use, dataset, job_id):
        return False
    await state.permissions.refresh()
    if state.permissions.can_use("dataset", dataset, caller_of(request.scope)):
        return True
    await asyncio.to_thread(state.datasets.release, dataset, job_id)
    return False


async def insert_publication(state: AppState, request: Request, training: Job, webhook: Webhook | None = None) -> Job:
    """Insert a job that publishes the last checkpoint of a training; return this job.

    If a publication of the same training is unfinished, returns that job instead. Raises
    ConflictError if a publication of another training of the model is unfinished.
    """
    body = {**training.request, "training": training.id}
    row = auxiliary_row(request, "publication", training.model, body, training.seed, webhook)
    caller = caller_of(request.scope)
    await state.permissions.claim("model", training.model, caller, shared=None)
    async with state.quotas.job(caller):
        added = await state.job_service.write(lambda job_store: job_store.insert(row, exclusive=True))
    job = await state.job_service.get(added.job_id, row.owner) or row
    # an unfinished publication of the same training is returned; that of another is a conflict
    same = job.id == added.job_id and job.request["training"] == training.id
    if added.conflict and not same:
        detail = f"a publication of {training.model} is {added.conflict}; wait for its end, then publish this run"
        raise await _conflict_with(state, row.owner, added.job_id, detail, "job_id")
    await state.job_service.wake_training_workers(added.job_id)
    return job


async def _conflict_with(state: AppState, owner: str, job_id: str, detail: str, field: str) -> errors.ConflictError:
    """Return the error (409) for a request that conflicts with the unfinished job `job_id`.

    `detail` says why. If the job belongs to `owner`, its id is in the member `field` of the
    problem; otherwise the problem does not name it.
    """
    other = await state.job_service.get(job_id, owner)
    more: dict[str, Any] = {field: other.id} if other else {}
    return errors.ConflictError(detail, retry_after_s=2, **more)
