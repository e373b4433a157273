"""Claim jobs from the job store, run them for one time slice, and record the results there.

Results that cannot be recorded because the job store is full or unavailable are kept in memory
until it is writable.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import sqlalchemy.exc

from core import tracing
from core.broker.codec import BatchSlice, Items, cut_items, pack, unpack
from core.broker.keys import JOB_UPDATES, STREAM_LENGTH
from core.broker.publisher import wake_inference_workers
from core.catalog.operations import BY_METHOD
from core.histograms import HISTOGRAMS
from core.imaging.tiling import Layout
from core.jobs.records import Claim, Job, SliceReport
from core.jobs.store import JobStore
from core.log import best_effort
from core.storage import storage_problem
from workers.inference import engine
from workers.inference.context import INLINE_BYTES, InferenceContext, unloadable_problem

log = logging.getLogger(__name__)

CLAIM_LIMIT = 32  # most small jobs that share a forward pass


class JobRunner:
    """Claims jobs and runs one time slice of them at a time."""

    def __init__(self, context: InferenceContext) -> None:
        """Use the stores and models of a worker; no job is claimed yet."""
        self._context = context
        self._unsaved = UnsavedReports(context.job_store, context.settings.storage_wait_s)
        self._running = False

    def run(self) -> None:
        """Claim a job, or several small similar jobs; run a time slice and record the results.

        Returns at once if there is no job, if a job is running, or if results wait to be saved.
        """
        if self._running or self._unsaved.waiting:
            # this call interrupts a job; or the job store is not writable, and results wait
            return
        context = self._context
        lease_s = context.settings.job_lease_s
        claimed = context.job_store.claim(context.worker_id, lease_s, CLAIM_LIMIT, batch_rows=self._largest_batch)
        if not claimed:
            return
        self._running = True
        for job in claimed:
            if job.token == 1:
                waited_s = (job.started_at or job.created_at) - job.created_at
                HISTOGRAMS.observe("job_queue_seconds", (job.model, job.method), waited_s)
                tracing.record("queue", job.traceparent or "", job.created_at, job.started_at)
        first, *others = claimed
        links = [job.traceparent for job in others if job.traceparent]
        attributes = {"reverie.job_id": first.id, "reverie.model": first.model, "reverie.operation": first.method}
        span = tracing.span("run job", first.traceparent or "", kind="consumer", links=links, attributes=attributes)
        try:
            with span, context.watchdog.working(first.method, *(job.id for job in claimed)):
                reports = self._run_slice(self._with_room(claimed))
            saved = self._unsaved.add(reports)
        finally:
            self._running = False
        self._publish_updates(saved)

    def on_heartbeat(self) -> None:
        """Renew the leases of claimed jobs, and save results that could not be saved before."""
        context = self._context
        if self._running or self._unsaved.waiting:
            best_effort(lambda: context.job_store.renew_leases(context.worker_id, context.settings.job_lease_s))
        if self._unsaved.waiting:
            best_effort(self._save_again)

    def _save_again(self) -> None:
        if saved := self._unsaved.save():
            self._publish_updates(saved)

    def _publish_updates(self, job_ids: list[str]) -> None:
        """Notify the API processes that jobs have changed, and wake a worker for further jobs."""
        queue_server, fields = self._context.queue_server, {"ids": pack(job_ids)}
        best_effort(lambda: queue_server.xadd(JOB_UPDATES, fields, maxlen=STREAM_LENGTH, approximate=True))  # type: ignore[arg-type]
        best_effort(lambda: queue_server.execute_command(*wake_inference_workers()))

    def _largest_batch(self, job: Job) -> int:
        return self._context.model_cache.largest(f"{job.model}@{job.version}", job.method)

    # --- storage that may be full ---

    def _with_room(self, claimed: list[Job]) -> list[Job]:
        """Return the claimed jobs whose results may fit into the blob store.

        A job whose result did not fit before, and still would not, is left out and returned to its
        queue for a later try. All other jobs are returned, because the size of their results is
        unknown.
        """
        kept = []
        for job in claimed:
            try:
                if job.blocked_bytes:
                    self._context.blobs.check_room(job.blocked_bytes)
                kept.append(job)
            except OSError as error:
                self._defer(job, error, job.blocked_bytes or 0)
        return kept

    def _defer(self, job: Job, error: OSError, size_bytes: int = 0) -> None:
        """Return a job to its queue for a later try.

        `error` says why its inputs could not be read or its result not stored. `size_bytes` is the
        size of the result, 0 if it is unknown.
        """
        log.warning("job deferred until the blob store has room", extra={"job": job.id, "reason": str(error)})
        self._unsaved.defer(job.claim, storage_problem(error), size_bytes)

    # --- one time slice ---

    def _run_slice(self, claimed: list[Job]) -> list[SliceReport]:
        """Run one time slice of jobs that share model, method and options; return a report per job.

        Jobs whose inputs cannot be read, or whose results cannot be stored, have no report and are
        returned to their queue for a later try.
        """
        if not claimed:
            return []
        first, context = claimed[0], self._context
        method, options = first.method, first.options
        try:
            model = context.load_model(first.model, first.version)
            state = None if first.continuation is None else unpack(first.continuation)
            # a state belongs to so many rows, whatever another worker's plan says
            most_rows = model.plans[method].largest if state is None else len(next(iter(state.values())))
            jobs, slices = self._read_inputs(claimed, most_rows)
        except Exception as error:
            log.exception("job cannot run", extra={"jobs": [job.id for job in claimed]})
            return [SliceReport(job.claim, problem=unloadable_problem(error)) for job in claimed]
        if not slices:
            return []
        result, _ = context.run(model, method, options, slices, state, isolated=first.isolated)
        if isinstance(result, engine.SliceResult):
            context.publish_previews(slices, result)
        log.info("jobs", extra={"method": method, "request_ids": [one.request_id for one in slices]})
        reports = []
        for index, (job, one) in enumerate(zip(jobs, slices, strict=True)):
            report = SliceReport(job.claim, one.first, one.rows)
            if isinstance(result, engine.SliceResult):
                continuation = pack(result.of(slices, index))
                reports.append(replace(report, continuation=continuation, continuation_progress=result.done))
                continue
            outcome = result[index]
            if outcome.problem is not None:
                reports.append(replace(report, problem=outcome.problem))
                continue
            data = pack(outcome.fields)
            try:
                reports.append(replace(report, **self._store_result(job, one, data)))
            except OSError as error:
                self._defer(job, error, len(data))
        return reports

    def _read_inputs(self, claimed: list[Job], most_rows: int) -> tuple[list[Job], list[BatchSlice]]:
        """Return the jobs whose inputs can be read, and the next slice of each.

        A slice has at most `most_rows` rows. Jobs whose inputs cannot be read now are left out and
        returned to their queue for a later try. Raises FileNotFoundError if an input was deleted.
        """
        jobs, slices = [], []
        for job in claimed:
            try:
                slices.append(self._next_slice(job, most_rows))
                jobs.append(job)
            except FileNotFoundError:
                raise
            except OSError as error:
                self._defer(job, error)
        return jobs, slices

    def _next_slice(self, job: Job, most_rows: int) -> BatchSlice:
        blobs = self._context.blobs
        first = job.next_row
        rows = job.rows if job.co_batched else min(most_rows, job.rows - first)
        if BY_METHOD[job.method].tiled:
            tiles = Layout.read(job.request).tiles(partial(blobs.get, str(job.items_blob)), first, rows)
            items: Items = {"images": tiles}
        else:
            packed = job.items if job.items_blob is None else blobs.get(job.items_blob)
            items = {} if packed is None else cut_items(unpack(packed), job.rows_per_image, first, rows)
        return BatchSlice(job.id, job.seed, first, rows, items, request_id=job.request_id)

    def _store_result(self, job: Job, one: BatchSlice, data: bytes) -> dict[str, Any]:
        """Store `data`, the packed result of a slice; return the field of its SliceReport.

        This is `blob_key` for a result that is large or consists of tiles, otherwise `data`. Raises
        OSError if the result cannot be stored.
        """
        if len(data) <= INLINE_BYTES and not BY_METHOD[job.method].tiled:
            return {"data": data}
        key = f"jobs/{job.id}/{job.token}-{one.first}"
        self._context.blobs.put(key, data)
        return {"blob_key": key}


class UnsavedReports:
    """Keeps results of jobs, and jobs to be returned to their queues, until they can be recorded.

    Until the job store is writable these jobs stay claimed, their leases are renewed, and the
    worker claims no more. Nothing is computed a second time and no attempt is charged. After
    `wait_s` seconds the results are replaced by failures (507 or 503 with the reason), which are
    small writes that may still succeed.
    """

    def __init__(self, job_store: JobStore, wait_s: float) -> None:
        self._job_store = job_store
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._reports: list[SliceReport] = []
        self._deferred: list[tuple[Claim, dict[str, Any], int]] = []
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether a result, or the return of a job to its queue, is not recorded yet."""
        return bool(self._reports or self._deferred)

    def defer(self, claim: Claim, problem: dict[str, Any], size_bytes: int) -> None:
        """Keep the request to return a job to its queue, for the next write to the job store.

        The job store is not written yet. `problem` is the error of the job if it waits too long,
        and `size_bytes` the size of its result, 0 if unknown.
        """
        with self._lock:
            self._deferred.append((claim, problem, size_bytes))

    def add(self, reports: Sequence[SliceReport]) -> list[str]:
        """Record these reports and all that wait for it; return the ids of the jobs written.

        If the job store is not writable, all of them wait for the next call.
        """
        with self._lock:
            self._reports.extend(reports)
            self._since = time.monotonic()
        return self.save()

    def save(self) -> list[str]:
        """Record all kept reports and returns to queues; return the ids of the jobs written.

        A job whose claim is no longer valid is left out. If the job store is not writable, the rest
        is kept.
        """
        with self._lock:
            written: list[str] = []
            try:
                while self._deferred:
                    claim, problem, size_bytes = self._deferred[-1]
                    if self._job_store.defer(claim, problem, self._wait_s, size_bytes):
                        written.append(claim.job_id)
                    self._deferred.pop()
                if self._reports:
                    recorded = self._job_store.record_slices(self._reports)
                    if len(recorded) < len(self._reports):
                        log.warning("claims lost", extra={"jobs": len(self._reports) - len(recorded)})
                    written += recorded
                    self._reports = []
            except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError) as error:
                log.warning("job store not writable; retrying", extra={"reason": str(error.orig)})
                if time.monotonic() - self._since >= self._wait_s:
                    problem = storage_problem(error)
                    self._reports = [SliceReport(report.claim, problem=problem) for report in self._reports]
            except Exception:
                self._reports, self._deferred = [], []  # it would fail again; the leases lapse
                raise
            return written
