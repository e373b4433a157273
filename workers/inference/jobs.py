"""Claim jobs from the job store, run them for one time slice, and record the results there.

A time slice is the time that a worker gives to one batch before it receives the next message.
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

import numpy as np

from core import tracing
from core.broker.codec import MARGINS, BatchSlice, Items, Outcome, cut_items, pack, unpack
from core.broker.keys import JOB_UPDATES, STREAM_LENGTH
from core.broker.publisher import wake_inference_workers
from core.catalog.operations import BY_METHOD
from core.histograms import HISTOGRAMS
from core.imaging.tiling import Layout
from core.jobs.records import Claim, ClaimScope, Job, SliceReport
from core.jobs.store import JobStore
from core.log import best_effort
from core.storage import DATABASE_UNAVAILABLE, STORES_UNAVAILABLE, storage_problem
from workers.inference import engine
from workers.inference.context import INLINE_BYTES, CannotRunError, InferenceContext, unloadable_problem

log = logging.getLogger(__name__)

CLAIM_LIMIT = 32  # most small jobs that share a forward pass

_INPUT_MISSING, _INPUT_DAMAGED = (
    {
        "type": "about:blank",
        "title": f"Input {what}",
        "status": 500,
        "detail": f"the input of the job is {what} in the blob store; send the request again",
    }
    for what in ("missing", "damaged")
)

_LACKING_S = 60.0  # a version that this worker cannot run is not tried again for so long


class JobRunner:
    """Claims jobs from the job store and runs them; each call of `run` runs one batch of jobs."""

    def __init__(self, context: InferenceContext) -> None:
        """Keep the worker's context, which has its stores and models; claim no job yet."""
        self._context = context
        self._unsaved = UnsavedReports(context.job_store, context.settings.storage_wait_s)
        self._running: frozenset[str] = frozenset()
        self._lacking: dict[tuple[str, str], float] = {}  # until when, by model and version

    def run(self) -> None:
        """Claim a job, or small jobs that fit in one batch, and run them for one time slice.

        A time slice is the time that a worker gives to one batch before it receives the next
        message. The results are recorded in the job store. Returns at once if there is no job to
        claim, if this call interrupts a job that is running, or if earlier results still wait to be
        recorded.
        """
        if self._running or self._unsaved.waiting:
            # this call interrupts a job; or the job store is not writable, and results wait
            return
        context = self._context
        lease_s = context.settings.job_lease_s
        claimed = context.job_store.claim(
            context.worker_id, lease_s, CLAIM_LIMIT, scope=self._scope(), batch_rows=self._largest_batch
        )
        if not claimed:
            return
        self._running = frozenset(job.id for job in claimed)
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
                reports = self._run_slice(self._drop_jobs_without_space(claimed))
            saved = self._unsaved.add(reports)
        finally:
            self._running = frozenset()
        self._publish_updates(saved)

    def _scope(self) -> ClaimScope:
        """Return which jobs this worker may claim, by device kind, models and versions."""
        context, now = self._context, time.monotonic()
        self._lacking = {version: until for version, until in self._lacking.items() if until > now}
        cache, names = context.model_cache, None
        if context.models:
            names = tuple(name for name in context.registry.names() if context.may_load(name))
        loaded = [tuple(ref.split("@", 1)) for ref in cache.capacity()] if cache.crowded else None
        pairs = None if loaded is None else tuple((name, version) for name, version in loaded)
        return ClaimScope(context.device_kind, names, tuple(self._lacking), pairs)

    def renew_leases(self) -> None:
        """Renew the leases of the jobs that run, and try again to record results kept in memory."""
        context = self._context
        if job_ids := self._running | self._unsaved.job_ids:
            lease_s = context.settings.job_lease_s
            best_effort(lambda: context.job_store.renew_leases(context.worker_id, lease_s, job_ids))
        if self._unsaved.waiting:
            best_effort(self._save_again)

    def _save_again(self) -> None:
        """Try again to record results kept in memory; notify the API processes of these jobs."""
        if saved := self._unsaved.save():
            self._publish_updates(saved)

    def _publish_updates(self, job_ids: list[str]) -> None:
        """Notify the API processes of changed jobs; wake a worker to claim further jobs."""
        queue_server, fields = self._context.queue_server, {"ids": pack(job_ids)}
        best_effort(lambda: queue_server.xadd(JOB_UPDATES, fields, maxlen=STREAM_LENGTH, approximate=True))  # type: ignore[arg-type]
        best_effort(lambda: queue_server.execute_command(*wake_inference_workers(self._context.group)))

    def _largest_batch(self, job: Job) -> int:
        """Return the largest batch size, in rows, with which this worker runs a job's operation."""
        return self._context.model_cache.largest(f"{job.model}@{job.version}", job.method)

    # --- storage that may be full ---

    def _drop_jobs_without_space(self, claimed: list[Job]) -> list[Job]:
        """Return the claimed jobs, except those whose results will not fit in the blob store.

        A job has a recorded size if its result did not fit earlier. If the blob store has less free
        space than this size, the job goes back to its queue and is left out. A job without a
        recorded size is kept.
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

    def _defer(self, job: Job, error: Exception, size_bytes: int = 0) -> None:
        """Return a job to its queue for a later try, with the next write to the job store.

        `error` says why its inputs or model could not be read, or its result could not be stored.
        `size_bytes` is the size of the result, 0 if it is unknown.
        """
        log.warning("job deferred until the blob store has room", extra={"job": job.id, "reason": str(error)})
        self._unsaved.defer(job.claim, storage_problem(error), size_bytes)

    # --- one time slice ---

    def _run_slice(self, claimed: list[Job]) -> list[SliceReport]:
        """Run jobs with equal model, method and options for one time slice; return their reports.

        A time slice is the time that a worker gives to one batch before it receives the next
        message. A job whose inputs or model cannot be read now, or whose result cannot be stored,
        has no report; it returns to its queue for a later try. The report of a job whose input was
        deleted or is damaged is a problem. If this worker cannot run the version, all jobs return to their queue,
        so that another worker claims them. If the model cannot be loaded for another reason, the
        report of each job is a problem.
        """
        if not claimed:
            return []
        first, context = claimed[0], self._context
        method, options = first.method, first.options
        try:
            model = context.load_model(first.model, first.version, method)
            state = None if first.continuation is None else unpack(first.continuation)
            # a state belongs to so many rows, whatever another worker's plan says
            most_rows = model.plans[method].largest if state is None else len(next(iter(state.values())))
            jobs, slices, failed = self._read_inputs(claimed, most_rows)
        except CannotRunError as error:
            self._give_back(claimed, str(error))
            return []
        except STORES_UNAVAILABLE as error:
            for job in claimed:
                self._defer(job, error)
            return []
        except Exception as error:
            log.exception("job cannot run", extra={"jobs": [job.id for job in claimed]})
            return [SliceReport(job.claim, problem=unloadable_problem(error)) for job in claimed]
        if not slices:
            return failed
        result, _ = context.run(model, method, options, slices, state, isolated=first.isolated)
        if isinstance(result, engine.SliceResult):
            context.publish_previews(slices, result)
        log.info("jobs", extra={"method": method, "request_ids": [one.request_id for one in slices]})
        return failed + self._reports(jobs, slices, result)

    def _give_back(self, claimed: list[Job], reason: str) -> None:
        """Return claimed jobs to their queue, because this worker cannot run their model version.

        The worker claims no jobs of that version for the next `_LACKING_S` seconds. Jobs that have
        not begun can be claimed by workers of any device kind: no worker of this one may be able to
        run them. `reason` is logged; clients read in the jobs' events only that another worker will
        run the jobs.
        """
        log.warning("job given back", extra={"jobs": [job.id for job in claimed], "reason": reason})
        self._lacking[claimed[0].model, claimed[0].version] = time.monotonic() + _LACKING_S
        ref = f"{claimed[0].model}@{claimed[0].version}"
        for job in claimed:
            detail = f"its worker cannot run {ref} now; the job waits for a worker that can"
            begun = job.next_row > 0 or job.continuation is not None
            self._context.job_store.requeue(job.claim, detail, any_device_kind=not begun)

    def _reports(
        self, jobs: list[Job], slices: list[BatchSlice], result: list[Outcome] | engine.SliceResult
    ) -> list[SliceReport]:
        """Return what to record of each job that was run; store large results in the blob store.

        `slices` has the rows of each job in the batch, and `result` their results or unfinished
        state.
        """
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

    def _read_inputs(self, claimed: list[Job], most_rows: int) -> tuple[list[Job], list[BatchSlice], list[SliceReport]]:
        """Return the jobs whose inputs can be read, the rows to run of each, and reports of failures.

        Each `BatchSlice` has at most `most_rows` rows, with their inputs. A job whose input was
        deleted or is damaged is left out; its report has the problem. A job whose inputs cannot be read now is
        left out and goes back to its queue for a later try.
        """
        jobs, slices, failed = [], [], []
        for job in claimed:
            try:
                slices.append(self._next_slice(job, most_rows))
                jobs.append(job)
            except FileNotFoundError:
                log.warning("input missing", extra={"job": job.id, "blob": job.items_blob})
                failed.append(SliceReport(job.claim, problem=_INPUT_MISSING))
            except OSError as error:
                self._defer(job, error)
            except Exception:
                log.exception("input damaged", extra={"job": job.id, "blob": job.items_blob})
                failed.append(SliceReport(job.claim, problem=_INPUT_DAMAGED))
        return jobs, slices, failed

    def _next_slice(self, job: Job, most_rows: int) -> BatchSlice:
        """Return the next rows of a job to be run, at most `most_rows`, with their inputs."""
        blobs = self._context.blobs
        first = job.next_row
        rows = job.rows if job.co_batched else min(most_rows, job.rows - first)
        if BY_METHOD[job.method].tiled:
            layout = Layout.read(job.request)
            tiles = layout.tiles(partial(blobs.get, str(job.items_blob)), first, rows)
            items: Items = {"images": tiles, MARGINS: np.array([layout.tiling.margins], np.int64)}
        else:
            packed = job.items if job.items_blob is None else blobs.get(job.items_blob)
            items = {} if packed is None else cut_items(unpack(packed), job.rows_per_image, first, rows)
        return BatchSlice(job.id, job.seed, first, rows, items, request_id=job.request_id)

    def _store_result(self, job: Job, one: BatchSlice, data: bytes) -> dict[str, Any]:
        """Return the field of a SliceReport for `data`, the packed result of the rows in `one`.

        A result of more than `INLINE_BYTES`, or one that consists of tiles, is written to the blob
        store and the field is `blob_key`; otherwise the field is `data` itself. Raises OSError if
        the blob store cannot store the result.
        """
        if len(data) <= INLINE_BYTES and not BY_METHOD[job.method].tiled:
            return {"data": data}
        key = f"jobs/{job.id}/{job.token}-{one.first}"
        self._context.blobs.put(key, data)
        return {"blob_key": key}


class UnsavedReports:
    """Keeps in memory what the job store cannot record now: results, and jobs to be queued again.

    Until the job store is writable, the worker renews the leases of these jobs and claims no
    others. Nothing is computed a second time, and nothing counts as a failed attempt. If the job
    store is still not writable `wait_s` seconds after the last result came, the results are
    replaced by problems (507 or 503, with the reason), which are smaller and may fit.
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
        """Whether any result, or job to be queued again, is not yet recorded in the job store."""
        return bool(self._reports or self._deferred)

    @property
    def job_ids(self) -> set[str]:
        """The ids of the jobs with results or returns that are not yet recorded."""
        return {report.claim.job_id for report in self._reports} | {claim.job_id for claim, _, _ in self._deferred}

    def defer(self, claim: Claim, problem: dict[str, Any], size_bytes: int) -> None:
        """Keep a job that is to go back to its queue, until the next call of `add` or `save`.

        This does not write to the job store. `claim` is the worker's claim on the job (id and
        fencing token). `problem` is the error that the job fails with if it has been deferred for
        too long. `size_bytes` is the size of its result, 0 if unknown.
        """
        with self._lock:
            self._deferred.append((claim, problem, size_bytes))

    def add(self, reports: Sequence[SliceReport]) -> list[str]:
        """Write new reports, and all results and jobs kept in memory, to the job store.

        Returns the ids of the jobs that were recorded. If the job store is not writable, all of
        them are kept in memory for the next call of `add` or `save`.
        """
        with self._lock:
            self._reports.extend(reports)
            self._since = time.monotonic()
        return self.save()

    def save(self) -> list[str]:
        """Write all that is kept in memory to the job store; return the ids of recorded jobs.

        A job whose claim is no longer valid is dropped. If the job store is not writable, what is
        not recorded yet stays in memory. After any other error all that is kept in memory is
        dropped and the error is raised: the leases of the jobs expire, and other workers run the
        jobs again.
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
            except DATABASE_UNAVAILABLE as error:
                log.warning("job store not writable; retrying", extra={"reason": str(getattr(error, "orig", error))})
                if time.monotonic() - self._since >= self._wait_s:
                    problem = storage_problem(error)
                    self._reports = [SliceReport(report.claim, problem=problem) for report in self._reports]
            except Exception:
                self._reports, self._deferred = [], []  # it would fail again; the leases lapse
                raise
            return written
