"""The application: settings in, ASGI out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy.exc
import swagger_ui_bundle
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from api import openapi
from api.auth import VISITOR
from api.batching.batch_sender import BatchSender
from api.errors import (
    FullError,
    OverloadedError,
    ProblemError,
    field_errors,
    handle_http,
    handle_problem,
    problem,
    request_id_of,
    respond,
    storage_error,
)
from api.exposure import allowed_origins
from api.html_headers import policy_of
from api.job_events import StreamLimit
from api.jobs import JobService
from api.metrics import exposition
from api.middleware import RequestMiddleware
from api.permissions import Permissions
from api.quotas import Quotas
from api.responses.large_responses import ResponseMemory
from api.responses.result_files import ResultFiles
from api.responses.upscaled import UpscaleService
from api.routes.datasets import add_datasets
from api.routes.me import add_me
from api.routes.operations import AppState, add_routes
from api.routes.removal import add_removal, prune
from api.routes.trainings import add_trainings
from api.routes.upscales import add_upscales
from api.routes.versions import add_versions
from core.blobs import Blobs
from core.catalog.recipes import StatePaths
from core.catalog.registry import Registry
from core.datasets.store import Datasets
from core.jobs.store import JobStore
from core.log import set_up
from core.resources import ResourceStore
from core.settings import Settings, settings
from core.storage import lacks_space, reason_of

log = logging.getLogger(__name__)

CORS_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"),
    *("Last-Event-ID", "Prefer", "Range", "X-Request-ID"),
)
CORS_RESPONSE_HEADERS = (
    *("Content-Location", "ETag", "Location", "Preference-Applied", "Retry-After"),
    *("Reverie-Model", "Reverie-Seed", "X-Request-ID"),
)


async def _handle_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class alone
    wrong = field_errors(error.errors())
    detail = "; ".join(f"{one['field']}: {one['detail']}" for one in wrong)
    return respond(request_id_of(request), problem(422, "Invalid request", detail, errors=wrong))


async def _handle_ledger(request: Request, error: Exception) -> Response:
    if lacks_space(error):
        log.error("database full", extra={"request_id": request_id_of(request), "reason": reason_of(error)})
        full = FullError(
            f"the job database has no room ({reason_of(error)}); delete ended jobs, or try again later",
            headers={"Retry-After": "30"},
        )
        return full.response(request_id_of(request))
    log.error("ledger not to be had", exc_info=error, extra={"request_id": request_id_of(request)})
    said = OverloadedError("the ledger of jobs cannot be used now; try again later", headers={"Retry-After": "5"})
    return said.response(request_id_of(request))


async def _handle_os_error(request: Request, error: Exception) -> Response:
    """Answer a full disk wherever it was met; any other fault of the system is a fault of the service."""
    if not isinstance(error, OSError) or not lacks_space(error):
        raise error
    log.error("disk full", extra={"request_id": request_id_of(request), "reason": reason_of(error)})
    return storage_error(error).response(request_id_of(request))


def create_app(chosen: Settings | None = None) -> FastAPI:
    """The application with these settings, or with those of the environment."""
    chosen = chosen or settings()
    set_up(chosen.log_level, "api")
    blobs = Blobs(chosen.blobs)
    batch_sender = BatchSender(chosen, blobs)
    job_store = JobStore(chosen.database)
    job_service = JobService(chosen, job_store, blobs, batch_sender)
    upscales = UpscaleService(chosen.state / "unfinished", blobs, job_service.pieces)
    registry = Registry(chosen.checkpoints, StatePaths(chosen.state).checkpoints)
    datasets = Datasets(chosen.state / "datasets")
    permissions = Permissions(ResourceStore(job_store.engine), registry, datasets, job_service.works_on)
    quotas = Quotas(chosen, job_store.engine, blobs, permissions)
    unfinished = chosen.state / "unfinished"
    app_state = AppState(
        chosen,
        registry,
        batch_sender,
        job_service,
        upscales,
        permissions,
        quotas,
        StreamLimit(chosen.max_streams),
        ResultFiles(blobs, job_service.exists),
        ResponseMemory(chosen.max_inflight_response_bytes, unfinished),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await batch_sender.start()
        await app_state.job_service.start()
        tasks = [asyncio.create_task(prune(app_state))]
        if chosen.api_keys is not None:
            tasks += [asyncio.create_task(permissions.watch()), asyncio.create_task(quotas.watch())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await app_state.job_service.stop()
        await batch_sender.stop()

    app = FastAPI(
        title="Reverie",
        version="0.1.0",
        description="Trained generative models over HTTP: samples, encodings, energies, likelihoods.",
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            ProblemError: handle_problem,
            RequestValidationError: _handle_validation,
            HTTPException: handle_http,
            sqlalchemy.exc.OperationalError: _handle_ledger,
            OSError: _handle_os_error,
        },
    )
    app.add_middleware(RequestMiddleware, settings=chosen)
    _add_cors(app, chosen)
    add_routes(app, app_state)
    add_upscales(app, app_state)
    add_trainings(app, app_state)
    add_versions(app, app_state)
    add_removal(app, app_state)
    add_datasets(app, chosen, datasets, permissions, quotas)
    add_me(app, app_state)
    app.state.draining = False
    _add_health(app, app_state)
    _add_metrics(app, app_state)
    _add_docs(app, app_state)
    return app


def _add_cors(app: FastAPI, settings: Settings) -> None:
    """Let the pages of other origins call, where there are such; their preflights carry no key and end here."""
    origins = allowed_origins(settings)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )


def _add_health(app: FastAPI, app_state: AppState) -> None:
    state = {"type": "object", "required": ["status"]}

    @app.get(
        "/healthz",
        summary="Whether this process lives",
        tags=["health"],
        response_class=Response,
        responses=openapi.answered(state),
    )
    async def healthz() -> Response:
        return Response(b'{"status":"alive"}', media_type="application/json")

    @app.get(
        "/readyz",
        summary="Whether a request would be answered now",
        tags=["health"],
        response_class=Response,
        responses={
            **openapi.answered(state),
            503: {"description": "Not now", "content": {"application/json": {"schema": state}}},
        },
    )
    async def readyz() -> Response:
        workers = app_state.batch_sender.live_workers()
        ready = [name for name, said in workers.items() if said["state"] == "ready"]
        checks = {"queue": await app_state.batch_sender.ping(), "workers": len(ready), "draining": app.state.draining}
        good = bool(checks["queue"] and ready and not app.state.draining)
        models = sorted(
            ref
            for ref in {ref for name in ready for ref in workers[name]["capacity"]}
            if app_state.permissions.can_use("model", ref.partition("@")[0], VISITOR)
        )
        body = {"status": "ready" if good else "not ready", "models": models, **checks}
        headers = {} if good else {"Retry-After": "1"}
        return Response(orjson.dumps(body), 200 if good else 503, headers, "application/json")


def _add_metrics(app: FastAPI, app_state: AppState) -> None:
    formats = ("text/plain", "application/openmetrics-text")

    @app.get(
        "/metrics",
        summary="Prometheus metrics",
        tags=["health"],
        response_class=Response,
        responses={200: {"description": "A page of metrics", "content": {kind: {} for kind in formats}}},
    )
    async def metrics(request: Request) -> Response:
        queues: dict[Any, int] = {}
        with contextlib.suppress(Exception):  # the queue server is away: the other figures still count
            queues = dict(await app_state.batch_sender.queue_lengths())
        said = {
            "waiting": app_state.batch_sender.waiting,
            "resent": app_state.batch_sender.resent,
            "queues": queues,
            "jobs": app_state.job_service.counts,
            "workers": app_state.batch_sender.live_workers(),
        }
        page, media = exposition(request.headers.get("accept", ""), said)
        return Response(page, headers={"Content-Type": media})


def _add_docs(app: FastAPI, app_state: AppState) -> None:
    folder = Path(swagger_ui_bundle.swagger_ui_path)
    app.mount("/docs/static", StaticFiles(directory=folder), name="docs-static")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        static = "/docs/static"
        page = get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Reverie",
            swagger_js_url=f"{static}/swagger-ui-bundle.js",
            swagger_css_url=f"{static}/swagger-ui.css",
            swagger_favicon_url=f"{static}/favicon-32x32.png",
        )
        page.headers["Content-Security-Policy"] = policy_of(bytes(page.body).decode())
        return page

    made = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            openapi.complete(made(), keys=app_state.settings.api_keys is not None)
        return app.openapi_schema or {}

    app.openapi = described  # type: ignore[method-assign]
