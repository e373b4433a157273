"""The job service: creates, reads, waits for and ends jobs without blocking the event loop.

This file has more than 400 lines because its methods are the steps of one job.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from operator import methodcaller
from typing import Any, TypeVar

import redis
import redis.asyncio
import sqlalchemy as sa

from api.adopted_jobs import INLINE_BYTES, AdoptedJobs
from api.batching.batch_sender import BatchSender
from api.batching.requests import PendingRequest
from api.batching.scheduler import QueueFullError
from api.errors import OverloadedError, storage_error
from api.job_events import JobEvents, JobUpdates
from api.requests import InferenceRequest
from api.row_files import join_rows
from api.store_threads import StoreThreads
from api.training_workers import TrainingWorkers
from api.wait_estimates import WaitEstimator
from core.blobs import Blobs
from core.broker.codec import Fields, pack, unpack
from core.broker.connection import connect_async, training_queue
from core.broker.keys import preview_key
from core.cleanup import Cleanup
from core.imaging.tiling import photograph_bytes
from core.jobs.leases import LeaseReaper
from core.jobs.records import Event, IdempotencyKey, Insertion, Job, new_id
from core.jobs.store import JobStore
from core.resources import Kind
from core.settings import Settings, StatePaths
from core.shared import open_runs

log = logging.getLogger(__name__)
T = TypeVar("T")

# Jobs that have waited for so long are checked for versions and device kinds that do not exist any
# more.
_WAITED_S = 5.0

_RECHECK_S = 5.0  # interval at which a waiting request reads its job, in case a message is lost


class JobService:
    """Creates, reads, waits for and ends jobs, for the routes of one API process."""

    def __init__(self, settings: Settings, job_store: JobStore, blobs: Blobs, batch_sender: BatchSender) -> None:
        """Create the service; nothing is connected and no loop runs before `start` is called."""
        self._settings = settings
        self._job_store = job_store
        self._blobs = blobs
        self._batch_sender = batch_sender
        self.runs = open_runs(settings, job_store.engine, blobs)
        self._cleanup = Cleanup(settings, job_store, blobs)
        self._reaper = LeaseReaper(job_store, settings.job_lease_s, settings.max_attempts)
        self._threads = StoreThreads()
        self.job_events = JobEvents(self.events, self.exists, self.preview)
        self._updates = JobUpdates(job_store, self._threads, self.job_events)
        self._adopted = AdoptedJobs(settings, job_store, blobs, self._threads, self._updates.notify, batch_sender.drop)
        self.training_workers = TrainingWorkers(training_queue(settings))
        self.wait_estimates = WaitEstimator(
            job_store.engine, self._threads.read, batch_sender.missing_worker, self.training_workers.count
        )
        self._uncommitted: list[tuple[Job, asyncio.Future[None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: dict[str, int] = {}
        """Numbers of queued and of running jobs, keyed by status."""
        self.waiting = 0
        """Number of inference jobs that no worker has claimed within a second."""
        self.version_exists: Callable[[str], bool] = lambda _ref: True
        """Returns whether a version (`name@version`) exists; set by the owner of the registry."""

    async def start(self) -> None:
        """Connect to the queue servers; start the loops that renew leases, poll and clean up."""
        self._redis = connect_async(self._settings)
        self.training_workers.start()
        for loop in (
            self._renew_leases(),
            self._maintain(),
            self._updates.listen(self._redis),
            self._updates.poll(),
            self._clean_up(),
        ):
            self._run(loop)

    async def stop(self) -> None:
        """Stop the loops, requeue adopted jobs for the workers, and close the connections."""
        self.job_events.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._adopted.release()
        self._threads.shutdown()
        await self._redis.aclose()
        await self.training_workers.stop()

    def _run(self, work: Any) -> None:
        """Run the coroutine `work` in a task, to which a reference is kept until the task ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def read(self, function: Callable[[JobStore], T]) -> T:
        """Call `function` with the job store, in a thread for reads; return its result."""
        return await self._threads.read(function, self._job_store)

    async def write(self, function: Callable[[JobStore], T]) -> T:
        """Call `function` with the job store, in the thread for writes; return its result."""
        return await self._threads.write(function, self._job_store)

    # --- creating jobs ---

    def check_room(self) -> None:
        """Raise OverloadedError if there are as many unfinished jobs as the settings allow."""
        if sum(self.counts.values()) >= self._settings.max_queued_jobs:
            raise OverloadedError("too many unfinished jobs; try again in a moment", retry_after_s=2)

    async def create(self, inference_request: InferenceRequest) -> Job:
        """Create a queued job, wake a worker, and return the job when it is committed.

        A large job is spread over the workers at once (see `spread`). Jobs that are created at the
        same time share a transaction. Raises a ProblemError if the inputs or the job cannot be
        stored.
        """
        if (pending := self.spread(inference_request)) is not None:
            with self._dropped_on_error(pending):
                return await self.adopt(inference_request, pending)
        job = await self._new_job(inference_request)
        committed = asyncio.get_running_loop().create_future()
        self._uncommitted.append((job, committed))
        if len(self._uncommitted) == 1:
            self._run(self._commit())
        async with self._keeping_inputs(job):
            await committed
        self._wake(job)
        return job

    async def _commit(self) -> None:
        """Insert the jobs that wait to be committed, in one transaction; repeat until none waits.

        If a transaction fails, its exception is raised in the calls of `create` that wait for it.
        """
        while self._uncommitted:
            batch, self._uncommitted[:] = list(self._uncommitted), []
            try:
                await self._threads.write(self._job_store.insert, *(job for job, _ in batch))
            except Exception as error:  # noqa: BLE001 - raised in each waiting request
                for _, committed in batch:
                    if not committed.done():
                        committed.set_exception(error)
            else:
                for _, committed in batch:
                    self._count("queued")
                    if not committed.done():
                        committed.set_result(None)

    async def create_once(self, inference_request: InferenceRequest, route: str, key: str) -> Insertion:
        """Create a job with an idempotency key, or find the job that has this key.

        `route` is the route of the request, such as `POST /v1/samples`; the same `key` on two
        routes stands for two jobs. Returns an Insertion with the id of the job and the fingerprint
        (SHA-256 of the content) of the request that created it.
        """
        ttl_s = self._settings.idempotency_key_ttl_s
        idempotency_key = IdempotencyKey(route, key, inference_request.content.fingerprint, ttl_s)
        pending = self.spread(inference_request)
        with self._dropped_on_error(pending):
            job = await self._new_job(inference_request, pending)
            if pending is not None:
                job = self._held(job)
            async with self._keeping_inputs(job):
                insertion = await self.write(lambda job_store: job_store.insert(job, idempotency_key=idempotency_key))
        if insertion.job_id == job.id and pending is not None:
            self._complete(job, pending)
            return insertion
        if pending is not None:
            self._batch_sender.drop(pending)
        if insertion.job_id == job.id:
            self._count("queued")
            self._wake(job)
        elif job.items_blob:
            await self._threads.read(self._blobs.delete, f"jobs/{job.id}")
        return insertion

    def spread(self, inference_request: InferenceRequest) -> PendingRequest | None:
        """Queue the rows of a large job for all workers that can run it; return the pending
        request.

        Returns None if a single worker should claim the job: it is small, no other worker can run
        it, it is an upscale, its images are fetched by URL, or it would exceed the limits on
        waiting requests.
        """
        operation, rows = inference_request.operation, inference_request.rows
        if operation.tiled or inference_request.input_urls:
            return None
        ref = inference_request.entry.ref
        if not self._batch_sender.should_spread(ref, operation.method, rows):
            return None
        pending = inference_request.pending()
        try:
            self._batch_sender.submit(pending)
        except (QueueFullError, OverloadedError):
            return None
        inference_request.device_kind = pending.device_kind
        return pending

    @contextlib.contextmanager
    def _dropped_on_error(self, pending: PendingRequest | None) -> Iterator[None]:
        """Cancel a pending request, if there is one, when the block fails."""
        try:
            yield
        except BaseException:
            if pending is not None:
                self._batch_sender.drop(pending)
            raise

    async def adopt(self, inference_request: InferenceRequest, pending: PendingRequest) -> Job:
        """Create a job for a request that is already running; this process holds the job's lease.

        The job is inserted as running, because a worker would compute a queued job a second time.
        """
        inference_request.device_kind = pending.device_kind
        job = self._held(await self._new_job(inference_request, pending))
        async with self._keeping_inputs(job):
            await self._threads.write(self._job_store.insert, job)
        self._complete(job, pending)
        return job

    def _held(self, job: Job) -> Job:
        """Return a copy of a new job with the status "running" and a lease of this process."""
        now = time.time()
        lease = {"lease_holder": self._adopted.holder, "lease_until": now + self._settings.job_lease_s}
        return replace(job, status="running", token=1, started_at=now, **lease)  # type: ignore[arg-type]

    def _complete(self, job: Job, pending: PendingRequest) -> None:
        """Store the result of an adopted job when its pending request has ended."""
        self._count("running")
        self._adopted.pending[job.id] = pending
        self._run(self._adopted.complete(job, pending))

    def _count(self, status: str) -> None:
        """Add 1 to the cached number of jobs with a status.

        The numbers are replaced each time the jobs are counted in the database.
        """
        self.counts[status] = self.counts.get(status, 0) + 1

    async def _new_job(self, inference_request: InferenceRequest, pending: PendingRequest | None = None) -> Job:
        """Return the record of a new job, not yet inserted; put large inputs into the blob store.

        With `pending`, the job gets the id of this request, under which workers store previews.
        Raises FullError or OverloadedError if the inputs cannot be stored.
        """
        operation = inference_request.operation
        job = Job(
            id=pending.id if pending else new_id(),
            kind=operation.path,
            owner=inference_request.caller.name,
            model=inference_request.entry.name,
            version=inference_request.entry.version,
            method=operation.method,
            options=inference_request.options,
            request=inference_request.summary,
            request_id=inference_request.request_id,
            seed=inference_request.seed,
            rows=inference_request.rows,
            rows_per_image=inference_request.rows_per_image,
            deadline_at=inference_request.deadline_at,
            traceparent=inference_request.traceparent or None,
            webhook=inference_request.webhook.as_dict() if inference_request.webhook else None,
            input_urls=inference_request.input_urls or None,
            device_kind=inference_request.device_kind or self._batch_sender.device_kind(inference_request.entry.ref),
        )
        return await self._store_items(job, inference_request, f"jobs/{job.id}/items")

    async def _store_items(self, job: Job, inference_request: InferenceRequest, key: str) -> Job:
        """Return a copy of the job that contains its packed inputs or, if large, their blob's key.

        `key` is the key under which large inputs are put into the blob store. If images must be
        fetched by URL first, the body of the request is stored in place of the inputs. Raises
        FullError or OverloadedError if the inputs cannot be stored.
        """
        operation = inference_request.operation
        items = pack(inference_request.items) if inference_request.items and not operation.tiled else None
        if inference_request.input_urls:
            items = await self._threads.read(inference_request.stored_content)
        elif inference_request.photograph is not None:
            items = await self._threads.read(photograph_bytes, inference_request.photograph)
        if items is None or not (operation.tiled or len(items) > INLINE_BYTES):
            return replace(job, items=items)
        try:
            await self._threads.read(self._blobs.put, key, items)
        except OSError as error:
            raise storage_error(error) from error
        return replace(job, items_blob=key)

    async def set_inputs(self, job: Job, inference_request: InferenceRequest) -> None:
        """Store the fetched inputs of a claimed job, queue it for the workers, and wake a worker.

        `inference_request` is the complete request. Writes nothing if this process no longer holds
        the job's lease. Raises FullError or OverloadedError if the inputs cannot be stored.
        """
        new = replace(
            job,
            rows=inference_request.rows,
            rows_per_image=inference_request.rows_per_image,
            request={**inference_request.summary, **(job.input_urls or {})},
            items_blob=None,
        )
        new = await self._store_items(new, inference_request, f"jobs/{job.id}/items-{job.token}")
        if await self.write(lambda job_store: job_store.set_inputs(job.claim, new)):
            self._wake(job)

    def _wake(self, job: Job) -> None:
        """Send a message by which an inference worker looks for the queued job `job`."""
        self._batch_sender.wake(f"{job.model}@{job.version}", job.device_kind)

    def notify(self, job_id: str) -> None:
        """Wake the requests and event streams of this process that wait for a job to change."""
        self._updates.notify(job_id)

    @contextlib.asynccontextmanager
    async def _keeping_inputs(self, job: Job) -> AsyncIterator[None]:
        """Delete the stored inputs of a job if the block, which inserts the job, fails.

        They are kept if the database cannot be read: the job may be inserted although the reply was
        lost. Inputs without a job are deleted periodically, and so may be gone when the job is
        inserted. Then the job is deleted again and OverloadedError is raised, so that the client
        retries.
        """
        try:
            yield
        except sa.exc.SQLAlchemyError:
            if job.items_blob is not None and not await self._threads.read(self._job_store.states, [job.id]):
                await self._threads.read(self._blobs.delete, f"jobs/{job.id}")
            raise
        if job.items_blob is not None and not await self._threads.read(self._blobs.exists, job.items_blob):
            await self._threads.write(self._job_store.delete, job.id)
            raise OverloadedError("the request was stored too slowly; send it again", retry_after_s=2)

    async def wake_training_workers(self, job_id: str) -> None:
        """Notify training workers and clients that the job `job_id` was created or changed.

        Idle training workers look for a job; requests and event streams that wait for this job
        continue.
        """
        self._updates.notify(job_id)
        await self.training_workers.wake()

    # --- reading jobs ---

    async def get(self, job_id: str, owner: str) -> Job | None:
        """Return a job with its current progress; None if the owner has no such job."""
        job = await self._threads.read(self._job_store.get, job_id, owner)
        pending = self._adopted.pending.get(job_id)
        return replace(job, progress=max(job.progress, pending.progress)) if job and pending else job

    async def may_store(self, kind: Kind, name: str, except_owner: str) -> bool:
        """Return whether an unfinished job of another owner may store a dataset or model `name`."""
        return bool(await self.read(methodcaller("may_store", kind, name, except_owner=except_owner)))

    async def wait(self, job_id: str, owner: str, timeout_s: float) -> Job | None:
        """Wait at most `timeout_s` seconds until a job has ended; return it, ended or not.

        Returns None if the owner has no such job, or if it was deleted meanwhile.
        """
        until = time.monotonic() + timeout_s
        while True:
            job = await self.get(job_id, owner)
            left_s = until - time.monotonic()
            if job is None or job.ended or left_s <= 0:
                return job
            await self._updates.wait(job_id, min(left_s, _RECHECK_S))

    async def events(self, job_id: str, after_seq: int = 0) -> list[Event]:
        """Return the events of a job with numbers above `after_seq`, in order."""
        return await self._threads.read(self._job_store.events, job_id, after_seq)

    async def exists(self, job_id: str) -> bool:
        """Return whether a job exists."""
        return bool(await self._threads.read(self._job_store.last_event_numbers, [job_id]))

    async def preview(self, job_id: str) -> bytes | None:
        """Return the newest preview of a running job as PNG.

        Returns None if the job has no preview, if it has expired, or if the queue server is
        unreachable.
        """
        try:
            png: Any = await self._redis.get(preview_key(job_id))
        except (redis.RedisError, OSError):
            return None
        return png if isinstance(png, bytes) else None

    async def result(self, job: Job) -> Fields:
        """Return the result of a succeeded job, keyed by field.

        Raises LookupError if the result was deleted.
        """

        def load() -> Fields:
            folder = StatePaths(self._settings.state).unfinished
            fields = join_rows(self.result_chunks(job), job.rows, folder)
            if not fields:
                raise LookupError(f"{job.id} has no result any more")
            return fields

        return await self._threads.read(load)

    def result_chunks(self, job: Job) -> Iterator[Fields]:
        """Yield the result of a succeeded job in chunks, each keyed by field.

        Raises LookupError if a chunk was deleted. Blocks: call it in a thread.
        """
        for chunk in self._job_store.result(job.id):
            try:
                yield unpack(chunk.data if chunk.data is not None else self._blobs.get(str(chunk.blob_key)))
            except FileNotFoundError as error:
                raise LookupError(f"{job.id} has no result any more") from error

    # --- ending jobs ---

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job; return False if it had already ended.

        If this process has adopted the job, its pending request is cancelled too.
        """
        cancelled = await self._threads.write(self._job_store.cancel, job_id)
        if (pending := self._adopted.pending.pop(job_id, None)) is not None:
            self._batch_sender.drop(pending)
        self._updates.notify(job_id)
        return cancelled

    async def _end_overdue(self) -> None:
        """End all jobs whose deadline has passed; cancel the pending requests of adopted ones."""
        for job_id in self._adopted.overdue():
            self._batch_sender.drop(self._adopted.pending.pop(job_id))
        if await self._threads.read(self._job_store.has_overdue):
            for job_id in await self._threads.write(self._job_store.end_overdue):
                log.info("deadline passed", extra={"job": job_id})
                self._updates.notify(job_id)

    async def delete(self, job_id: str) -> None:
        """Delete an ended job and its files.

        The files are deleted before the job's row, so that even a full disk has room for the
        transaction. Files that a worker still writes afterwards are deleted by the periodic
        cleanup.
        """
        await self._threads.read(self._blobs.delete, f"jobs/{job_id}")
        await self._threads.read(self.runs.remove, job_id)
        await self._threads.write(self._job_store.delete, job_id)

    # --- background loops ---

    async def _renew_leases(self) -> None:
        """Renew the leases of adopted jobs, until cancelled.

        This loop does not wait for the queue server, which may hang for longer than a lease lasts.
        """
        while True:
            await asyncio.sleep(min(1.0, self._settings.job_lease_s / 3))
            try:
                await self._adopted.renew()
            except Exception:
                log.exception("renewing leases")

    async def _maintain(self) -> None:
        """Requeue jobs with expired leases, and end overdue jobs, until cancelled.

        Also counts the jobs of each status, and the inference jobs that wait for a worker. If there
        are such jobs, wakes inference workers, and fails or moves jobs that no worker can run
        (`_check_waiting`).
        """
        while True:
            await asyncio.sleep(min(1.0, self._settings.job_lease_s / 3))
            try:
                for job_id in await self._threads.write(self._reaper.reap):
                    log.warning("lease lapsed", extra={"job": job_id})
                    self._updates.notify(job_id)
                await self._end_overdue()
                self.counts = await self._threads.read(self._job_store.count_by_status)
                self.waiting = await self._threads.read(self._job_store.count_claimable, 1.0)
                if self.waiting:
                    await self._batch_sender.wake_idle(self.waiting)
                    await self._check_waiting()
            except (redis.RedisError, OSError):
                continue
            except Exception:
                log.exception("maintaining the job store")

    async def _check_waiting(self) -> None:
        """Fail the waiting jobs of versions that do not exist any more.

        Also moves waiting jobs whose device kind has no worker left to another device kind, on
        which they begin again.
        """
        for model, version, kind in await self._threads.read(self._job_store.waiting_kinds, _WAITED_S):
            ref = f"{model}@{version}"
            if not self.version_exists(ref) and not self._batch_sender.is_listed(ref):
                detail = f"the version {ref} does not exist any more"
                problem = {"type": "about:blank", "title": "Model unavailable", "status": 503, "detail": detail}
                for job_id in await self._threads.write(self._job_store.fail_waiting, model, version, problem):
                    self._updates.notify(job_id)
            elif kind is not None and self._batch_sender.lost_kind(ref, kind):
                reason = f"no worker of device kind {kind} is left; it starts again at row 0 on another kind"
                log.warning("device kind lost", extra={"model": ref, "device_kind": kind})
                for key in await self._threads.write(
                    self._job_store.restart_on_any_device_kind, model, version, kind, reason
                ):
                    await self._threads.read(self._blobs.delete, key)

    async def _clean_up(self) -> None:
        """Delete expired results, results over the disk quota, and files without a job.

        Repeats this periodically until cancelled.
        """
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                await asyncio.to_thread(self._cleanup.run)
            except Exception:
                log.exception("cleaning up")
