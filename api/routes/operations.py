"""Operations: one route for each, by which clients sample, encode and score; a card says which model has which.

These routes are the service's hot path: a small request spends more time here than in the model.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access import caller_of, quota_exceeded
from api.batching.batch_sender import FailedError
from api.batching.requests import PendingRequest
from api.batching.result_waits import WAIT_S, StillWaitingError
from api.batching.scheduler import QueueFullError
from api.dependencies import check_query_names, owner_of
from api.errors import GoneError, InvalidError, MalformedError, OverloadedError, request_id_of
from api.prefer import Prefer
from api.requests import InferenceRequest, first_headers, read_request
from api.responses.job_results import accepted, applied, failed, overloaded, whole_result_response
from api.responses.render import JSON, About, negotiate, render, summed
from api.state import AppState
from core.broker.codec import Fields
from core.catalog.operations import OPERATIONS, Operation
from core.jobs.records import TERMINAL, Job

PNG_BY_WORKER = 256
"""Up to this many pictures, the worker encodes the PNGs of a JSON response; beyond that a thread of the API does."""

_KEY = re.compile(r'"?([\x20\x21\x23-\x7e]{1,255})"?')


class PlainRoute(APIRoute):
    """A route whose function takes the request and returns a response; FastAPI only describes it.

    FastAPI's own parsing and dependency injection would take a third of a small request's time up to the model.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the function. A method that the route does not have is rejected as on every route."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        if scope["query_string"] and request.headers.get("content-type", "").startswith("application/json"):
            check_query_names(request.query_params)  # the fields of a picture or a form may be in the query
        response = await self.endpoint(request)
        await response(scope, receive, send)


def add_operations(app: FastAPI, app_state: AppState) -> None:
    """Add a route for each operation to the application."""
    for operation in OPERATIONS:
        if operation.tiled:
            continue  # pictures of any size have a route of their own
        route = PlainRoute(
            f"/v1/{operation.path}",
            _operation_route(app_state, operation),
            methods=["POST"],
            summary=operation.summary,
            operation_id=f"create_{operation.path}",
            tags=["operations"],
            response_class=Response,
        )
        app.router.routes.append(route)


def _operation_route(app_state: AppState, operation: Operation) -> Callable[[Request], Awaitable[Response]]:
    """Return the function of an operation's route.

    The response is synchronous, or a 202 with a job: at once for `Prefer: respond-async`, else after the time-out.
    """
    without_preference = Prefer.read("", app_state.settings)

    async def route(request: Request) -> Response:
        headers = first_headers(request)
        media = negotiate(headers.get(b"accept", b"").decode("latin-1"), operation)
        inference_request = await read_request(request, operation, app_state.models(request), app_state.settings)
        prefer = without_preference
        if b"prefer" in headers:
            prefer = Prefer.read(",".join(request.headers.getlist("prefer")), app_state.settings)
        key = headers.get(b"idempotency-key")
        if key is not None:
            return await _respond_once(app_state, request, inference_request, media, prefer, key.decode("latin-1"))
        if prefer.wait_s <= 0:
            if app_state.job_service.full:
                raise overloaded("too many unfinished jobs")
            async with app_state.quotas.job(caller_of(request.scope)):
                job = await app_state.job_service.create(inference_request, owner_of(request), request_id_of(request))
            return accepted(job, prefer)
        return await _respond_sync(app_state, request, inference_request, media, prefer)

    return route


async def _respond_sync(
    app_state: AppState, request: Request, inference_request: InferenceRequest, media: str, prefer: Prefer
) -> Response:
    """Return the result while the client waits; after its time-out a 202 with the job that goes on with the work."""
    png = media == JSON and inference_request.operation.pictures and inference_request.rows <= PNG_BY_WORKER
    pending = PendingRequest(
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
    fields = await compute_or_accept(app_state, request, inference_request, pending, prefer)
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


async def compute_or_accept(
    app_state: AppState, request: Request, inference_request: InferenceRequest, pending: PendingRequest, prefer: Prefer
) -> Fields | Response:
    """Decide between a synchronous result and a 202: wait for the rows, and at the time-out make a job of them.

    Raises OverloadedError or TooManyRequestsError if the queue is full, ModelFailedError if the model fails, and
    ClientDisconnect.
    """
    pending.limits = caller_of(request.scope).limits
    try:
        app_state.batch_sender.submit(pending)
    except QueueFullError as error:
        if error.own:
            raise quota_exceeded(error.limit, str(error), 2) from error
        detail = f"{error}; try again when some of them have ended"
        raise OverloadedError(detail, headers={"Retry-After": "2"}, limit=error.limit) from error
    try:
        return await _wait_for_result(app_state, request, pending, prefer.wait_s)
    except TimeoutError:
        try:
            async with app_state.quotas.job(caller_of(request.scope)):
                job = await app_state.job_service.adopt(
                    inference_request, pending, owner_of(request), request_id_of(request)
                )
        except BaseException:
            app_state.batch_sender.drop(pending)
            raise
        return accepted(job, prefer)
    except FailedError as error:
        raise failed(error.problem) from error
    except (asyncio.CancelledError, ClientDisconnect):
        app_state.batch_sender.drop(pending)
        raise


async def _wait_for_result(app_state: AppState, request: Request, pending: PendingRequest, wait_s: float) -> Fields:
    """Return the result of a pending request; every second, look whether the client is still there.

    Raises FailedError, ClientDisconnect, and TimeoutError when the time is over.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while (left_s := until - loop.time()) > WAIT_S:
        try:
            return await app_state.batch_sender.wait(pending)
        except StillWaitingError:
            if await request.is_disconnected():
                raise ClientDisconnect from None
    done, _ = await asyncio.wait((pending.result,), timeout=left_s)
    if not done:
        raise TimeoutError
    return pending.result.result()


async def _respond_once(
    app_state: AppState, request: Request, inference_request: InferenceRequest, media: str, prefer: Prefer, raw: str
) -> Response:
    """Return the response of the first request with this Idempotency-Key."""
    job = await insert_job_once(app_state, request, inference_request, prefer, raw)
    if job.status not in TERMINAL:
        return accepted(job, prefer)
    headers = {**applied(prefer), "Content-Location": f"/v1/jobs/{job.id}/result", "Vary": "Accept, Prefer"}
    return await whole_result_response(app_state, job, media, headers)


async def insert_job_once(
    app_state: AppState, request: Request, inference_request: InferenceRequest, prefer: Prefer, header: str
) -> Job:
    """Return the one job of all requests with this Idempotency-Key, waited for as preferred."""
    match = _KEY.fullmatch(header.strip())
    if match is None:
        raise MalformedError("Idempotency-Key must be 1 to 255 printable ASCII characters, quoted or bare")
    if app_state.job_service.full:
        raise overloaded("too many unfinished jobs")
    owner = owner_of(request)
    route = f"POST /v1/{inference_request.operation.path}"
    async with app_state.quotas.job(caller_of(request.scope)):
        insertion = await app_state.job_service.create_once(
            inference_request, owner, request_id_of(request), route, match.group(1)
        )
    if insertion.fingerprint != inference_request.fingerprint:
        raise InvalidError(
            f"Idempotency-Key {match.group(1)!r} was used with another body; send the same body or another key",
            job_id=insertion.job_id,
        )
    job = await app_state.job_service.wait(insertion.job_id, owner, prefer.wait_s)
    if job is None:
        raise GoneError("the job of this Idempotency-Key was deleted; use another key")
    return job
