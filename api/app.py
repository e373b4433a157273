"""The application factory: settings in, ASGI application out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.middleware.cors import CORSMiddleware

from api import openapi
from api.exception_handlers import EXCEPTION_HANDLERS
from api.exposure import allowed_origins
from api.middleware import RequestMiddleware
from api.routes import datasets, docs, families, health, jobs, me, models, trainings, versions
from api.routes.operations import add_operations
from api.routes.upscales import add_upscales
from api.state import AppState, create_state
from api.versions import prune_versions
from core.log import set_up
from core.settings import Settings
from core.settings import settings as settings_of_environment

CORS_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"),
    *("Last-Event-ID", "Prefer", "Range", "X-Request-ID"),
)
CORS_RESPONSE_HEADERS = (
    *("Content-Location", "ETag", "Location", "Preference-Applied", "Retry-After"),
    *("Reverie-Model", "Reverie-Seed", "X-Request-ID"),
)
ROUTERS: tuple[APIRouter, ...] = tuple(
    module.router for module in (models, versions, jobs, trainings, families, datasets, me, health, docs)
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application with these settings, or with those of the environment."""
    settings = settings or settings_of_environment()
    set_up(settings.log_level, "api")
    state = create_state(settings)
    app = FastAPI(
        title="Reverie",
        version="0.1.0",
        description="Trained generative models over HTTP: samples, encodings, energies, likelihoods.",
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=EXCEPTION_HANDLERS,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.services = state
    app.state.draining = False
    app.add_middleware(RequestMiddleware, settings=settings)
    _add_cors(app, settings)
    add_operations(app, state)
    add_upscales(app, state)
    for router in ROUTERS:
        app.include_router(router)
    docs.mount_static_files(app)
    _describe(app, keys=settings.api_keys is not None)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the services while the application serves."""
    state: AppState = app.state.services
    await state.batch_sender.start()
    await state.job_service.start()
    tasks = [asyncio.create_task(prune_versions(state))]
    if state.settings.api_keys is not None:
        tasks += [asyncio.create_task(state.permissions.watch()), asyncio.create_task(state.quotas.watch())]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await state.job_service.stop()
    await state.batch_sender.stop()


def _add_cors(app: FastAPI, settings: Settings) -> None:
    """Let pages of the allowed origins call the service; their preflights carry no key and end here."""
    origins = allowed_origins(settings)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )


def _describe(app: FastAPI, *, keys: bool) -> None:
    """Complete FastAPI's description of the application when it is first asked for."""
    generate = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            openapi.complete(generate(), keys=keys)
        return app.openapi_schema or {}

    app.openapi = described  # type: ignore[method-assign]
