"""Adds the routes of operations, such as `POST /v1/samples`.

These routes are the hot path of the service: a small request spends more time here than in the
model.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from api.access import quota_exceeded
from api.batching.batch_sender import FailedError
from api.batching.requests import WAIT_S, PendingRequest, StillWaitingError
from api.batching.scheduler import QueueFullError
from api.dependencies import check_query_names
from api.errors import GoneError, InvalidError, ModelFailedError, NotFoundError, OverloadedError
from api.prefer import Prefer
from api.request_content import Content
from api.requests import (
    InferenceRequest,
    first_headers,
    idempotency_key,
    inference_request_of,
    read_request,
    validate_fields,
)
from api.responses.job_results import accepted, whole_result_response
from api.responses.render import JSON, ResultMetadata, negotiate, render, with_acceptance_rate, write
from api.row_files import ROW_FILE_BYTES, array_bytes
from api.schemas.operations import OperationFields
from api.state import AppState
from core.broker.codec import Fields
from core.catalog.operations import OPERATIONS, Operation
from core.jobs.records import Job

PNG_BY_WORKER = 256  # with more images, a thread of the API encodes the PNGs of a JSON response, not the worker

_DISCONNECT_POLL_S = 1.0  # interval at which a request that waits for a job checks its connection

RouteFunction = Callable[[Request], Awaitable[Response]]


class PlainRoute(APIRoute):
    """A route whose function takes a request and returns a response, without dependency injection.

    FastAPI's dependency injection would take a third of the time that a small request needs until
    it is queued.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the query parameters of a request, and call the route's function.

        Raises InvalidError if a JSON request has query parameters; requests with another body may
        have its fields in the query. A request with a method that is not the route's is passed to
        FastAPI, which rejects it.
        """
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        if scope["query_string"] and request.headers.get("content-type", "").startswith("application/json"):
            check_query_names(request.query_params)  # the fields of a picture or a form may be in the query
        response = await self.endpoint(request)
        await response(scope, receive, send)


def add_plain_route(app: FastAPI, operation: Operation, function: RouteFunction) -> None:
    """Add the route of an operation to the application."""
    app.router.add_api_route(
        f"/v1/{operation.path}",
        function,
        methods=["POST"],
        summary=operation.summary,
        operation_id=f"create_{operation.path}",
        tags=["operations"],
        response_class=Response,
        route_class_override=PlainRoute,
    )


def add_operations(app: FastAPI, state: AppState) -> None:
    """Add the routes of all operations except upscales, which have their own module."""
    for operation in OPERATIONS:
        if not operation.tiled:
            state.inputs.builders[operation.method] = partial(_build_request, state, operation)
            add_plain_route(app, operation, _operation_route(state, operation))


async def _build_request(state: AppState, operation: Operation, job: Job, content: Content) -> InferenceRequest:
    """Return the complete request of a job whose images have been fetched.

    Raises NotFoundError if its model was deleted, and InvalidError if an image cannot be used.
    """
    entry = state.registry.find(f"{job.model}@{job.version}")
    if entry is None:
        raise NotFoundError(f"the model {job.model}@{job.version} was deleted before the images were fetched")

    def build() -> InferenceRequest:
        fields = validate_fields(OperationFields, content.fields)
        return inference_request_of(content, fields, operation, entry, state.settings)

    return await asyncio.to_thread(build)


def _operation_route(state: AppState, operation: Operation) -> RouteFunction:
    """Return the function of the route of an operation.

    The function responds with the result, or with 202 and a job: at once if the request has
    `Prefer: respond-async`, otherwise if there is no result after the time-out.
    """
    without_preference = Prefer.read("", state.settings)

    async def route(request: Request) -> Response:
        headers = first_headers(request)
        media = negotiate(headers.get(b"accept", b"").decode("latin-1"), operation)
        inference_request = await read_request(request, operation, state.models(request), state.settings)
        prefer = Prefer.of(request, state.settings) if b"prefer" in headers else without_preference
        key = headers.get(b"idempotency-key")
        if inference_request.always_job:
            return await _respond_by_job(state, request, inference_request, media, key)
        if key is not None:
            return await _respond_once(state, inference_request, media, prefer, key.decode("latin-1"))
        if prefer.wait_s <= 0:
            return accepted(await create_job(state, inference_request), prefer)
        return await _respond_sync(state, request, inference_request, media, prefer)

    return route


async def create_job(state: AppState, inference_request: InferenceRequest) -> Job:
    """Insert a queued job for a request and return it.

    Raises OverloadedError if the service has too many unfinished jobs, TooManyRequestsError if the
    caller has, and FullError if the disk is full.
    """
    state.job_service.check_room()
    async with state.quotas.job(inference_request.caller):
        job = await state.job_service.create(inference_request)
    if inference_request.input_urls:
        state.inputs.wake()
    return job


async def _respond_by_job(
    state: AppState, request: Request, inference_request: InferenceRequest, media: str, key: bytes | None
) -> Response:
    """Create the job of a request with a webhook or URLs; return the result if it ends in time.

    Otherwise returns 202 with the job. `key` is the value of the Idempotency-Key header; None
    without the header. `media` is the media type of the result.
    """
    prefer = await check_outbound(state, request, inference_request)
    if key is not None:
        return await _respond_once(state, inference_request, media, prefer, key.decode("latin-1"))
    job = await create_job(state, inference_request)
    return await _job_response(state, await wait_for_job(state, request, job, prefer.wait_s), media, prefer)


async def check_outbound(state: AppState, request: Request, inference_request: InferenceRequest) -> Prefer:
    """Check the webhook and the URLs of a request; return how long its client waits for a result.

    The hosts of the URLs are looked up. Without a `Prefer` header, a request with a webhook does
    not wait, and any other waits for the usual time. Raises InvalidError if the webhook or a host
    cannot be used.
    """
    body = inference_request.webhook_body
    inference_request.webhook = await state.webhooks.check(body, inference_request.caller)
    await state.inputs.check(inference_request.input_urls)
    return Prefer.of(request, state.settings, None if body is None else 0.0)


async def wait_for_job(state: AppState, request: Request, job: Job, wait_s: float) -> Job:
    """Wait until a job has ended, at most `wait_s` seconds, and return it, ended or not.

    If the client disconnects, a job without a webhook is cancelled, because the client does not
    know its id. Raises NotFoundError if the job is deleted meanwhile.
    """
    deadline = time.monotonic() + wait_s
    current: Job | None = job
    try:
        while current is not None and not current.ended:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            current = await state.job_service.wait(job.id, job.owner, min(left_s, _DISCONNECT_POLL_S))
            if job.webhook is None and await request.is_disconnected():
                await state.job_service.cancel(job.id)
                break
    except asyncio.CancelledError:
        if job.webhook is None:
            await asyncio.shield(state.job_service.cancel(job.id))
        raise
    if current is None:
        raise NotFoundError("the job was deleted before it had ended")
    return current


async def _respond_sync(
    state: AppState, request: Request, inference_request: InferenceRequest, media: str, prefer: Prefer
) -> Response:
    """Return the result of a request in the media type `media`, if it is computed in time.

    Otherwise returns 202 with a job that continues the work.
    """
    png = media == JSON and inference_request.operation.pictures and inference_request.rows <= PNG_BY_WORKER
    fields = await compute_or_accept(state, request, inference_request, prefer, png=png)
    if isinstance(fields, Response):
        return fields
    fields = with_acceptance_rate(fields)
    entry, columns = inference_request.entry, inference_request.operation.columns(inference_request.rows_per_image)
    metadata = ResultMetadata(entry.name, entry.version, inference_request.seed, inference_request.conversions, columns)
    metadata.device_kind, metadata.restarts = inference_request.device_kind, inference_request.restarts
    headers = {**metadata.headers(fields), **prefer.headers, "Vary": "Accept, Prefer"}
    if array_bytes(fields) > ROW_FILE_BYTES:
        return await state.responses.written(
            partial(write, fields=fields, metadata=metadata, media=media), headers, media
        )
    if inference_request.rows > PNG_BY_WORKER:
        body = await asyncio.to_thread(render, fields, metadata, media)
    else:
        body = render(fields, metadata, media)
    return state.responses.of_body(body, 200, headers, media)


async def compute_or_accept(
    state: AppState, request: Request, inference_request: InferenceRequest, prefer: Prefer, *, png: bool = False
) -> Fields | Response:
    """Return the result of a request, if it is computed in time; `prefer` has the time-out.

    Otherwise returns 202 with a job that continues the work. With `png`, workers return images as
    PNG files, not as pixels. Raises OverloadedError or TooManyRequestsError if the queue is full or
    there are too many jobs, and ModelFailedError if the model fails. If the client disconnects, the
    request is cancelled and ClientDisconnect raised.
    """
    pending = inference_request.pending(png=png)
    try:
        state.batch_sender.submit(pending)
    except QueueFullError as error:
        if error.own:
            raise quota_exceeded(error.limit, str(error), 2) from error
        detail = f"{error}; try again when some of them have ended"
        raise OverloadedError(detail, retry_after_s=2, limit=error.limit) from error
    try:
        fields = await _wait_for_result(state, request, pending, prefer.wait_s)
    except TimeoutError:
        try:
            async with state.quotas.job(inference_request.caller):
                job = await state.job_service.adopt(inference_request, pending)
        except BaseException:
            state.batch_sender.drop(pending)
            raise
        return accepted(job, prefer)
    except FailedError as error:
        raise ModelFailedError.of(error.problem) from error
    except (asyncio.CancelledError, ClientDisconnect):
        state.batch_sender.drop(pending)
        raise
    inference_request.device_kind, inference_request.restarts = pending.device_kind, pending.restarts
    return fields


async def _wait_for_result(state: AppState, request: Request, pending: PendingRequest, wait_s: float) -> Fields:
    """Wait for the result of a pending request; check every second that the client is connected.

    Raises FailedError if the model or its worker failed, ClientDisconnect if the client has
    disconnected, and TimeoutError after `wait_s` seconds.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while (left_s := until - loop.time()) > WAIT_S:
        try:
            return await state.batch_sender.wait(pending)
        except StillWaitingError:
            if await request.is_disconnected():
                raise ClientDisconnect from None
    done, _ = await asyncio.wait((pending.result,), timeout=left_s)
    if not done:
        raise TimeoutError
    return pending.result.result()


async def _respond_once(
    state: AppState, inference_request: InferenceRequest, media: str, prefer: Prefer, header: str
) -> Response:
    """Return the result of the job that has this Idempotency-Key; create the job if there is none.

    `header` is the value of the Idempotency-Key header. If the job does not end in time, returns
    202 with the job. `media` is the media type of the result.
    """
    return await _job_response(state, await insert_job_once(state, inference_request, prefer, header), media, prefer)


async def _job_response(state: AppState, job: Job, media: str, prefer: Prefer) -> Response:
    """Return the result of an ended job in the media type `media`; otherwise 202 with the job.

    Raises ModelFailedError, ConflictError or GoneError if the job has ended without a result.
    """
    if not job.ended:
        return accepted(job, prefer)
    headers = {**prefer.headers, "Content-Location": f"/v1/jobs/{job.id}/result", "Vary": "Accept, Prefer"}
    return await whole_result_response(state, job, media, headers)


async def insert_job_once(state: AppState, inference_request: InferenceRequest, prefer: Prefer, header: str) -> Job:
    """Insert a job, or find the job that has this Idempotency-Key; return it when it has ended.

    `header` is the value of the Idempotency-Key header. If the job has not ended after
    `prefer.wait_s` seconds, it is returned as it is. Raises InvalidError if the key was used with
    another body, GoneError if its job was deleted, and OverloadedError or TooManyRequestsError if
    there are too many jobs.
    """
    key = idempotency_key(header)
    state.job_service.check_room()
    route = f"POST /v1/{inference_request.operation.path}"
    async with state.quotas.job(inference_request.caller):
        insertion = await state.job_service.create_once(inference_request, route, key)
    if inference_request.input_urls:
        state.inputs.wake()
    if insertion.fingerprint != inference_request.content.fingerprint:
        detail = f"Idempotency-Key {key!r} was used with another body; send the same body or another key"
        raise InvalidError(detail, job_id=insertion.job_id)
    job = await state.job_service.wait(insertion.job_id, inference_request.caller.name, prefer.wait_s)
    if job is None:
        raise GoneError("the job of this Idempotency-Key was deleted; use another key")
    return job
