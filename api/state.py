"""Creates the services of one API process, which routes use."""

import asyncio

from starlette.requests import Request

from api.access import caller_of
from api.auth import Keys
from api.batching.batch_sender import BatchSender
from api.input_fetching import InputFetcher
from api.job_events import StreamLimit
from api.jobs import JobService
from api.permissions import Models, Permissions
from api.quotas import Quotas
from api.responses.large_responses import LargeResponses
from api.responses.result_files import ResultFiles
from api.responses.upscaled import UpscaleService
from api.sample_sheets import SampleSheets
from api.webhooks import Webhooks
from core.blobs import open_blobs
from core.catalog.registry import Registry
from core.instance import is_shared
from core.jobs.store import JobStore
from core.resources import ResourceStore
from core.settings import Settings, StatePaths
from core.shared import open_datasets, open_versions
from core.webhooks.deliveries import Deliveries

MAX_CONVERSIONS = 2  # most conversions of datasets at a time; other uploads wait on the disk


class AppState:
    """Holds the services of one API process, such as the job service and the registry of models."""

    def __init__(self, settings: Settings) -> None:
        """Create the services; none of them runs before the application starts."""
        self.settings = settings
        self.paths = StatePaths(settings.state)
        unfinished = self.paths.unfinished
        blobs = open_blobs(settings.blobs)
        job_store = JobStore(settings.database)
        self.batch_sender = BatchSender(settings, blobs)
        self.job_service = JobService(settings, job_store, blobs, self.batch_sender)
        self.blobs = blobs
        self.shared = is_shared(settings)
        self.versions = open_versions(settings, job_store.engine, blobs)
        self.registry = Registry(settings.checkpoints, self.versions)
        self.job_service.version_exists = lambda ref: self.registry.find(ref) is not None
        self.datasets = open_datasets(settings, job_store.engine, blobs)
        self.runs = self.job_service.runs
        self.resources = ResourceStore(job_store.engine)
        self.permissions = Permissions(self.resources, self.registry, self.datasets, self.job_service.may_store)
        self.quotas = Quotas(
            settings, job_store.engine, blobs, self.permissions, self.datasets, self.registry, self.runs
        )
        deliveries = Deliveries(job_store.engine, settings.webhook_retry_s, settings.webhook_retry_period_s)
        self.webhooks = Webhooks(settings, self.job_service, deliveries, Keys(settings.api_keys))
        self.inputs = InputFetcher(settings, self.job_service, blobs, unfinished)
        self.streams = StreamLimit(settings.max_streams)
        self.responses = LargeResponses(settings.max_inflight_response_bytes, unfinished)
        link_s = settings.presigned_url_s
        self.upscales = UpscaleService(unfinished, blobs, self.responses, self.job_service.result_chunks, link_s)
        self.results = ResultFiles(blobs, unfinished, self.responses, self.job_service.exists, link_s)
        self.sheets = SampleSheets(self.batch_sender, settings.max_sync_timeout_s)
        self.conversions = asyncio.Semaphore(MAX_CONVERSIONS)

    def models(self, request: Request) -> Models:
        """Return a view of the models that a request's caller may use."""
        return self.permissions.models(caller_of(request.scope))
