"""The services of one API process, which routes use."""

import asyncio
from dataclasses import dataclass

from starlette.requests import Request

from api.access import caller_of
from api.batching.batch_sender import BatchSender
from api.job_events import StreamLimit
from api.jobs import JobService
from api.permissions import Models, Permissions
from api.quotas import Quotas
from api.responses.large_responses import ResponseMemory
from api.responses.result_files import ResultFiles
from api.responses.upscaled import UpscaleService
from core.blobs import Blobs
from core.catalog.registry import Registry
from core.datasets.store import Datasets
from core.jobs.store import JobStore
from core.paths import StatePaths
from core.resources import ResourceStore
from core.settings import Settings

MAX_CONVERSIONS = 2  # of datasets at a time in one API process; other uploads wait on the disk


@dataclass(frozen=True)
class AppState:
    """The services of one API process."""

    settings: Settings
    registry: Registry
    datasets: Datasets
    batch_sender: BatchSender
    job_service: JobService
    upscales: UpscaleService
    permissions: Permissions
    quotas: Quotas
    streams: StreamLimit
    results: ResultFiles
    responses: ResponseMemory
    conversions: asyncio.Semaphore

    @property
    def paths(self) -> StatePaths:
        """The folders of the state folder."""
        return StatePaths(self.settings.state)

    def models(self, request: Request) -> Models:
        """Return the models that a request's caller may use."""
        return self.permissions.models(caller_of(request.scope))


def create_state(settings: Settings) -> AppState:
    """Create the services. The application's lifespan starts them."""
    paths = StatePaths(settings.state)
    blobs = Blobs(settings.blobs)
    batch_sender = BatchSender(settings, blobs)
    job_store = JobStore(settings.database)
    job_service = JobService(settings, job_store, blobs, batch_sender)
    registry = Registry(settings.checkpoints, paths.checkpoints)
    datasets = Datasets(settings.state / "datasets")
    permissions = Permissions(ResourceStore(job_store.engine), registry, datasets, job_service.has_unfinished)
    unfinished = settings.state / "unfinished"
    return AppState(
        settings=settings,
        registry=registry,
        datasets=datasets,
        batch_sender=batch_sender,
        job_service=job_service,
        upscales=UpscaleService(unfinished, blobs, job_service.result_chunks),
        permissions=permissions,
        quotas=Quotas(settings, job_store.engine, blobs, permissions),
        streams=StreamLimit(settings.max_streams),
        results=ResultFiles(blobs, job_service.exists),
        responses=ResponseMemory(settings.max_inflight_response_bytes, unfinished),
        conversions=asyncio.Semaphore(MAX_CONVERSIONS),
    )
