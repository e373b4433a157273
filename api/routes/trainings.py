"""Trainings: asking for one, watching it, and steering it. Each is a job of kind "training" in the ledger."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

import orjson
import redis
from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from api.access import caller_of
from api.auth import Caller
from api.errors import (
    ConflictError,
    GoneError,
    InvalidError,
    MalformedError,
    NotFoundError,
    OverloadedError,
    request_id_of,
)
from api.fields import WHOLE
from api.job_events import EventStream
from api.openapi import EVENTS, JOB, answered, listed, problem_responses
from api.prefer import Prefer
from api.responses.curves import curves
from api.responses.render import JSON, PNG
from api.routes.operations import AppState, applied, failed, job_body, owner_of, stream_holder
from core.broker.codec import unpack
from core.catalog.numbers import canonical
from core.catalog.recipes import NAME, StatePaths, families, settled
from core.catalog.registry import ModelVersion
from core.catalog.validation import InvalidOptionsError
from core.datasets.store import Datasets
from core.jobs.store import TERMINAL, TRAINING, Job, Key, new_id

_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')
_JOB_ID = re.compile(r"job_[0-9a-f]{28}")
_ESTIMATE_S = 30.0
"""How long a dry run without a preference is waited for; it takes some seconds."""

_WORD = r"^[\w.-]*$"


class Overrides(BaseModel):
    """What differs from the family's own recipe."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[str, Any] = Field({}, description="Of the family's `config`; GET /v1/families has its schema.")
    training: dict[str, Any] = Field({}, description="Of `training`; GET /v1/families has its schema.")
    seed: Annotated[int, Field(ge=0, lt=2**62), WHOLE] = 0


class Evaluation(BaseModel):
    """How the test split is measured at the end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    count: Annotated[int, Field(ge=2, le=100_000), WHOLE] = Field(1000, description="The first so many test pictures.")
    k: Annotated[int, Field(ge=10, le=100_000), WHOLE] = Field(
        100, description="Importance samples a picture, or samples of a game."
    )


class Asked(BaseModel):
    """A training."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "family": "vae",
                "dataset": "digits",
                "name": "my-digits",
                "recipe": {"config": {"latents": 8}, "training": {"epochs": 5}},
            }
        },
    )

    family: str = Field(max_length=80, description="What is trained; GET /v1/families lists them.")
    dataset: str = Field(max_length=80, description="What it is trained on; GET /v1/datasets lists them.")
    name: str = Field(
        max_length=63, pattern=f"^{NAME.pattern}$", description="The model that becomes one version richer."
    )
    summary: str = Field("", max_length=200, description="A line for the card.")
    recipe: Overrides = Field(default_factory=lambda: Overrides(config={}, training={}, seed=0))
    dry_run: bool = Field(default=False, description="Answer what it would take, from a few steps, and train nothing.")
    serve: Literal["if better", "always", "never"] = Field(
        "if better",
        description="Whether the new version serves at the end: if its first figure is better than that of the version "
        "that serves, measured on the same pictures; always; never. The first version of a name serves anyhow.",
    )
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation(count=1000, k=100))
    shared: bool | None = Field(
        None, description="Whether everybody may use the model; by default a new one is its owner's alone."
    )
    gpus: Annotated[int, Field(ge=1, le=64), WHOLE] = Field(
        1,
        description="More than one: spread over so many by torchrun; at most the devices of the training workers, "
        "which GET /v1/families tells (`gpus.maximum`).",
    )


_TRAINING = {
    **JOB,
    "required": [*JOB["required"], "family", "dataset", "recipe", "version"],
    "properties": {
        **JOB["properties"],  # type: ignore[dict-item]
        "family": {"type": "string"},
        "dataset": {"type": "string"},
        "version": {"type": ["string", "null"], "description": "What the training became"},
        "recipe": {"type": "object", "description": "The whole recipe in force"},
        "links": {"type": "object", "required": ["self", "job", "events", "metrics", "checkpoints", "curves"]},
    },
}
_ESTIMATE = {
    "type": "object",
    "required": ["parameters", "memory_bytes", "seconds"],
    "properties": {
        "parameters": {"type": "integer"},
        "memory_bytes": {"type": "integer", "description": "The most that the process held while steps were timed"},
        "checkpoint_bytes": {"type": "integer"},
        "steps": {"type": "integer"},
        "step_seconds": {"type": "number"},
        "images_per_second": {"type": "number"},
        "seconds": {"type": "number", "description": "Of the whole run"},
        "recipe": {"type": "object"},
    },
}
_PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"description": "A picture", "content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}
}
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A line an epoch; as `text/event-stream` each as it comes",
        "content": {
            JSON: {"schema": listed({"type": "object", "required": ["epoch", "train_loss"]})},
            "text/event-stream": {},
        },
    },
    204: EVENTS[204],
}


def add_trainings(app: FastAPI, app_state: AppState) -> None:
    """Put the routes into the application."""
    router = APIRouter(prefix="/v1")
    _add_families(router, app_state)
    _add_asking(router, app_state)
    _add_watching(router, app_state)
    _add_figures(router, app_state)
    _add_steering(router, app_state)
    app.include_router(router)


def _add_families(router: APIRouter, app_state: AppState) -> None:
    @router.get(
        "/families",
        summary="What can be trained, and with which options",
        tags=["trainings"],
        response_class=Response,
        responses=answered(listed({"type": "object", "required": ["name", "config", "training", "recipe"]})),
    )
    async def list_families() -> Response:
        found = await asyncio.to_thread(families, app_state.settings)
        gpus = {"type": "integer", "minimum": 1, "maximum": await _devices(app_state) or 1, "default": 1}
        data = [{"name": name, **facts, "gpus": gpus} for name, facts in sorted(found.items())]
        return _listing(data, "name", has_more=False)


async def _devices(app_state: AppState) -> int | None:
    """The devices of the best equipped training worker; None where none says so."""
    try:
        return await app_state.job_service.training_devices()
    except (redis.RedisError, OSError):
        return None


async def _check_devices(app_state: AppState, gpus: int) -> None:
    """Raise the ProblemError that says how many devices there are, where a training asks for more."""
    if gpus == 1:
        return  # promised also where no training worker is alive yet
    devices = await _devices(app_state)
    if devices is None:
        raise OverloadedError(
            "no training worker is running that says how many devices it has; start one (python -m workers.training), "
            "or leave `gpus` at 1",
            headers={"Retry-After": "10"},
        )
    if gpus > devices:
        detail = f"{gpus} is more than the {devices} device{'s' * (devices > 1)} of the training workers here"
        raise InvalidError(f"gpus: {detail}", errors=[{"field": "gpus", "detail": detail}])


# --- asking ---


def _add_asking(router: APIRouter, app_state: AppState) -> None:
    accepted = {"description": "A training, or a dry run that takes longer", "content": {JSON: {"schema": _TRAINING}}}

    @router.post(
        "/trainings",
        summary="Train a model",
        tags=["trainings"],
        response_class=Response,
        responses={
            200: {"description": "What a dry run found", "content": {JSON: {"schema": _ESTIMATE}}},
            202: accepted,
            **problem_responses(400, 404, 409, 410, 422, 500, 503),
        },
    )
    async def train(request: Request, asked: Asked) -> Response:
        if app_state.job_service.full:
            raise OverloadedError("too many unfinished jobs; try again in a moment", headers={"Retry-After": "2"})
        await _check_devices(app_state, asked.gpus)
        await app_state.permissions.check_new("model", asked.name, caller_of(request.scope))
        recipe = await asyncio.to_thread(_recipe, app_state, request, asked)
        row = _row(request, asked, recipe)
        if asked.dry_run:
            return await _dry_run(request, app_state, row)
        caller = caller_of(request.scope)
        await app_state.permissions.claim("model", asked.name, caller, shared=asked.shared)
        async with app_state.quotas.job(caller, training=True):
            added = await app_state.job_service.change(
                lambda job_store: job_store.insert_exclusive(row, alone=True, key=_key(request, app_state, asked))
            )
        if added.conflict:
            detail = (
                f"a training of {asked.name} is {added.conflict}; wait for its end, cancel it, or choose another name"
            )
            raise await _conflict(app_state, request, added.job_id, detail, "training_id")
        if added.first and added.first != _fingerprint(asked):
            raise InvalidError(
                "this Idempotency-Key was used with another body; send the same body or another key",
                job_id=added.job_id,
            )
        if added.job_id == row["id"] and not await _use(app_state, request, asked.dataset, row["id"]):
            await app_state.job_service.cancel(row["id"])
            raise NotFoundError(f"the dataset {asked.dataset!r} was deleted meanwhile")
        await app_state.job_service.rouse(added.job_id)
        job = await app_state.job_service.get(added.job_id, row["owner"])
        if job is None:
            raise GoneError("the training of this Idempotency-Key was deleted; use another key")
        headers = {"Location": f"/v1/jobs/{job['id']}", "Content-Location": f"/v1/trainings/{job['id']}"}
        return Response(orjson.dumps(training_body(job)), 202, {**headers, "Retry-After": "1"}, JSON)


def _recipe(app_state: AppState, request: Request, asked: Asked) -> dict[str, Any]:
    """The whole recipe. Raises the ProblemError that says what is wrong with it."""
    known = families(app_state.settings)
    if asked.family not in known:
        detail = f"no family {asked.family[:60]!r}; there are: {', '.join(known)}"
        raise InvalidError(detail, errors=[{"field": "family", "detail": detail}])
    dataset = Datasets(StatePaths(app_state.settings.state).datasets).get(asked.dataset)
    if dataset is None or not app_state.permissions.can_use("dataset", asked.dataset, caller_of(request.scope)):
        raise NotFoundError(f"no dataset {asked.dataset[:60]!r}; GET /v1/datasets lists them, POST makes one")
    overrides = {**asked.recipe.model_dump(), "summary": asked.summary}
    try:
        recipe: dict[str, Any] = settled(asked.family, known[asked.family], dataset, asked.name, overrides, asked.gpus)
    except InvalidOptionsError as error:
        raise InvalidError(str(error), errors=error.errors) from error
    there = app_state.registry.find(asked.name)
    if there is not None and (said := _unlike(there, asked.family, recipe["config"])):
        raise InvalidError(f"{said}; choose another name", errors=[{"field": "name", "detail": said}])
    return recipe


def _unlike(there: ModelVersion, family: str, config: dict[str, Any]) -> str:
    """Why a version of this would not stand beside those that are there, if it would not."""
    if there.card["family"] != family:
        return f"{there.name} is of the family {there.card['family']}"
    shape = tuple(config.get(word, there.card["image"][word]) for word in ("channels", "height", "width"))
    if shape != there.image:
        return f"{there.name} has images of {'×'.join(map(str, there.image))}, these are {'×'.join(map(str, shape))}"
    return ""


def _row(request: Request, asked: Asked, recipe: dict[str, Any]) -> Job:
    said = {**asked.model_dump(exclude={"recipe"}), "recipe": recipe}
    kind = "estimate" if asked.dry_run else TRAINING
    return auxiliary_row(request, kind, asked.name, said, seed=recipe["seed"])


def auxiliary_row(request: Request, kind: str, model: str, said: dict[str, Any], seed: int = 0) -> Job:
    """A row of the ledger for the training worker."""
    now = time.time()
    return {
        "id": new_id(),
        "kind": kind,
        "owner": owner_of(request),
        "status": "queued",
        "model": model,
        "version": "",
        "method": kind,
        "options": "{}",
        "request": orjson.dumps(said).decode(),
        "request_id": request_id_of(request),
        "seed": seed,
        "rows": 1,
        "turn": now,
        "created_at": now,
    }


def _fingerprint(asked: Asked) -> str:
    return hashlib.sha256(orjson.dumps(canonical(asked.model_dump()), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _key(request: Request, app_state: AppState, asked: Asked) -> Key | None:
    raw = request.headers.get("idempotency-key")
    if raw is None:
        return None
    found = _KEY.fullmatch(raw.strip())
    if found is None:
        raise MalformedError("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare")
    return Key("POST /v1/trainings", found.group(1), _fingerprint(asked), app_state.settings.idempotency_key_ttl_s)


async def _use(app_state: AppState, request: Request, dataset: str, job_id: str) -> bool:
    """Keep a dataset for a training; return whether it is there, and still one that the caller may use."""
    datasets = Datasets(StatePaths(app_state.settings.state).datasets)
    if not await asyncio.to_thread(datasets.use, dataset, job_id):
        return False
    await app_state.permissions.refresh()
    if app_state.permissions.can_use("dataset", dataset, caller_of(request.scope)):
        return True
    await asyncio.to_thread(datasets.release, dataset, job_id)
    return False


async def _dry_run(request: Request, app_state: AppState, row: Job) -> Response:
    """What the desk of a training worker found, or its job where that takes long."""
    header = ",".join(request.headers.getlist("prefer"))
    prefer = Prefer.read(header, app_state.settings, _ESTIMATE_S)
    result, job = await auxiliary_job(app_state, caller_of(request.scope), row, prefer.wait_s)
    if result is None:
        headers = {"Location": f"/v1/jobs/{job['id']}", "Retry-After": "1", **applied(prefer)}
        return Response(orjson.dumps(training_body(job)), 202, headers, JSON)
    return _json({**result, "recipe": orjson.loads(row["request"])["recipe"]}, applied(prefer))


async def auxiliary_job(
    app_state: AppState, caller: Caller, row: Job, wait_s: float, committed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any] | None, Job]:
    """Give the desk of a training worker something to do, and wait; answers its result, if it came, and the job.

    `committed` is called once the job is promised, whatever comes of the wait.
    Raises the ProblemError that the desk found.
    """
    async with app_state.quotas.job(caller):
        await app_state.job_service.change(lambda job_store: job_store.add([row]))
    committed()
    await app_state.job_service.rouse(row["id"])
    job = await app_state.job_service.wait(row["id"], row["owner"], wait_s) or row
    if job["status"] == "succeeded":
        found = await app_state.job_service.look(lambda job_store: job_store.result(row["id"]))
        return dict(unpack(found[0][0] or b"")), job
    if job["status"] == "failed":
        problem = orjson.loads(job["problem"])
        raise InvalidError(problem["detail"], job_id=row["id"]) if problem["status"] == 422 else failed(problem)
    return None, job


# --- watching ---


def training_body(job: Job) -> dict[str, Any]:
    """A training as clients see it."""
    body = job_body(job)
    said = body.pop("request")
    here = f"/v1/trainings/{job['id']}"
    links = {name: f"{here}/{name}" for name in ("metrics", "checkpoints", "preview", "pause", "resume", "publish")}
    links |= {"self": here, "job": f"/v1/jobs/{job['id']}", "curves": f"{here}/curves.png"}
    if job["version"]:
        links["version"] = f"/v1/models/{job['model']}/versions/{job['version']}"
    words = ("family", "dataset", "summary", "serve", "evaluation", "recipe")
    return {
        **body,
        "object": "training",
        "version": job["version"] or None,
        **{word: said.get(word) for word in words},
        "links": {**body["links"], **links},
    }


async def _training(app_state: AppState, request: Request, job_id: str) -> Job:
    job = await app_state.job_service.get(job_id, owner_of(request)) if _JOB_ID.fullmatch(job_id) else None
    if job is None or job["kind"] != TRAINING:
        raise NotFoundError(f"no training {job_id[:60]!r}; GET /v1/trainings lists yours")
    return job


async def _metrics(app_state: AppState, job_id: str) -> list[dict[str, Any]]:
    return [
        orjson.loads(event["data"])
        for event in await app_state.job_service.events(job_id, 0)
        if event["event"] == "metrics"
    ]


def _add_watching(router: APIRouter, app_state: AppState) -> None:
    @router.get(
        "/trainings",
        summary="List trainings, newest first",
        tags=["trainings"],
        response_class=Response,
        responses={**answered(listed(_TRAINING)), **problem_responses(422)},
    )
    async def trainings(
        request: Request,
        status: Annotated[str | None, Query(pattern="^(queued|running|paused|succeeded|failed|cancelled)$")] = None,
        model: Annotated[str | None, Query(max_length=120, pattern=_WORD)] = None,
        after: Annotated[str | None, Query(max_length=60, pattern=_WORD)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        filters = {"kind": TRAINING} | {name: value for name, value in (("status", status), ("model", model)) if value}
        found = await app_state.job_service.listing(owner_of(request), filters, after, limit + 1)
        return _listing([training_body(job) for job in found[:limit]], "id", has_more=len(found) > limit)

    @router.get(
        "/trainings/{job_id}",
        summary="A training",
        tags=["trainings"],
        response_class=Response,
        responses={**answered(_TRAINING), **problem_responses(404)},
    )
    async def training(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        lines = await _metrics(app_state, job_id)
        body = {**training_body(job), "metrics": lines[-1] if lines else None}
        return _json(body, {} if job["status"] in TERMINAL else {"Retry-After": "1"})


def _add_figures(router: APIRouter, app_state: AppState) -> None:
    """What a training measures, keeps and makes while it runs."""

    @router.get(
        "/trainings/{job_id}/metrics",
        summary="A training's metrics, an epoch each; as SSE as they come",
        tags=["trainings"],
        response_class=Response,
        responses={**_METRICS, **problem_responses(404, 422, 429)},
    )
    async def metrics(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        if "text/event-stream" not in request.headers.get("accept", ""):
            return _listing(await _metrics(app_state, job_id), "epoch", has_more=False)
        seen = request.headers.get("last-event-id", "0")
        if not seen.isdecimal() or len(seen) > 18:
            raise InvalidError("Last-Event-ID must be the id of an event of this training")
        if job["status"] in TERMINAL and not await app_state.job_service.events(job_id, int(seen)):
            return Response(status_code=204)
        return EventStream(_stream(app_state, job_id, int(seen)), app_state.streams, stream_holder(app_state, request))

    @router.get(
        "/trainings/{job_id}/checkpoints",
        summary="A training's checkpoints; the last one is kept",
        tags=["trainings"],
        response_class=Response,
        responses={**answered(listed({"type": "object", "required": ["step_number"]})), **problem_responses(404)},
    )
    async def checkpoints(request: Request, job_id: str) -> Response:
        await _training(app_state, request, job_id)
        return _listing(await _checkpoints(app_state, job_id), "step_number", has_more=False)

    @router.get(
        "/trainings/{job_id}/curves.png",
        summary="A training's losses as a picture",
        tags=["trainings"],
        response_class=Response,
        responses={**_PICTURE, **problem_responses(404)},
    )
    async def picture(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        lines = await _metrics(app_state, job_id)
        drawn = await asyncio.to_thread(curves, f"{job['model']}: loss an image", lines)
        return Response(drawn, 200, {"Cache-Control": "no-store"}, PNG)

    @router.get(
        "/trainings/{job_id}/preview",
        summary="What a training's model makes so far",
        tags=["trainings"],
        response_class=Response,
        responses={**_PICTURE, **problem_responses(404)},
    )
    async def preview(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        file = StatePaths(app_state.settings.state).run(job_id) / "preview.png"
        try:
            drawn = await asyncio.to_thread(file.read_bytes)
        except FileNotFoundError as error:
            raise NotFoundError(f"the training is {job['status']} and has nothing to show yet") from error
        return Response(drawn, 200, {"Cache-Control": "no-store"}, PNG)


async def _checkpoints(app_state: AppState, job_id: str) -> list[dict[str, Any]]:
    events = await app_state.job_service.events(job_id, 0)
    lines = {line["epoch"]: line for line in await _metrics(app_state, job_id)}
    found = []
    for event in events:
        if event["event"] == "checkpoint":
            said = orjson.loads(event["data"])
            metrics = {name: value for name, value in lines.get(said["epoch"], {}).items() if name.endswith("loss")}
            found.append({"object": "training.checkpoint", **said, "metrics": metrics, "kept": False})
    for last in found[-1:]:
        last["kept"] = (StatePaths(app_state.settings.state).run(job_id) / "state.pt").exists()
    return found


async def _stream(app_state: AppState, job_id: str, seq: int) -> AsyncIterator[str]:
    """Metrics as they come, then how the training ended."""
    yield "retry: 2000\n\n"
    async for update in app_state.job_service.job_events.listen(job_id, seq):
        if not update.exists:
            return  # it was deleted meanwhile
        for event in update.events:
            if event.last or event.name == "metrics":
                yield event.text
            if event.last:
                return
        if not update.events:
            yield ": keep-alive\n\n"


# --- steering ---


def _add_steering(router: APIRouter, app_state: AppState) -> None:
    @router.post(
        "/trainings/{job_id}/pause",
        summary="Stop a training with a checkpoint, to be resumed",
        tags=["trainings"],
        response_class=Response,
        responses={**answered(_TRAINING), **problem_responses(404, 409)},
    )
    async def pause(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        if job["status"] != "paused" and not await app_state.job_service.change(
            lambda job_store: job_store.pause(job_id)
        ):
            raise await _refusal(app_state, request, job_id, "a queued or running one can be paused")
        await app_state.job_service.rouse(job_id)
        return _json(training_body(await _training(app_state, request, job_id)))

    @router.post(
        "/trainings/{job_id}/resume",
        summary="Go on with a paused training",
        tags=["trainings"],
        response_class=Response,
        responses={**answered(_TRAINING), **problem_responses(404, 409)},
    )
    async def resume(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        going = job["status"] in {"queued", "running"}
        if not going and not await app_state.job_service.change(lambda job_store: job_store.resume(job_id)):
            raise await _refusal(app_state, request, job_id, "a paused one can be resumed")
        await app_state.job_service.rouse(job_id)
        return _json(training_body(await _training(app_state, request, job_id)))

    @router.post(
        "/trainings/{job_id}/publish",
        summary="Make the last checkpoint of a training that did not end well a version",
        tags=["trainings"],
        response_class=Response,
        responses={
            202: {"description": "A job", "content": {JSON: {"schema": {"$ref": "#/components/schemas/Job"}}}},
            **problem_responses(404, 409, 503),
        },
    )
    async def publish(request: Request, job_id: str) -> Response:
        job = await _training(app_state, request, job_id)
        if job["status"] not in {"failed", "cancelled", "paused"}:
            raise await _refusal(app_state, request, job_id, "a paused, failed or cancelled one can be published")
        if not (StatePaths(app_state.settings.state).run(job_id) / "state.pt").exists():
            raise ConflictError("the training has left no checkpoint", job_status=job["status"])
        said = {**orjson.loads(job["request"]), "training": job_id}
        if said.get("serve") != "never" and not app_state.batch_sender.live_workers():
            raise OverloadedError(
                "no inference worker is running, which would load the version before it serves; start one "
                "(python -m workers), then publish again",
                headers={"Retry-After": "10"},
            )
        row = auxiliary_row(request, "publication", job["model"], said, job["seed"])
        caller = caller_of(request.scope)
        await app_state.permissions.claim("model", job["model"], caller, shared=None)
        async with app_state.quotas.job(caller):
            added = await app_state.job_service.change(lambda job_store: job_store.insert_exclusive(row, alone=True))
        found = await app_state.job_service.get(added.job_id, row["owner"]) or row
        # asked for again while it is under way, a publication is the same one; that of another run stands in its way
        same = found["id"] == added.job_id and orjson.loads(found["request"])["training"] == job_id
        if added.conflict and not same:
            detail = f"a publication of {job['model']} is {added.conflict}; wait for its end, then publish this run"
            raise await _conflict(app_state, request, added.job_id, detail, "job_id")
        await app_state.job_service.rouse(added.job_id)
        headers = {"Location": f"/v1/jobs/{added.job_id}", "Retry-After": "1"}
        return Response(orjson.dumps(job_body(found)), 202, headers, JSON)


async def _conflict(app_state: AppState, request: Request, job_id: str, detail: str, field: str) -> ConflictError:
    """Return the error for a job that another one excludes; it names the other one's id to its owner alone."""
    other = await app_state.job_service.get(job_id, owner_of(request))
    return ConflictError(detail, headers={"Retry-After": "2"}, **({field: other["id"]} if other else {}))


async def _refusal(app_state: AppState, request: Request, job_id: str, instead: str) -> ConflictError:
    job = await _training(app_state, request, job_id)
    return ConflictError(f"the training is {job['status']}; {instead}", job_status=job["status"])


def _json(body: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), 200, headers, JSON)


def _listing(data: list[dict[str, Any]], key: str, *, has_more: bool) -> Response:
    ends = {"first_id": str(data[0][key]) if data else None, "last_id": str(data[-1][key]) if data else None}
    return _json({"object": "list", "data": data, "has_more": has_more, **ends})
