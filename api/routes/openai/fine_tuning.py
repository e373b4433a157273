"""OpenAI's fine-tuning routes, for trainings, their events and their checkpoints."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request

from api.dependencies import CurrentCaller, CurrentTraining, Owner, State
from api.errors import InvalidError, NotFoundError
from api.openai_errors import PREFIX
from api.openapi import TIMEOUT, openai_responses
from api.responses.render import JsonRoute
from api.routes.jobs import After, Limit, cancel_job, list_jobs_after
from api.routes.openai.parameters import following, known_only
from api.routes.trainings import list_training_checkpoints, pause_training, resume_training
from api.schemas import openai as schemas
from api.schemas.openai import FineTuningBody, FineTuningJob, Hyperparameters
from api.schemas.trainings import RecipeOverrides, TrainingBody
from api.state import AppState
from api.training_jobs import insert_training, prepare_training
from core.catalog.families import FamilyDescription, load_families
from core.jobs.records import TRAINING, Event, Job

router = APIRouter(prefix=f"{PREFIX}/fine_tuning/jobs", tags=["openai"], route_class=JsonRoute)

_REQUEST = "openai"  # in a job's request: what the client asked for in OpenAI's terms
# Fields of a training's request that have another name here.
_NAMES = {
    "recipe.training.epochs": "hyperparameters.n_epochs",
    "recipe.training.batch_size": "hyperparameters.batch_size",
    "recipe.training.learning_rate": "hyperparameters.learning_rate_multiplier",
    "dataset": "training_file",
    "family": "model",
}
PageLimit = Annotated[int, Query(ge=1, le=1000)]
ItemAfter = Annotated[str, Query(max_length=120)]


@router.post(
    "",
    summary="Train a model",
    responses=openai_responses(400, 403, 404, 409, 410, 429, 500, 503, 504),
    openapi_extra={"parameters": [TIMEOUT]},
)
async def create_fine_tuning_job(
    request: Request, state: State, caller: CurrentCaller, body: FineTuningBody
) -> FineTuningJob:
    """Train a new model on a file.

    `model` is a family, or a served model whose family and configuration the new model gets, but
    not its weights.
    """
    known_only(body.model_extra, FineTuningBody.model_fields)
    await state.permissions.refresh()
    training = await asyncio.to_thread(_training_body, state, caller, body)
    try:
        row = await prepare_training(state, request, training)
    except InvalidError as error:
        raise _renamed(error) from error
    except NotFoundError as error:  # no such dataset
        fields = [{"field": "training_file", "detail": error.detail}]
        raise NotFoundError(error.detail, errors=fields) from error
    hyperparameters = _hyperparameters(body)
    original = {
        "model": body.model,
        "metadata": body.metadata,
        "learning_rate_multiplier": hyperparameters.learning_rate_multiplier,
    }
    row = replace(row, request={**row.request, _REQUEST: original})
    return await _response(state, await insert_training(state, request, training, row))


@router.get("", summary="List trainings, newest first", responses=openai_responses(400))
async def list_fine_tuning_jobs(
    state: State, owner: Owner, after: After = None, limit: Limit = 20
) -> schemas.FineTuningJobList:
    """Return a page of the caller's trainings, newest first."""
    jobs = await list_jobs_after(state, owner, {"kind": TRAINING}, after, limit)
    return schemas.FineTuningJobList.of(await _responses(state, jobs), "id", limit)


@router.get("/{job_id}", summary="A training", responses=openai_responses(404))
async def get_fine_tuning_job(state: State, job: CurrentTraining) -> FineTuningJob:
    """Return a training."""
    return await _response(state, job)


@router.post("/{job_id}/cancel", summary="Cancel a training", responses=openai_responses(404, 409))
async def cancel_fine_tuning_job(state: State, owner: Owner, job: CurrentTraining) -> FineTuningJob:
    """Cancel a training. The status is 409 if it has succeeded or failed."""
    await cancel_job(state, owner, job)
    return await _response(state, await state.job_service.get(job.id, owner) or job)


@router.post("/{job_id}/pause", summary="Pause a training with a checkpoint", responses=openai_responses(404, 409))
async def pause_fine_tuning_job(state: State, owner: Owner, job: CurrentTraining) -> FineTuningJob:
    """Pause a queued or running training; a paused one stays paused.

    The status is 409 for a training that has ended.
    """
    await pause_training(state, owner, job)
    return await _response(state, await state.job_service.get(job.id, owner) or job)


@router.post("/{job_id}/resume", summary="Resume a paused training", responses=openai_responses(404, 409))
async def resume_fine_tuning_job(state: State, owner: Owner, job: CurrentTraining) -> FineTuningJob:
    """Resume a paused training; a queued or running one is left as it is.

    The status is 409 for a training that has ended.
    """
    await resume_training(state, owner, job)
    return await _response(state, await state.job_service.get(job.id, owner) or job)


@router.get("/{job_id}/events", summary="A training's events, newest first", responses=openai_responses(400, 404))
async def list_fine_tuning_events(
    state: State, job: CurrentTraining, after: ItemAfter = "", limit: PageLimit = 20
) -> schemas.FineTuningEventList:
    """Return a page of a training's events: messages, changes of its status, metrics, checkpoints."""
    stored = await state.job_service.events(job.id)
    events = [_event(job, event) for event in reversed(stored) if event.name != "progress"]
    return schemas.FineTuningEventList.of(following(events, after), "id", limit)


@router.get(
    "/{job_id}/checkpoints", summary="A training's checkpoints, newest first", responses=openai_responses(400, 404)
)
async def list_fine_tuning_checkpoints(
    state: State, job: CurrentTraining, after: ItemAfter = "", limit: PageLimit = 10
) -> schemas.FineTuningCheckpointList:
    """Return a page of the checkpoints that a training has written, newest first."""
    written = (await list_training_checkpoints(state, job)).data
    times = [int(event.at) for event in await state.job_service.events(job.id) if event.name == "checkpoint"]
    checkpoints = []
    for number, (checkpoint, at) in enumerate(zip(written, times, strict=False)):
        last = number == len(written) - 1 and job.version
        step = checkpoint.step_number
        checkpoints.append(
            schemas.FineTuningCheckpoint(
                id=f"ftckpt-{job.id}-{step}",
                object="fine_tuning.job.checkpoint",
                created_at=at,
                fine_tuned_model_checkpoint=f"{job.model}@{job.version}" if last else f"{job.model}:ckpt-step-{step}",
                fine_tuning_job_id=job.id,
                metrics=schemas.FineTuningMetrics(
                    step=step,
                    train_loss=checkpoint.metrics.get("train_loss"),
                    valid_loss=checkpoint.metrics.get("validation_loss"),
                ),
                step_number=step,
            )
        )
    return schemas.FineTuningCheckpointList.of(following(checkpoints[::-1], after), "id", limit)


# --- requests ---


def _hyperparameters(body: FineTuningBody) -> Hyperparameters:
    """Return the hyperparameters of a request, from the body or from its `method`.

    Raises InvalidError if both have hyperparameters.
    """
    of_method = body.method.supervised.hyperparameters if body.method and body.method.supervised else None
    if body.hyperparameters and of_method:
        detail = "given twice; send them in `method.supervised.hyperparameters` or in `hyperparameters`"
        raise InvalidError.in_field("hyperparameters", detail)
    return body.hyperparameters or of_method or Hyperparameters()


def _training_body(state: AppState, caller: Any, body: FineTuningBody) -> TrainingBody:
    """Return the request that makes the same training by `POST /v1/trainings`.

    Raises NotFoundError for an unknown model, and InvalidError if a hyperparameter is given twice.
    """
    family, base, config = _base(state, caller, body.model)
    recipe = body.recipe or RecipeOverrides.model_validate({})
    training = {**recipe.training}
    for name, value in _training_options(_hyperparameters(body), load_families(state.settings)[family]).items():
        if name in training:
            field = _NAMES[f"recipe.training.{name}"]
            raise InvalidError.in_field(field, f"given twice, also as recipe.training.{name}; send it once")
        training[name] = value
    seed = body.seed
    if seed is None:
        seed = recipe.seed if "seed" in recipe.model_fields_set else secrets.randbelow(2**31)
    names = ("evaluation", "serve", "shared", "gpus", "webhook")
    given = {name: value for name in names if (value := getattr(body, name)) is not None}
    return TrainingBody(
        family=family,
        dataset=body.training_file,
        name=_model_name(base, body.suffix),
        recipe=RecipeOverrides(config={**config, **recipe.config}, training=training, seed=seed),
        **given,
    )


def _base(state: AppState, caller: Any, model: str) -> tuple[str, str, dict[str, Any]]:
    """Return what the training of a new model starts from: family, name and configuration.

    `model` is the name of a family or of a model. If it is a family, the returned name is the
    family's, and the configuration is empty; otherwise all three are the model's. Raises
    NotFoundError if it is neither a family nor a model that the caller may use.
    """
    families = load_families(state.settings)
    if model in families:
        return model, model, {}
    models = state.permissions.models(caller)
    entry = models.find(model)
    if entry is None or entry.card.family not in families:
        served = sorted(one.name for one in models.active() if one.card.family in families)
        detail = f"no model {model!r}; there are the families {', '.join(sorted(families))}"
        detail += f" and the models {', '.join(served)}" if served else ""
        raise NotFoundError(detail, errors=[{"field": "model", "detail": detail}], code="model_not_found")
    shape = ("channels", "height", "width")  # those of the dataset
    known = families[entry.card.family].config["properties"]
    config = {name: value for name, value in entry.card.json["config"].items() if name in known and name not in shape}
    return entry.card.family, entry.name, config


def _training_options(hyperparameters: Hyperparameters, family: FamilyDescription) -> dict[str, Any]:
    """Return OpenAI's hyperparameters as training options of a family, such as `epochs`.

    Hyperparameters that are `auto` or missing are left out, so that the family's defaults apply.
    """
    rate = hyperparameters.learning_rate_multiplier
    values = {"epochs": hyperparameters.n_epochs, "batch_size": hyperparameters.batch_size}
    options: dict[str, Any] = {name: value for name, value in values.items() if value not in {None, "auto"}}
    if rate is not None and rate != "auto":
        options["learning_rate"] = rate * _default(family, "learning_rate")
    return options


def _default(family: FamilyDescription, name: str) -> Any:
    """Return the value of the training option `name` that a family uses if a request sets none."""
    return family.recipe["training"].get(name, family.training["properties"][name]["default"])


def _model_name(base: str, suffix: str | None) -> str:
    """Return the name `ft-BASE-SUFFIX`, in lower case, for the model that a training makes.

    Without a suffix, a random one is used.
    """
    suffix = (suffix or secrets.token_hex(4)).lower()
    return f"ft-{base.lower()[: 59 - len(suffix)]}-{suffix}"


def _renamed(error: InvalidError) -> InvalidError:
    """Return the error of an invalid training with its fields renamed to OpenAI's.

    For example, `dataset` becomes OpenAI's `training_file`.
    """
    detail, errors = error.detail, []
    for one in error.more.get("errors", ()):
        name = _NAMES.get(one["field"], one["field"])
        detail = detail.replace(one["field"], name)
        if name.endswith("multiplier"):
            detail += "; these are learning rates: the multiplier times that of the family's recipe"
        errors.append({**one, "field": name})
    return InvalidError(detail, headers=error.headers, errors=errors)


# --- responses ---


async def _responses(state: AppState, jobs: Sequence[Job]) -> list[FineTuningJob]:
    """Return trainings as OpenAI's fine-tuning jobs, each with an estimate of when it ends."""
    estimates = await state.job_service.wait_estimates.of(jobs)
    return [fine_tuning_job(job, estimate.remaining_s) for job, estimate in zip(jobs, estimates, strict=True)]


async def _response(state: AppState, job: Job) -> FineTuningJob:
    """Return a training as OpenAI's fine-tuning job, with an estimate of when it ends."""
    return (await _responses(state, [job]))[0]


def fine_tuning_job(job: Job, remaining_s: float | None = None) -> FineTuningJob:
    """Return a training as OpenAI's fine-tuning job.

    `remaining_s` is the estimated time until its end in seconds; None if it is unknown.
    """
    original = job.request.get(_REQUEST, {})
    training = job.request["recipe"]["training"]
    hyperparameters = schemas.FineTuningHyperparameters(
        n_epochs=training.get("epochs", "auto"),
        batch_size=training.get("batch_size", "auto"),
        learning_rate_multiplier=original.get("learning_rate_multiplier") or "auto",
    )
    status: Any = "queued" if job.status == "paused" else job.status
    problem = job.problem
    return FineTuningJob(
        id=job.id,
        object="fine_tuning.job",
        created_at=int(job.created_at),
        finished_at=int(job.finished_at) if job.finished_at else None,
        estimated_finish=None if remaining_s is None else int(time.time() + remaining_s),
        model=original.get("model", job.request["family"]),
        fine_tuned_model=f"{job.model}@{job.version}" if job.version else None,
        organization_id=job.owner,
        result_files=[],
        seed=job.seed,
        status=status,
        paused=job.status == "paused",
        training_file=job.request["dataset"],
        validation_file=None,
        trained_tokens=None,
        hyperparameters=hyperparameters,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters.model_dump()}},
        error=schemas.FineTuningError(code="training_failed", message=problem["detail"], param=None)
        if problem
        else None,
        integrations=[],
        metadata=original.get("metadata"),
    )


def _event(job: Job, event: Event) -> schemas.FineTuningEvent:
    """Return an event of a training as OpenAI's fine-tuning event."""
    level: Literal["info", "warn", "error"] = "info"
    kind: Literal["message", "metrics"] = "metrics" if event.name == "metrics" else "message"
    data = event.data
    if event.name == "status":
        text = f"status: {data['status']}"
        level = "error" if data["status"] == "failed" else "info"
    elif event.name == "metrics":
        text = f"epoch {data['epoch']}: " + ", ".join(f"{name} {data[name]}" for name in data if name.endswith("loss"))
    elif event.name == "checkpoint":
        text = f"checkpoint at step {data['step_number']}"
    else:
        text = str(data.get("message", event.name))
    return schemas.FineTuningEvent(
        id=f"ftevent-{job.id}-{event.seq}",
        object="fine_tuning.job.event",
        created_at=int(event.at),
        level=level,
        message=text,
        type=kind,
        data=data,
    )
