"""The routes under /v1. Operations are generic: one route each, and a card says which model has which."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, FastAPI, Query
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access import caller_of, quota_exceeded
from api.auth import VISITOR
from api.batching.batch_sender import BatchSender, FailedError
from api.batching.requests import PendingRequest
from api.batching.scheduler import QueueFullError
from api.errors import (
    GONE,
    ConflictError,
    GoneError,
    InvalidError,
    MalformedError,
    ModelFailedError,
    NotFoundError,
    OverloadedError,
    request_id_of,
)
from api.exposure import client_address, trusted_proxies
from api.job_events import EventStream, StreamLimit
from api.jobs import JobService
from api.openapi import EVENTS, JOB, MODEL, PREVIEW, RESULT, answered, listed, operation_docs, problem_responses
from api.permissions import Models, Permissions
from api.prefer import Prefer
from api.quotas import Quotas
from api.requests import InferenceRequest, read_request
from api.responses.large_responses import ResponseMemory
from api.responses.render import JSON, NPZ, PNG, About, choose, negotiate, render, summed
from api.responses.result_files import ResultFiles
from api.responses.upscaled import UpscaleService, Wish, kinds_of
from core.broker.codec import Fields, unpack
from core.catalog.operations import BY_METHOD, OPERATIONS, Operation
from core.catalog.registry import ModelVersion, Registry
from core.jobs.store import TERMINAL, Job
from core.settings import Settings

PNG_BY_WORKER = 256
"""Up to this many pictures, the worker makes the PNGs of a JSON answer; more come as pixels, for a thread to encode."""

_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')
_WORD = r"^[\w.-]*$"
_FILE_NAMES = {JSON: "json", PNG: "png", NPZ: "npz"}
_JOB_ID = re.compile(r"job_[0-9a-f]{28}")


@dataclass(frozen=True)
class AppState:
    """What the routes stand on."""

    settings: Settings
    registry: Registry
    batch_sender: BatchSender
    job_service: JobService
    upscales: UpscaleService
    permissions: Permissions
    quotas: Quotas
    streams: StreamLimit
    results: ResultFiles
    responses: ResponseMemory

    def models(self, request: Request) -> Models:
        """Return the models that a request's caller may use."""
        return self.permissions.models(caller_of(request.scope))


class PlainRoute(APIRoute):
    """A route whose function takes the request and answers a response: FastAPI describes it, and does not parse for it.

    FastAPI's own parsing and dependency solving cost a third of a small request's time on the way to a model.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the function; another method than the route's is refused as everywhere."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


def add_routes(app: FastAPI, app_state: AppState) -> None:
    """Put all routes under /v1 into the application."""
    for operation in OPERATIONS:
        if operation.tiled:
            continue  # pictures of any size have a route of their own
        route = PlainRoute(
            f"/v1/{operation.path}",
            _operation_route(app_state, operation),
            methods=["POST"],
            summary=operation.summary,
            operation_id=operation.path,
            tags=["operations"],
            response_class=Response,
            openapi_extra=operation_docs(operation, app_state.permissions.models(VISITOR), app_state.settings),
        )
        app.router.routes.append(route)
    router = APIRouter(prefix="/v1")
    _add_models(router, app_state)
    _add_jobs(router, app_state)
    _add_results(router, app_state)
    app.include_router(router)


# --- operations ---


def _operation_route(app_state: AppState, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def route(request: Request) -> Response:
        media = negotiate(request.headers.get("accept", ""), operation)
        inference_request = await read_request(request, operation, app_state.models(request), app_state.settings)
        prefer = Prefer.read(",".join(request.headers.getlist("prefer")), app_state.settings)
        key = request.headers.get("idempotency-key")
        if key is not None:
            return await _once(app_state, request, inference_request, media, prefer, key)
        if prefer.wait_s <= 0:
            if app_state.job_service.full:
                raise overloaded("too many unfinished jobs")
            async with app_state.quotas.job(caller_of(request.scope)):
                job = await app_state.job_service.add(inference_request, owner_of(request), request_id_of(request))
            return accepted(job, prefer)
        return await _now(app_state, request, inference_request, media, prefer)

    return route


async def _now(
    app_state: AppState, request: Request, inference_request: InferenceRequest, media: str, prefer: Prefer
) -> Response:
    """Answer while the client waits; after too long, promise a job that goes on with the same work."""
    png = media == JSON and inference_request.operation.pictures and inference_request.rows <= PNG_BY_WORKER
    call = PendingRequest(
        inference_request.entry,
        inference_request.operation.method,
        inference_request.options,
        inference_request.seed,
        inference_request.rows,
        inference_request.items,
        inference_request.per,
        png,
        request_id_of(request),
        owner_of(request),
    )
    fields = await computed(app_state, request, inference_request, call, prefer)
    if isinstance(fields, Response):
        return fields
    fields = summed(fields)
    about = About(
        inference_request.entry.name,
        inference_request.entry.version,
        inference_request.seed,
        inference_request.notes,
        inference_request.operation.columns(inference_request.per),
    )
    if inference_request.rows > PNG_BY_WORKER:
        body = await asyncio.to_thread(render, fields, about, media)
    else:
        body = render(fields, about, media)
    headers = {**about.headers(fields), **applied(prefer), "Vary": "Accept, Prefer"}
    return app_state.responses.response(body, headers, media)


async def computed(
    app_state: AppState, request: Request, inference_request: InferenceRequest, call: PendingRequest, prefer: Prefer
) -> Fields | Response:
    """What the workers make of a call while the client waits; after too long, the answer that promises a job."""
    call.limits = caller_of(request.scope).limits
    try:
        app_state.batch_sender.submit(call)
    except QueueFullError as error:
        if error.own:
            raise quota_exceeded(error.limit, str(error), 2) from error
        detail = f"{error}; try again when some of them have ended"
        raise OverloadedError(detail, headers={"Retry-After": "2"}, limit=error.limit) from error
    try:
        return await _wait_for_result(request, call, prefer.wait_s)
    except TimeoutError:
        try:
            async with app_state.quotas.job(caller_of(request.scope)):
                job = await app_state.job_service.adopt(
                    inference_request, call, owner_of(request), request_id_of(request)
                )
        except BaseException:
            app_state.batch_sender.drop(call)
            raise
        return accepted(job, prefer)
    except FailedError as error:
        raise failed(error.problem) from error
    except (asyncio.CancelledError, ClientDisconnect):
        app_state.batch_sender.drop(call)
        raise


async def _wait_for_result(request: Request, call: PendingRequest, wait_s: float) -> Fields:
    """The call's result; while it is long in coming, look whether the client is still there."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        left = until - loop.time()
        done, _ = await asyncio.wait((call.result,), timeout=min(left, 1.0))
        if done:
            return call.result.result()
        if left <= 1.0:
            raise TimeoutError
        if await request.is_disconnected():
            raise ClientDisconnect


async def _once(
    app_state: AppState, request: Request, inference_request: InferenceRequest, media: str, prefer: Prefer, raw: str
) -> Response:
    """A request under an Idempotency-Key: the first answer is given again."""
    job = await promised_once(app_state, request, inference_request, prefer, raw)
    if job["status"] not in TERMINAL:
        return accepted(job, prefer)
    check_succeeded(job)
    headers = {**applied(prefer), "Content-Location": f"/v1/jobs/{job['id']}/result", "Vary": "Accept, Prefer"}
    render = partial(_rendered, app_state, job, media)
    return await app_state.results.whole(job["id"], _FILE_NAMES[media], media, render, headers)


async def promised_once(
    app_state: AppState, request: Request, inference_request: InferenceRequest, prefer: Prefer, raw: str
) -> Job:
    """The job of a request under an Idempotency-Key, one however often it is sent, waited for as preferred."""
    found = _KEY.fullmatch(raw.strip())
    if found is None:
        raise MalformedError("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare")
    if app_state.job_service.full:
        raise overloaded("too many unfinished jobs")
    owner = owner_of(request)
    route = f"POST /v1/{inference_request.operation.path}"
    async with app_state.quotas.job(caller_of(request.scope)):
        job_id, fingerprint = await app_state.job_service.add_once(
            inference_request, owner, request_id_of(request), route, found.group(1)
        )
    if fingerprint != inference_request.fingerprint:
        raise InvalidError(
            f"Idempotency-Key {found.group(1)!r} was used with another body; send the same body or another key",
            job_id=job_id,
        )
    job = await app_state.job_service.wait(job_id, owner, prefer.wait_s)
    if job is None:
        raise GoneError("the job of this Idempotency-Key was deleted; use another key")
    return job


def overloaded(why: str) -> OverloadedError:
    """The refusal of a request that there is no room for now."""
    return OverloadedError(f"{why}; try again in a moment", headers={"Retry-After": "2"})


def failed(said: dict[str, Any]) -> ModelFailedError:
    """A problem that a worker reported, as it is told to the client."""
    error = ModelFailedError(said["detail"], headers={"Retry-After": "2"} if said["status"] == 503 else None)
    error.more = {"status": said["status"], "title": said["title"]}
    return error


def owner_of(request: Request) -> str:
    """Whose request it is; empty where keys are not used."""
    return str(request.scope.get("reverie_owner") or "")


def applied(prefer: Prefer) -> dict[str, str]:
    """The header that says which preference was followed."""
    return {"Preference-Applied": prefer.applied} if prefer.applied else {}


def accepted(job: Job, prefer: Prefer) -> Response:
    """202: the job, and where to look for it."""
    headers = {"Location": f"/v1/jobs/{job['id']}", "Retry-After": "1", **applied(prefer), "Vary": "Prefer"}
    return Response(orjson.dumps(job_body(job)), 202, headers, JSON)


# --- models ---


def _add_models(router: APIRouter, app_state: AppState) -> None:
    @router.get(
        "/models", summary="List models", tags=["models"], response_class=Response, responses=answered(listed(MODEL))
    )
    async def models(request: Request) -> Response:
        await app_state.permissions.refresh()
        data = [model_body(app_state, request, entry) for entry in app_state.models(request).serving()]
        return _json(_listing(data, "name", has_more=False))

    @router.get(
        "/models/{name}",
        summary="A model's card",
        tags=["models"],
        response_class=Response,
        responses={**answered(MODEL), **problem_responses(404)},
    )
    async def model(request: Request, name: str) -> Response:
        await app_state.permissions.refresh()
        entry = app_state.models(request).find(name)
        if entry is None:
            raise NotFoundError(f"no model {name[:120]!r}; GET /v1/models lists them")
        return _json(model_body(app_state, request, entry))


def model_body(app_state: AppState, request: Request, entry: ModelVersion) -> dict[str, Any]:
    """A model as clients see it: its card, its versions, and where each operation is asked for."""
    routes = {
        BY_METHOD[method].path: stated for method, stated in entry.card["operations"].items() if method in BY_METHOD
    }
    links = {"self": f"/v1/models/{entry.name}", **{path: f"/v1/{path}" for path in routes}}
    return {
        **entry.card,
        "name": entry.name,
        "operations": routes,
        "version": entry.version,
        "versions": app_state.registry.versions(entry.name),
        **app_state.permissions.describe("model", entry.name, caller_of(request.scope)),
        "links": links,
    }


# --- jobs ---


def job_body(job: Job) -> dict[str, Any]:
    """A job as clients see it."""
    here = f"/v1/jobs/{job['id']}"
    body = {
        "id": job["id"],
        "kind": job["kind"],
        "status": job["status"],
        "progress": job.get("progress", 0.0),
        "model": job["model"],
        "version": job["version"],
        "seed": job["seed"],
        "request": orjson.loads(job["request"]),
        "request_id": job["request_id"],
        "attempts": job.get("attempts", 0),
        "waiting_reason": job.get("blocked_reason"),
        "problem": {**orjson.loads(job["problem"]), "request_id": job["request_id"]} if job.get("problem") else None,
        "links": {"self": here, **{name: f"{here}/{name}" for name in ("events", "result", "cancel", "preview")}},
    }
    for name in ("created_at", "started_at", "finished_at"):
        moment = job.get(name)
        body[name] = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds") if moment else None
    return body


async def _job(app_state: AppState, request: Request, job_id: str) -> Job:
    job = await app_state.job_service.get(job_id, owner_of(request)) if _JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise NotFoundError(f"no job {job_id[:60]!r}; GET /v1/jobs lists yours")
    return job


async def _rendered(app_state: AppState, job: Job, media: str) -> tuple[bytes, dict[str, str]]:
    """The answer of a succeeded job and its headers. Raises GoneError."""
    asked = orjson.loads(job["request"])
    columns = BY_METHOD[job["method"]].columns(job["per"])
    about = About(job["model"], job["version"], job["seed"], tuple(asked.get("conversions", ())), columns)
    try:
        fields = summed(await app_state.job_service.fields(job))
    except LookupError as error:
        raise GoneError(GONE) from error
    return await asyncio.to_thread(render, fields, about, media), about.headers(fields)


def check_succeeded(job: Job) -> None:
    """Raise the problem of an ended job that has no result, or none any more."""
    if job["status"] == "failed":
        raise failed(orjson.loads(job["problem"]))
    if job["status"] != "succeeded":
        raise ConflictError(f"the job is {job['status']}; it has no result", job_status=job["status"])
    if job["expired"]:
        raise GoneError(GONE)


def _add_jobs(router: APIRouter, app_state: AppState) -> None:
    """Looking at jobs, and ending them."""

    @router.get(
        "/jobs",
        summary="List jobs, newest first",
        tags=["jobs"],
        response_class=Response,
        responses={**answered(listed(JOB)), **problem_responses(422)},
    )
    async def jobs(
        request: Request,
        status: Annotated[str | None, Query(pattern="^(queued|running|paused|succeeded|failed|cancelled)$")] = None,
        kind: Annotated[str | None, Query(max_length=40, pattern=_WORD)] = None,
        model: Annotated[str | None, Query(max_length=120, pattern=_WORD)] = None,
        after: Annotated[str | None, Query(max_length=60, pattern=_WORD)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Response:
        filters = {name: value for name, value in (("status", status), ("kind", kind), ("model", model)) if value}
        found = await app_state.job_service.listing(owner_of(request), filters, after, limit + 1)
        data = [job_body(job) for job in found[:limit]]
        return _json(_listing(data, "id", has_more=len(found) > limit))

    @router.get(
        "/jobs/{job_id}",
        summary="A job",
        tags=["jobs"],
        response_class=Response,
        responses={**answered(JOB), **problem_responses(404)},
    )
    async def job(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        return _json(job_body(found), {} if found["status"] in TERMINAL else {"Retry-After": "1"})

    @router.post(
        "/jobs/{job_id}/cancel",
        summary="Cancel a job",
        tags=["jobs"],
        response_class=Response,
        responses={**answered(JOB), **problem_responses(404, 409)},
    )
    async def cancel(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        if not await app_state.job_service.cancel(job_id) and found["status"] != "cancelled":
            found = await _job(app_state, request, job_id)
            raise ConflictError(f"the job has {found['status']} already", job_status=found["status"])
        return _json(job_body(await _job(app_state, request, job_id)))

    @router.delete(
        "/jobs/{job_id}",
        summary="Forget an ended job",
        tags=["jobs"],
        status_code=204,
        responses=problem_responses(404, 409),
    )
    async def delete(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        if found["status"] not in TERMINAL:
            raise ConflictError(f"the job is {found['status']}; cancel it first", job_status=found["status"])
        await app_state.job_service.delete(job_id)
        return Response(status_code=204)


def _add_results(router: APIRouter, app_state: AppState) -> None:
    """What jobs say while they run, and what they leave."""

    @router.get(
        "/jobs/{job_id}/result",
        summary="A job's result",
        tags=["jobs"],
        response_class=Response,
        responses={**RESULT, **problem_responses(404, 406, 409, 410, 416)},
    )
    async def result(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        return await _result(app_state, request, found)

    @router.get(
        "/jobs/{job_id}/preview",
        summary="What a running job's pictures look like so far",
        tags=["jobs"],
        response_class=Response,
        responses={**PREVIEW, **problem_responses(404)},
    )
    async def preview(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        picture = await app_state.job_service.preview(job_id) if found["status"] not in TERMINAL else None
        if picture is None:
            raise NotFoundError(f"the job is {found['status']} and has nothing to show; a long run of pictures has")
        return Response(picture, 200, {"Cache-Control": "no-store"}, PNG)

    @router.get(
        "/jobs/{job_id}/events",
        summary="A job's events as they come (SSE)",
        tags=["jobs"],
        response_class=Response,
        responses={**EVENTS, **problem_responses(404, 422, 429)},
    )
    async def events(request: Request, job_id: str) -> Response:
        found = await _job(app_state, request, job_id)
        seen = request.headers.get("last-event-id", "0")
        if not seen.isdecimal() or len(seen) > 18:
            raise InvalidError("Last-Event-ID must be the id of an event of this job")
        seq = int(seen)
        if not await app_state.job_service.events(job_id, seq):
            if found["status"] in TERMINAL:
                return Response(status_code=204)  # tells EventSource not to come back
            seq = min(seq, len(await app_state.job_service.events(job_id, 0)))  # they are numbered from 1
        return EventStream(_stream(app_state, job_id, seq), app_state.streams, stream_holder(app_state, request))


def _check_ended(job: Job) -> None:
    """Raise ConflictError for a job that runs yet, or failed."""
    if job["status"] not in TERMINAL:
        raise ConflictError(
            f"the job is {job['status']}; wait for its end",
            job_status=job["status"],
            headers={"Retry-After": "1"},
        )
    if job["status"] == "failed":
        raise ConflictError("the job failed; `job_problem` says why", job_problem=job_body(job)["problem"])


async def _result(app_state: AppState, request: Request, job: Job) -> Response:
    """A job's result in the form that `Accept` asks for, whole or in part."""
    if job["method"] not in BY_METHOD:  # the training worker's: what it says is JSON
        choose(request.headers.get("accept", ""), [JSON])
        _check_ended(job)
        check_succeeded(job)
        found = await app_state.job_service.look(lambda job_store: job_store.result(job["id"]))
        return _json(unpack(found[0][0] or b""))
    operation, accept = BY_METHOD[job["method"]], request.headers.get("accept", "")
    media = "" if operation.tiled else negotiate(accept, operation)
    _check_ended(job)
    if operation.tiled:
        check_succeeded(job)
        wish = Wish.read(accept, kinds_of(orjson.loads(job["request"])["format"]))
        return await app_state.upscales.respond(request, job, wish, {})
    check_succeeded(job)
    render = partial(_rendered, app_state, job, media)
    return await app_state.results.respond(request, job["id"], _FILE_NAMES[media], media, render)


async def _stream(app_state: AppState, job_id: str, seq: int) -> AsyncIterator[str]:
    """The job's events as they come, and between them, without a number, that there is another preview."""
    yield "retry: 2000\n\n"
    async for update in app_state.job_service.job_events.listen(job_id, seq):
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


def stream_holder(app_state: AppState, request: Request) -> str:
    """Whom an event stream counts for: the owner, or without keys the address."""
    owner = owner_of(request)
    if owner:
        return owner
    peer = request.client.host if request.client else "unknown"
    return client_address(peer, dict(request.scope["headers"]), trusted_proxies(app_state.settings))


def _json(body: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), 200, headers, JSON)


def _listing(data: list[dict[str, Any]], key: str, *, has_more: bool) -> dict[str, Any]:
    ends = {"first_id": data[0][key] if data else None, "last_id": data[-1][key] if data else None}
    return {"object": "list", "data": data, "has_more": has_more, **ends}
