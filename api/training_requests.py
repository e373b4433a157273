"""Training requests: validated against family and dataset, and inserted as jobs."""

import asyncio
import hashlib
import re
from typing import Any

import orjson
import redis
from starlette.requests import Request

from api.access import caller_of
from api.auth import Caller
from api.auxiliary_jobs import auxiliary_row
from api.errors import ConflictError, GoneError, InvalidError, MalformedError, NotFoundError, OverloadedError
from api.schemas.trainings import TrainingBody
from api.state import AppState
from core.catalog.families import load_families
from core.catalog.numbers import canonical
from core.catalog.recipes import resolve_recipe
from core.catalog.registry import ModelVersion
from core.catalog.validation import InvalidOptionsError
from core.jobs.records import TRAINING, IdempotencyKey, Job

_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')


async def training_devices(state: AppState) -> int | None:
    """Return the devices of the best equipped training worker; None if none reports them."""
    try:
        return await state.job_service.training_devices()
    except (redis.RedisError, OSError):
        return None


async def check_devices(state: AppState, gpus: int) -> None:
    """Raise the ProblemError for a training that requests more devices than there are."""
    if gpus == 1:
        return  # accepted even if no training worker is alive yet
    devices = await training_devices(state)
    if devices is None:
        raise OverloadedError(
            "no training worker is running that says how many devices it has; start one (python -m workers.training), "
            "or leave `gpus` at 1",
            headers={"Retry-After": "10"},
        )
    if gpus > devices:
        detail = f"{gpus} is more than the {devices} device{'s' * (devices > 1)} of the training workers here"
        raise InvalidError(f"gpus: {detail}", errors=[{"field": "gpus", "detail": detail}])


async def training_row(state: AppState, request: Request, body: TrainingBody) -> Job:
    """Return the row of a training, or of its dry run. Raises the ProblemError for a recipe that is not valid."""
    recipe = await asyncio.to_thread(_resolve_recipe, state, caller_of(request.scope), body)
    stored = {**body.model_dump(exclude={"recipe"}), "recipe": recipe}
    return auxiliary_row(request, "estimate" if body.dry_run else TRAINING, body.name, stored, seed=recipe["seed"])


def _resolve_recipe(state: AppState, caller: Caller, body: TrainingBody) -> dict[str, Any]:
    """Return the whole recipe. Raises the ProblemError that says what is wrong with it."""
    known = load_families(state.settings)
    if body.family not in known:
        detail = f"no family {body.family[:60]!r}; there are: {', '.join(known)}"
        raise InvalidError(detail, errors=[{"field": "family", "detail": detail}])
    dataset = state.datasets.get(body.dataset)
    if dataset is None or not state.permissions.can_use("dataset", body.dataset, caller):
        raise NotFoundError(f"no dataset {body.dataset[:60]!r}; GET /v1/datasets lists them, POST makes one")
    overrides = {**body.recipe.model_dump(), "summary": body.summary}
    try:
        recipe = resolve_recipe(body.family, known[body.family], dataset, body.name, overrides, body.gpus)
    except InvalidOptionsError as error:
        raise InvalidError(str(error), errors=error.errors) from error
    active = state.registry.find(body.name)
    if active is not None and (reason := _mismatch(active, body.family, recipe["config"])):
        raise InvalidError(f"{reason}; choose another name", errors=[{"field": "name", "detail": reason}])
    return recipe


def _mismatch(active: ModelVersion, family: str, config: dict[str, Any]) -> str:
    """Return why a model of this family and config cannot be a version of the active one's model; "" if it can."""
    if active.card.family != family:
        return f"{active.name} is of the family {active.card.family}"
    shape = tuple(config.get(side, getattr(active.image, side)) for side in ("channels", "height", "width"))
    if shape != active.image:
        return f"{active.name} has images of {'×'.join(map(str, active.image))}, these are {'×'.join(map(str, shape))}"
    return ""


# See docs/decisions.md#a-model-name-has-one-training-at-a-time
async def insert_training(state: AppState, request: Request, body: TrainingBody, row: Job) -> Job:
    """Insert a training and wake the training workers; under an Idempotency-Key, return the one inserted first.

    Raises ConflictError where another training of the model is unfinished, InvalidError, NotFoundError, GoneError.
    """
    key = _idempotency_key(request, state, body)
    async with state.quotas.job(caller_of(request.scope), training=True):
        added = await state.job_service.write(
            lambda job_store: job_store.insert(row, exclusive=True, idempotency_key=key)
        )
    if added.conflict:
        detail = f"a training of {body.name} is {added.conflict}; wait for its end, cancel it, or choose another name"
        raise await conflict_with(state, row.owner, added.job_id, detail, "training_id")
    if added.fingerprint and added.fingerprint != _fingerprint(body):
        raise InvalidError(
            "this Idempotency-Key was used with another body; send the same body or another key", job_id=added.job_id
        )
    if added.job_id == row.id and not await _hold_dataset(state, request, body.dataset, row.id):
        await state.job_service.cancel(row.id)
        raise NotFoundError(f"the dataset {body.dataset!r} was deleted meanwhile")
    await state.job_service.wake_training_workers(added.job_id)
    job = await state.job_service.get(added.job_id, row.owner)
    if job is None:
        raise GoneError("the training of this Idempotency-Key was deleted; use another key")
    return job


def _fingerprint(body: TrainingBody) -> str:
    return hashlib.sha256(orjson.dumps(canonical(body.model_dump()), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _idempotency_key(request: Request, state: AppState, body: TrainingBody) -> IdempotencyKey | None:
    header = request.headers.get("idempotency-key")
    if header is None:
        return None
    match = _KEY.fullmatch(header.strip())
    if match is None:
        raise MalformedError("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare")
    return IdempotencyKey(
        "POST /v1/trainings", match.group(1), _fingerprint(body), state.settings.idempotency_key_ttl_s
    )


async def _hold_dataset(state: AppState, request: Request, dataset: str, job_id: str) -> bool:
    """Keep a dataset from deletion for a training; return whether it is there, and the caller may still use it."""
    if not await asyncio.to_thread(state.datasets.use, dataset, job_id):
        return False
    await state.permissions.refresh()
    if state.permissions.can_use("dataset", dataset, caller_of(request.scope)):
        return True
    await asyncio.to_thread(state.datasets.release, dataset, job_id)
    return False


async def insert_publication(state: AppState, request: Request, training: Job) -> Job:
    """Insert a job that makes a training's last checkpoint a version. Raises ConflictError."""
    body = {**training.request, "training": training.id}
    row = auxiliary_row(request, "publication", training.model, body, training.seed)
    caller = caller_of(request.scope)
    await state.permissions.claim("model", training.model, caller, shared=None)
    async with state.quotas.job(caller):
        added = await state.job_service.write(lambda job_store: job_store.insert(row, exclusive=True))
    job = await state.job_service.get(added.job_id, row.owner) or row
    # a publication of the same training that is unfinished is the same one; that of another training is a conflict
    same = job.id == added.job_id and job.request["training"] == training.id
    if added.conflict and not same:
        detail = f"a publication of {training.model} is {added.conflict}; wait for its end, then publish this run"
        raise await conflict_with(state, row.owner, added.job_id, detail, "job_id")
    await state.job_service.wake_training_workers(added.job_id)
    return job


async def conflict_with(state: AppState, owner: str, job_id: str, detail: str, field: str) -> ConflictError:
    """Return the error for a job that another one excludes; it names the other one's id to its owner alone."""
    other = await state.job_service.get(job_id, owner)
    return ConflictError(detail, headers={"Retry-After": "2"}, **({field: other.id} if other else {}))
