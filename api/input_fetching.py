"""Fetches the images that requests name by URL, in the background, for jobs of the job store.

A request with URLs becomes a job that stores the body of the request. An API process claims the job
under a lease, downloads the images, validates the request with them, and queues the job for the
workers. If the process dies, another one claims the job and downloads the images again.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from operator import methodcaller
from pathlib import Path
from typing import IO
from uuid import uuid4

import httpcore
import httpx
import sqlalchemy as sa

from api.errors import FullError, InvalidError, OverloadedError, ProblemError, database_error, problem, storage_error
from api.jobs import JobService
from api.request_content import Content
from api.requests import InferenceRequest
from api.stored_content import restore_content
from core.blobs import Blobs
from core.jobs.records import API_HOLDER_PREFIX, Event, Job
from core.jobs.store import JobStore
from core.outbound.addresses import AddressPolicy, BlockedAddressError, Resolver, check_host, parse_url, resolve
from core.outbound.download import DownloadError, download
from core.outbound.network_backend import guarded_pool
from core.settings import Settings
from core.storage import DATABASE_UNAVAILABLE, ObjectStoreError, lacks_space

log = logging.getLogger(__name__)

# Validates the stored body of a job together with the images, and returns the complete request.
Builder = Callable[[Job, Content], Awaitable[InferenceRequest]]

MAX_FETCHES = 32
MAX_PER_OWNER = 4
POLL_S = 1.0

_CHECK_S = 2.0
_PROGRESS_S = 1.0  # interval of progress events
_CHECKED_HOSTS = 16


class _ClaimLostError(Exception):
    """Raised during downloads if the job was cancelled or claimed by another process."""


class InputFetcher:
    """Downloads the images that jobs name by URL, and queues these jobs, in one API process.

    `builders` has a function for each job method, keyed by the method. The function returns the
    complete request of a job, made from the stored body and the downloaded files.
    """

    def __init__(
        self, settings: Settings, job_service: JobService, blobs: Blobs, folder: Path, resolver: Resolver = resolve
    ) -> None:
        """Store the services; nothing is downloaded before `run` is called.

        Downloads are written to unnamed files in `folder`. `resolver` looks up the addresses of
        hosts.
        """
        self._settings = settings
        self._jobs = job_service
        self._blobs = blobs
        self._folder = folder
        self._policy = AddressPolicy.of(settings.allowed_networks)
        self._resolver = resolver
        self._pool: httpcore.AsyncConnectionPool | None = None
        self._holder = f"{API_HOLDER_PREFIX}{uuid4().hex[:12]}"
        self._running: dict[asyncio.Task[None], Job] = {}
        self._decoding = asyncio.Semaphore(1)  # so that the images of one job at a time are in memory
        self._wakeup = asyncio.Event()
        self.builders: dict[str, Builder] = {}

    async def check(self, urls: Mapping[str, Sequence[str]]) -> None:
        """Check the hosts of a request's URLs, keyed by field, before its job is created.

        Raises InvalidError if a host does not exist or is not a public address.
        """
        hosts = {httpx.URL(url).host: (field, url) for field, several in urls.items() for url in several}
        checks = list(hosts.values())[:_CHECKED_HOSTS]
        await asyncio.gather(*(self._check(field, url) for field, url in checks))

    async def _check(self, field: str, url: str) -> None:
        """Raise InvalidError if the host of a URL does not exist or is not a public address."""
        try:
            await check_host(httpx.URL(url), self._policy, _CHECK_S, self._resolver)
        except (ValueError, BlockedAddressError) as error:
            raise InvalidError.in_field(field, str(error)) from error

    def wake(self) -> None:
        """Look at once for a job with images to download, without waiting for the next poll."""
        self._wakeup.set()

    async def run(self) -> None:
        """Download the images of jobs until cancelled.

        When cancelled, gives up the leases of unfinished jobs, so that another process can claim
        these jobs.
        """
        renewal = asyncio.create_task(self._renew_leases())
        try:
            while True:
                self._wakeup.clear()
                if not await self._start_next():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._wakeup.wait()
        finally:
            for task in (renewal, *self._running):
                task.cancel()
            await asyncio.gather(renewal, *self._running, return_exceptions=True)
            with contextlib.suppress(Exception):
                await self._jobs.write(lambda job_store: job_store.release(self._holder, "its process stopped"))
            if self._pool is not None:
                await self._pool.aclose()

    async def _start_next(self) -> bool:
        """Claim a job with images to download, and start to download them in a task.

        Returns True if a job was claimed, and False if there is none, if as many jobs as allowed
        are being processed, or if the job store fails.
        """
        if len(self._running) >= MAX_FETCHES:
            return False
        owners = Counter(job.owner for job in self._running.values())
        full = [owner for owner, number in owners.items() if owner and number >= MAX_PER_OWNER]
        lease_s = self._settings.job_lease_s
        try:
            job = await self._jobs.write(lambda job_store: job_store.claim_inputs(self._holder, lease_s, full))
        except sa.exc.SQLAlchemyError as error:
            log.warning("inputs not claimed", extra={"reason": str(getattr(error, "orig", error))})
            return False
        except Exception:
            log.exception("claiming inputs")
            return False
        if job is None:
            return False
        task = asyncio.create_task(self._fetch(job))
        self._running[task] = job
        task.add_done_callback(self._finished)
        return True

    def _finished(self, task: asyncio.Task[None]) -> None:
        """Remove a job's task, which has ended, from the running tasks; look for the next job."""
        self._running.pop(task, None)
        self.wake()

    async def _renew_leases(self) -> None:
        """Renew the leases of the jobs that are being fetched periodically, until cancelled.

        The lease of a job that was claimed without the knowledge of this process, because the
        connection broke before the database's reply, expires.
        """
        lease_s = self._settings.job_lease_s
        while True:
            await asyncio.sleep(min(1.0, lease_s / 3))
            if job_ids := [job.id for job in self._running.values()]:
                try:
                    await self._jobs.write(methodcaller("renew_leases", self._holder, lease_s, job_ids))
                except Exception:
                    log.exception("renewing leases")

    async def _fetch(self, job: Job) -> None:
        """Fetch the inputs of a claimed job, and queue it for the workers.

        If that is not possible, the job ends as failed; if only a disk, the blob store or the
        database cannot be used now, the job is requeued, to be claimed again later.
        """
        try:
            inference_request = await self._build(job)
            await self._jobs.set_inputs(job, inference_request)
        except _ClaimLostError:
            log.info("claim lost", extra={"job": job.id})
        except (FullError, OverloadedError) as error:
            await self._end(job, error, self._settings.storage_wait_s)
        except ObjectStoreError as error:
            await self._end(job, storage_error(error), self._settings.storage_wait_s)
        except DATABASE_UNAVAILABLE as error:
            log.warning("inputs not stored", extra={"job": job.id, "reason": str(getattr(error, "orig", error))})
            await self._end(job, database_error(error), self._settings.storage_wait_s)
        except ProblemError as error:
            await self._end(job, error)
        except Exception as error:
            log.exception("inputs not fetched", extra={"job": job.id})
            await self._end(job, ProblemError(f"an internal error: {type(error).__name__}"))
        self._jobs.notify(job.id)

    async def _end(self, job: Job, error: ProblemError, wait_s: float = 0.0) -> None:
        """End a claimed job as failed with `error` or, if `wait_s` is above 0, requeue it.

        A requeued job is claimed again after a delay. If it is requeued again and again, it fails
        with `error` when `wait_s` seconds have passed since the first time.
        """
        reported = problem(error.status, error.title, error.detail, error.type, **error.more)

        def end(job_store: JobStore) -> None:
            if wait_s:
                job_store.defer(job.claim, reported, wait_s)
            else:
                job_store.finish(job.claim, problem=reported)

        while True:
            try:
                await self._jobs.write(end)
            except DATABASE_UNAVAILABLE:
                await asyncio.sleep(POLL_S)
            else:
                return

    async def _build(self, job: Job) -> InferenceRequest:
        """Download the images of a job and return the complete request.

        Raises a ProblemError if an image cannot be fetched or used.
        """
        urls: dict[str, list[str]] = job.input_urls or {}
        with ExitStack() as stack:
            files: dict[str, list[IO[bytes]]] = {field: [] for field in urls}
            try:
                async with asyncio.timeout(self._settings.fetch_timeout_s):
                    await self._download(job, urls, files, stack)
            except TimeoutError as error:
                limit_s = self._settings.fetch_timeout_s
                raise InvalidError(
                    f"the images were not fetched after {limit_s:g} s; send the files instead"
                ) from error
            except OSError as error:
                raise _disk_error(error) from error
            async with self._decoding:
                content = await asyncio.to_thread(self._content, job, files)
                return await self.builders[job.method](job, content)

    async def _download(
        self, job: Job, urls: Mapping[str, list[str]], files: dict[str, list[IO[bytes]]], stack: ExitStack
    ) -> None:
        """Download all images of a job, one after the other, to temporary files.

        The files are appended to `files`, keyed by field as `urls` is; `stack` closes them. Raises
        InvalidError if an image cannot be downloaded.
        """
        if self._pool is None:
            self._pool = guarded_pool(self._policy, self._resolver)
        self._folder.mkdir(parents=True, exist_ok=True)
        progress = _Progress(self._jobs, job, sum(map(len, urls.values())))
        room = self._settings.max_body_bytes
        for field, several in urls.items():
            for url in several:
                file = stack.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115 - the stack does
                files[field].append(file)
                await progress.start_file(url)
                try:
                    size = await download(
                        self._pool, parse_url(url), file, room, self._settings.fetch_timeout_s, progress.report
                    )
                except DownloadError as error:
                    raise InvalidError.in_field(field, str(error)) from error
                room -= size

    def _content(self, job: Job, files: Mapping[str, list[IO[bytes]]]) -> Content:
        """Return the stored body of a job with the downloaded files in place of the URLs."""
        packed = job.items if job.items_blob is None else self._blobs.get(job.items_blob)
        downloads: dict[str, list[bytes]] = {}
        for field, several in files.items():
            for file in several:
                file.seek(0)
                downloads.setdefault(field, []).append(file.read())
        return restore_content(packed or b"", downloads)


class _Progress:
    """Writes messages about a job's downloads to the job's events, at most one a second."""

    def __init__(self, jobs: JobService, job: Job, count: int) -> None:
        self._jobs, self._job, self._count = jobs, job, count
        self._number = 0
        self._written_at = 0.0

    async def start_file(self, url: str) -> None:
        """Count the file at `url`, whose download starts now, and write a message about it."""
        self._number += 1
        self._host = httpx.URL(url).host
        await self.report(0, None)

    async def report(self, received: int, total: int | None) -> None:
        """Write a message with the number of received bytes of the current file.

        `total` is the size of the file in bytes; None if it is unknown. Writes nothing within a
        second of the last message, nor while the database cannot be used. Raises _ClaimLostError if
        the job was cancelled or claimed by another process.
        """
        if time.monotonic() - self._written_at < _PROGRESS_S:
            return
        self._written_at = time.monotonic()
        text = f"fetching image {self._number} of {self._count} from {self._host}"
        data = {"level": "info", "message": text, "bytes": received, "total_bytes": total}
        event = Event("message", data)
        try:
            held = await self._jobs.write(lambda job_store: job_store.append_events(self._job.claim, [event], 0.0))
        except DATABASE_UNAVAILABLE as error:
            reason = str(getattr(error, "orig", error))
            log.warning("progress not written", extra={"job": self._job.id, "reason": reason})
            return
        if not held:
            raise _ClaimLostError
        self._jobs.notify(self._job.id)


def _disk_error(error: OSError) -> ProblemError:
    """Return the error for downloaded images that cannot be written to the disk."""
    if lacks_space(error):
        return FullError("the disk has no room for the images; try again later, or send smaller ones")
    return storage_error(error)
