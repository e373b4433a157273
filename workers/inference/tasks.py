"""The Celery tasks. A Celery worker imports this module (`include` in `core.broker.celery_app`)."""

<<<<<<< HEAD
import gc
import logging
import os
import platform
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import redis
from celery import signals

from core.blobs import Blobs
from core.broker.codec import Batch, Items, Part, cut_items, pack, unpack
from core.broker.connection import (
    COMPLETION_STREAM_LENGTH,
    JOB_UPDATES,
    RUN_BATCH,
    RUN_JOBS,
    WORKERS,
    FireAndForgetClient,
    connect,
    dropped_key,
    make_celery,
    message,
    preview_key,
    queue_name,
    started_key,
)
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion, Registry
from core.imaging.pictures import grid
from core.imaging.tiling import Layout
from core.jobs.records import Job, SliceReport
from core.jobs.store import JobStore
from core.log import best_effort
from core.paths import StatePaths
from core.settings import HEARTBEAT_S, Settings
from core.storage import storage_problem
from workers.inference import engine
from workers.inference.model_cache import ModelCache
from workers.inference.unsaved import UnsavedReports
from workers.inference.watchdog import Watchdog

log = logging.getLogger(__name__)

INLINE_BYTES = 256 << 10
"""A larger result goes to the blob store and its note names it."""

CLAIM_LIMIT = 32

CANDIDATE_POLL_S = 0.1
"""How often a worker looks for a version that is to serve next, and takes one step in loading it."""

TILE_SLICE_S = 0.25
"""Least slice of work on tiles, about what one takes a network on a CPU."""

BUSY_POLL_S = 0.002
"""How long a worker that has just had something to do looks for more before it sleeps."""

PREVIEW_S, PREVIEW_ROWS, PREVIEW_KEEP_S = 0.4, 64, 600
"""Least time between two previews of one run, how many of its pictures they show, and how long the last one is kept."""


class Worker:
    """One process on one device: runs batches for API processes that wait, and slices of jobs in the ledger."""

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet but the ledger and the blob store."""
        self.settings = settings
        self.id = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.redis = connect(settings)
        self._post = FireAndForgetClient(self.redis)
        self.job_store = JobStore(settings.database)
        self.blobs = Blobs(settings.blobs)
        self.registry = Registry(settings.checkpoints, StatePaths(settings.state).checkpoints)
        self.watchdog = Watchdog(settings.stall_s)
        self.model_cache = ModelCache(settings, self.watchdog.advance)
        self.celery = make_celery(settings)
        self.celery.task(name=RUN_BATCH, Strategy="workers.inference.tasks:run_inline")(self.run_batch)
        self.celery.task(name=RUN_JOBS, Strategy="workers.inference.tasks:run_inline")(self.run_jobs)
        self.counters: Counter[str] = Counter()
        self.state = "warming"
        self._holding = False
        self._unsaved = UnsavedReports(self.job_store, settings.storage_wait_s)
        self._running: list[str] = []
        self._shown: dict[str, float] = {}
        self._refused: dict[str, str] = {}
        self._loading: tuple[ModelVersion, Iterator[None]] | None = None
        self._beats = 0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Warm the models up, then serve until told to stop; the current piece of work is finished first."""
        pulse = threading.Thread(target=self._run_heartbeat, name="heartbeat", daemon=True)
        pulse.start()
        with self.watchdog.working("loading models"):
            self.model_cache.warm_all(self.registry.active())
        # what is loaded by now stays: a full collection that walks all of it stops the process for a tenth of a second
        gc.collect()
        gc.freeze()
        self.state = "ready"
        self._publish_heartbeat()
        signals.worker_shutting_down.connect(self._drain)
        signals.worker_ready.connect(busy_poll)
        signals.worker_ready.connect(self.watch_candidates)
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        try:
            self.celery.worker_main(["--quiet", "worker", "-P", "solo", "-n", self.id, "-l", "WARNING", *flags])
        finally:
            self._stopped.set()
            self.watchdog.stop()
            pulse.join(2)
            best_effort(lambda: self.redis.hdel(WORKERS, self.id))

    def _drain(self, **_said: object) -> None:
        self.state = "draining"

    # --- versions that are to serve next ---

    def watch_candidates(self, sender: Any, **_said: object) -> None:
        """Load candidate versions step by step, between the messages that the worker receives."""
        sender.hub.call_repeatedly(CANDIDATE_POLL_S, self.load_candidates)

    def load_candidates(self) -> None:
        """One step towards having loaded what is to serve next; what waits on the lanes goes between the steps."""
        if self._loading is None:
            wanted = {entry.ref: entry for entry in self.registry.candidates()}
            self._refused = {ref: why for ref, why in self._refused.items() if ref in wanted}
            open_ = [ref for ref in wanted if ref not in self._refused and not self.model_cache.holds(ref)]
            entry = wanted[open_[0]] if open_ else None
            if entry is None:
                return
            self._loading = (entry, self.model_cache.loading(entry))
        entry, steps = self._loading
        try:
            with self.watchdog.working("loading", entry.ref):
                next(steps)
        except StopIteration:
            self._loading = None
            best_effort(self._publish_heartbeat)
        except Exception as error:
            log.exception("version cannot be loaded", extra={"model": entry.ref})
            self._loading = None
            self._refused[entry.ref] = f"{type(error).__name__}: {error}"
            best_effort(self._publish_heartbeat)

    # --- sign of life ---

    def _run_heartbeat(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            self.watchdog.check()
            best_effort(self._publish_heartbeat)
            if self._holding or self._unsaved.waiting:
                best_effort(lambda: self.job_store.renew_leases(self.id, self.settings.job_lease_s))
            if self._unsaved.waiting:
                best_effort(self._save_again)

    def _save_again(self) -> None:
        if counted := self._unsaved.save():
            self._announce(counted)

    def _publish_heartbeat(self) -> None:
        self._beats += 1
        said = {
            "beat": self._beats,
            "at": time.time(),
            "state": self.state,
            "host": platform.node(),
            "pid": os.getpid(),
            "device": str(self.model_cache.device),
            "running": list(self._running),
            "capacity": self.model_cache.capacity(),
            "refused": dict(self._refused),
            "counters": dict(self.counters),
            "memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        self.redis.hset(WORKERS, self.id, pack(said))

    # --- a batch that an API process waits for ---

    def run_batch(self, data: bytes) -> None:
        """Run one slice of a batch; its note goes to whoever waits, the rest of a long one back on the bulk lane."""
        batch = Batch.unpack(data)
        long = batch.state is not None or BY_METHOD[batch.method].tiled
        if long and self.redis.exists(dropped_key(batch.id)):
            return
        if batch.state is None:
            self._post.send("SET", started_key(batch.id), self.id, "EX", 600)
        self._running = [batch.id]
        try:
            with self.watchdog.working(batch.method, *(part.request_id for part in batch.parts)):
                self._run(batch)
        finally:
            self._running = []

    def _run(self, batch: Batch) -> None:
        try:
            loaded_model = self.model_cache.get(self._entry(batch.model, batch.version))
        except Exception as error:
            log.exception("batch cannot run", extra={"model": f"{batch.model}@{batch.version}"})
            self._tell(batch, {"kind": "done", "outcomes": [{"problem": _unloadable(error)}] * len(batch.parts)})
            return
        begun = time.perf_counter()
        answer = engine.run(
            loaded_model, batch.method, batch.options, batch.parts, batch.state, self._slice_s(batch.method)
        )
        took = time.perf_counter() - begun
        self._count(batch.method, sum(part.rows for part in batch.parts), took)
        if isinstance(answer, engine.SliceResult):
            batch.state = answer.state
            self._show(batch.parts, answer)
            self.redis.lpush(queue_name("bulk"), message(RUN_BATCH, "bulk", batch.pack()))
            self._tell(batch, {"kind": "progress", "done": answer.done})
            return
        pace = {"took": took, "wide": loaded_model.threads > 1}
        self._tell(batch, {"kind": "done", **pace, "outcomes": [vars(outcome) for outcome in answer]})
        if log.isEnabledFor(logging.INFO):
            ids = [part.request_id for part in batch.parts]
            log.info("batch", extra={"method": batch.method, "parts": len(ids), "request_ids": ids})

    def _tell(self, batch: Batch, note: dict[str, Any]) -> None:
        data = pack({**note, "batch": batch.id, "worker": self.id})
        if len(data) > INLINE_BYTES:
            key = f"notes/{batch.id}-{uuid4().hex[:8]}"
            try:
                self.blobs.put(key, data)
                note = {"kind": note["kind"], "blob": key}
            except OSError as error:  # said at once: silence would have the batch computed again and again
                log.warning("result not stored", extra={"batch": batch.id, "reason": str(error)})
                note = {"kind": "done", "outcomes": [{"problem": storage_problem(error)}] * len(batch.parts)}
            data = pack({**note, "batch": batch.id, "worker": self.id})
        try:
            self._post.send("XADD", batch.reply, "MAXLEN", "~", COMPLETION_STREAM_LENGTH, "*", "note", data)
        except redis.RedisError:
            log.warning("note lost; its batch will be sent again", exc_info=True)

    def _show(self, parts: list[Part], answer: engine.SliceResult) -> None:
        """Leave what unfinished pictures look like where an API process finds them."""
        now = time.monotonic()
        for index, part in enumerate(parts):
            preview = answer.preview_of(parts, index)
            if preview is None or now - self._shown.get(part.call, 0.0) < PREVIEW_S:
                continue
            if len(self._shown) > CLAIM_LIMIT:
                self._shown = {call: at for call, at in self._shown.items() if now - at < PREVIEW_S}
            self._shown[part.call] = now
            command = ("SET", preview_key(part.call), grid(preview[:PREVIEW_ROWS]), "EX", PREVIEW_KEEP_S)
            best_effort(partial(self._post.send, *command))

    def _slice_s(self, method: str) -> float:
        """How long a slice may take: the states of unfinished tiles have megabytes, which cost time to carry on."""
        least = TILE_SLICE_S if BY_METHOD[method].tiled else 0.0
        return max(self.settings.time_slice_s, least)

    def _entry(self, model: str, version: str) -> ModelVersion:
        entry = self.registry.find(f"{model}@{version}")
        if entry is None:
            raise LookupError(f"no checkpoint of {model}@{version} here")
        return entry

    def _count(self, method: str, rows: int, seconds: float) -> None:
        self.counters[f"rows:{method}"] += rows
        self.counters["batches"] += 1
        self.counters["busy_us"] += int(seconds * 1e6)

    # --- promised jobs ---

    def run_jobs(self) -> None:
        """Claim whose turn it is and run one slice; a message without a claimable job behind it costs one look."""
        if self._unsaved.waiting:
            return  # the database cannot be written: no more is computed until what is done is saved
        claimed = self.job_store.claim(self.id, self.settings.job_lease_s, CLAIM_LIMIT, batch_rows=self._room)
        if not claimed:
            return
        self._holding = True
        try:
            with self.watchdog.working(claimed[0].method, *(job.id for job in claimed)):
                reports = self._slice(self._with_room(claimed))
            counted = self._unsaved.add(reports)
        finally:
            self._holding = False
        self._announce(counted)

    def _announce(self, job_ids: list[str]) -> None:
        """Say which jobs have changed, and that there may be more to do."""
        best_effort(
            lambda: self.redis.xadd(
                JOB_UPDATES, {"ids": pack(job_ids)}, maxlen=COMPLETION_STREAM_LENGTH, approximate=True
            )
        )
        best_effort(lambda: self.redis.lpush(queue_name("bulk"), message(RUN_JOBS, "bulk")))

    def _with_room(self, claimed: list[Job]) -> list[Job]:
        """The jobs whose results there seems to be room for; those known not to fit yet are put back uncomputed."""
        kept = []
        for job in claimed:
            try:
                if job.blocked_bytes:
                    self.blobs.check_room(job.blocked_bytes)
                kept.append(job)
            except OSError as error:
                self._defer(job, error, job.blocked_bytes or 0)
        return kept

    def _defer(self, job: Job, error: OSError, size_bytes: int = 0) -> None:
        """Put back a job whose result cannot be stored now."""
        log.warning("job waits for the blob store", extra={"job": job.id, "reason": str(error)})
        self._unsaved.defer(job.claim, storage_problem(error), size_bytes)

    def _room(self, job: Job) -> int:
        return self.model_cache.largest(f"{job.model}@{job.version}", job.method)

    def _slice(self, claimed: list[Job]) -> list[SliceReport]:
        if not claimed:
            return []
        first = claimed[0]
        method, options = first.method, first.options
        try:
            loaded_model = self.model_cache.get(self._entry(first.model, first.version))
            slice_rows = loaded_model.plans[method].slice_rows
            claimed, parts = self._parts(claimed, max(1, slice_rows))
        except Exception as error:
            log.exception("job cannot run", extra={"jobs": [job.id for job in claimed]})
            return [SliceReport(job.claim, problem=_unloadable(error)) for job in claimed]
        if not parts:
            return []
        state = None if first.continuation is None else unpack(first.continuation)
        begun = time.perf_counter()
        answer = engine.run(loaded_model, method, options, parts, state, self._slice_s(method))
        self._count(method, sum(part.rows for part in parts), time.perf_counter() - begun)
        if isinstance(answer, engine.SliceResult):
            self._show(parts, answer)
        log.info("jobs", extra={"method": method, "request_ids": [part.request_id for part in parts]})
        reports = []
        for index, (job, part) in enumerate(zip(claimed, parts, strict=True)):
            report = SliceReport(job.claim, part.first, part.rows)
            if isinstance(answer, engine.SliceResult):
                carried = pack(answer.of(parts, index))
                reports.append(replace(report, continuation=carried, continuation_progress=answer.done))
                continue
            outcome = answer[index]
            if outcome.problem is not None:
                reports.append(replace(report, problem=outcome.problem))
                continue
            data = pack(outcome.fields)
            try:
                reports.append(replace(report, **self._stored(job, part, data)))
            except OSError as error:
                self._defer(job, error, len(data))
        return reports

    def _parts(self, claimed: list[Job], slice_rows: int) -> tuple[list[Job], list[Part]]:
        """The jobs whose inputs can be read, and their next rows; where the store is away, a job is put back."""
        found = []
        for job in claimed:
            try:
                found.append((job, self._part(job, slice_rows)))
            except FileNotFoundError:
                raise
            except OSError as error:
                self._defer(job, error)
        return [job for job, _ in found], [part for _, part in found]

    def _part(self, job: Job, slice_rows: int) -> Part:
        items: Items = {}
        first = job.next_row
        rows = job.rows if job.co_batched else min(slice_rows, job.rows - first)
        if BY_METHOD[job.method].tiled:
            layout = Layout.read(job.request)
            tiles = layout.tiles(partial(self.blobs.get, str(job.items_blob)), first, rows)
            return Part(job.id, job.seed, first, rows, {"images": tiles}, request_id=job.request_id)
        if job.items is not None:
            items = unpack(job.items)
        elif job.items_blob is not None:
            items = unpack(self.blobs.get(job.items_blob))
        mine = cut_items(items, job.rows_per_image, first, rows)
        return Part(job.id, job.seed, first, rows, mine, request_id=job.request_id)

    def _stored(self, job: Job, part: Part, data: bytes) -> dict[str, Any]:
        # the ledger is no place for a picture's thousands of tiles, however small each is
        if len(data) <= INLINE_BYTES and not BY_METHOD[job.method].tiled:
            return {"data": data}
        key = f"jobs/{job.id}/{job.token}-{part.first}"
        self.blobs.put(key, data)
        return {"blob_key": key}
=======
from core.broker.celery_app import RUN_BATCH, RUN_JOBS, app
from workers.inference.bootsteps import current_worker
from workers.inference.inline_task import InlineTask


@app.task(name=RUN_BATCH, base=InlineTask)  # type: ignore[untyped-decorator]
def run_batch(batch: bytes) -> None:
    """Run one time slice of a batch that an API process waits for."""
    current_worker().batches.run(batch)
>>>>>>> 401aab1 (One Celery application with tasks, bootsteps and a documented inline task; messages built by Celery's API; TLS, Sentinel and credentials for every connection)


@app.task(name=RUN_JOBS, base=InlineTask)  # type: ignore[untyped-decorator]
def run_jobs() -> None:
    """Claim the next jobs from the job store and run one time slice of them."""
    current_worker().jobs.run()
