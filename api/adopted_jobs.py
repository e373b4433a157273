"""Finishes adopted jobs: synchronous requests that became jobs after their time-out."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from api.batching.batch_sender import FailedError
from api.batching.requests import PendingRequest
from api.row_files import array_bytes, cut_rows
from api.store_threads import StoreThreads
from core.blobs import Blobs
from core.broker.codec import Fields, pack
from core.jobs.records import API_HOLDER_PREFIX, Job, SliceReport
from core.jobs.store import JobStore
from core.settings import Settings
from core.storage import DATABASE_UNAVAILABLE, INSUFFICIENT_STORAGE, storage_problem

log = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10  # larger results and inputs are put into the blob store

_PIECE_BYTES = 4 << 20  # of a result in the blob store
_RETRY_S = 0.5

# Statuses of problems that end a request but not a job: a store or a worker may be there again later.
_TEMPORARY = frozenset({503, INSUFFICIENT_STORAGE})


@dataclass(eq=False)
class AdoptedJobs:
    """Holds the leases of one API process's adopted jobs, and stores their results.

    If the process dies, the leases expire and workers run the jobs. `notify` is called with the id
    of each job that has ended, and `drop` cancels a pending request. `pending` has the requests
    that are still being computed, keyed by the id of their job. `holder` is the name of this
    process in the leases.
    """

    settings: Settings
    job_store: JobStore
    blobs: Blobs
    threads: StoreThreads
    notify: Callable[[str], None]
    drop: Callable[[PendingRequest], None]
    pending: dict[str, PendingRequest] = field(default_factory=dict)
    holder: str = field(default_factory=lambda: f"{API_HOLDER_PREFIX}{uuid4().hex[:12]}")

    def overdue(self) -> list[str]:
        """Return the ids of the adopted jobs whose deadline has passed."""
        now = time.time()
        return [job_id for job_id, pending in self.pending.items() if pending.deadline_at and pending.deadline_at < now]

    async def complete(self, job: Job, pending: PendingRequest) -> None:
        """Wait until a pending request ends, and store its result or its error in its job `job`.

        If the result cannot be stored now, or no worker can run the request now, the job is
        requeued for the workers. If the request was cancelled, nothing is written to the job. After
        an unexpected error, the lease of the job expires, and a worker runs the job.
        """
        try:
            await self._complete(job, pending)
        except Exception:
            log.exception("adopted job not completed", extra={"job": job.id})
        finally:
            self.pending.pop(job.id, None)  # so its lease is not renewed any more

    async def _complete(self, job: Job, pending: PendingRequest) -> None:
        """Wait until a pending request ends, and write its outcome to its job, as `complete` does."""
        reports: list[SliceReport] = []
        size_bytes = 0
        blocked: dict[str, Any] | None = None
        try:
            fields = await pending.result
            size_bytes = array_bytes(fields) + INLINE_BYTES
            reports = await self.threads.read(self._store, job, fields, pending.rows)
            del fields
        except FailedError as error:
            blocked = error.problem if error.problem["status"] in _TEMPORARY else None
            reports = [SliceReport(job.claim, problem=error.problem)]
        except OSError as error:
            log.warning("result not stored", extra={"job": job.id, "reason": str(error)})
            blocked = storage_problem(error)
        except asyncio.CancelledError:
            if not pending.result.cancelled():
                raise  # this process stops
            return
        if pending.restarts:
            kind = pending.device_kind
            await self._write_until_done(job.id, self.job_store.record_kind, self.holder, job.id, kind)
        if blocked is None:
            await self._write_until_done(job.id, self.job_store.record_slices, reports)
        else:  # a worker runs the job again later
            wait_s = self.settings.storage_wait_s
            await self._write_until_done(job.id, self.job_store.defer, job.claim, blocked, wait_s, size_bytes)
        self.notify(job.id)

    def _store(self, job: Job, fields: Fields, rows: int) -> list[SliceReport]:
        """Return the records of a job's result, to be inserted into the job store.

        `fields` is the result, of `rows` rows. A small result is in one record; a large one is
        first put into the blob store in slices, one record per slice, with its blob's key. Raises
        OSError if a blob cannot be stored; the blobs of the other slices are then deleted.
        """
        size_bytes = array_bytes(fields)
        if size_bytes <= INLINE_BYTES and len(data := pack(fields)) <= INLINE_BYTES:
            return [SliceReport(job.claim, 0, rows, data)]
        reports: list[SliceReport] = []
        step = max(1, rows * _PIECE_BYTES // max(size_bytes, 1))
        try:
            for first in range(0, rows, step):
                count, key = min(step, rows - first), f"jobs/{job.id}/1-{first}"
                self.blobs.put(key, pack(cut_rows(fields, first, count)))
                reports.append(SliceReport(job.claim, first, count, blob_key=key))
        except OSError:
            for report in reports:
                self.blobs.delete(str(report.blob_key))
            raise
        return reports

    async def _write_until_done(self, job_id: str, function: Callable[..., object], *args: object) -> None:
        """Call `function(*args)`, which writes to the job store; retry until the write succeeds.

        `job_id` is the job that the log messages about failed writes name.
        """
        while True:
            try:
                await self.threads.write(function, *args)
            except DATABASE_UNAVAILABLE as error:
                log.warning("database not written", extra={"job": job_id, "reason": str(getattr(error, "orig", error))})
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def renew(self) -> None:
        """Renew the leases of all adopted jobs, and write their progress to the job store.

        If this process has lost the lease of a job, its pending request is cancelled: the job was
        cancelled or ended by another process, or was requeued because its lease had expired.
        """
        if job_ids := list(self.pending):
            lease_s = self.settings.job_lease_s
            renewed = await self.threads.write(self.job_store.renew_leases, self.holder, lease_s, job_ids)
            for job_id in set(job_ids).difference(renewed):
                if (lost := self.pending.pop(job_id, None)) is not None:
                    self.drop(lost)
            progress = {job_id: pending.progress for job_id, pending in self.pending.items() if pending.progress}
            for job_id, pending in list(self.pending.items()):
                if pending.restarts:
                    await self.threads.write(self.job_store.record_kind, self.holder, job_id, pending.device_kind)
            await self.threads.write(self.job_store.record_progress, self.holder, progress)

    async def release(self) -> None:
        """Give up the leases of all adopted jobs, so that workers can claim them.

        Called when this process stops.
        """
        await self.threads.write(self.job_store.release, self.holder, "its holder stopped")
