"""The application factory: creates the FastAPI application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI

from api import openapi
from api.auth import VISITOR
from api.cors import CORS_REQUEST_HEADERS, CORS_RESPONSE_HEADERS, ProblemCORSMiddleware
from api.dependencies import check_query
from api.errors import EXCEPTION_HANDLERS
from api.exposure import allowed_origins
from api.middleware import RequestMiddleware
from api.operation_docs import OperationDocs
from api.routes import dataset_images, datasets, deliveries, docs, health, jobs, me, models, trainings, versions
from api.routes import openai as openai_routes
from api.routes.operations import add_operations
from api.routes.studio import add_studio
from api.routes.upscales import add_upscales
from api.state import AppState
from api.versions import prune_versions
from core import tracing
from core.log import set_up
from core.settings import Settings
from core.settings import settings as settings_of_environment


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the application with all its routes; its services start when it is served.

    If `settings` is None, they are read from the environment.
    """
    settings = settings or settings_of_environment()
    set_up(settings.log_level, "api")
    tracing.set_up(settings, "api")
    state = AppState(settings)
    app = FastAPI(
        title="Reverie",
        version="0.1.0",
        description="Trained generative models over HTTP: samples, encodings, energies, likelihoods.",
        license_info={"name": "MIT", "identifier": "MIT"},
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
    if origins := allowed_origins(settings):
        # the CORS middleware responds to preflight requests itself, because they have no API key
        app.add_middleware(
            ProblemCORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_RESPONSE_HEADERS,
        )
    add_operations(app, state)
    add_upscales(app, state)
    checked = (models.router, versions.router, jobs.router, deliveries.router, trainings.router, me.router)
    for router in (*checked, trainings.families_router, datasets.router, dataset_images.router, openai_routes.router):
        app.include_router(router, dependencies=[Depends(check_query)])
    for router in (health.router, docs.router):
        app.include_router(router)
    docs.mount_static_files(app)
    add_studio(app)
    _describe(app, state)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the services when the application starts, and stop them when it shuts down."""
    state: AppState = app.state.services
    await state.batch_sender.start()
    await state.job_service.start()
    loops = (prune_versions(state), state.webhooks.run(), state.inputs.run())
    tasks = [asyncio.create_task(loop) for loop in loops]
    if state.settings.api_keys is not None:
        tasks += [asyncio.create_task(state.permissions.watch()), asyncio.create_task(state.quotas.watch())]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await state.job_service.stop()
    await state.batch_sender.stop()


def _describe(app: FastAPI, state: AppState) -> None:
    """Make `app.openapi` return FastAPI's description, completed with what the active models can
    do.

    The description is cached until a model's active version changes.
    """
    generate = app.openapi
    described_refs: list[str] | None = None
    schema: dict[str, Any] = {}

    def describe() -> dict[str, Any]:
        nonlocal described_refs, schema
        models = state.permissions.models(VISITOR)
        refs = [entry.ref for entry in models.active()]
        if described_refs != refs:
            app.openapi_schema = None
            schema = generate()
            docs = OperationDocs(models, state.settings)
            docs.describe(schema["paths"])
            openapi.complete(schema, docs.schemas, keys=state.settings.api_keys is not None)
            described_refs = refs
        return schema

    app.openapi = describe  # type: ignore[method-assign]
