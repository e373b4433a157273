"""The API process's side of the ledger: promises made, waited for, taken over and swept, never on the event loop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from uuid import uuid4

import orjson
import redis
import redis.asyncio
import sqlalchemy as sa

from api.batching.batch_sender import BatchSender, FailedError
from api.batching.requests import PendingRequest
from api.errors import OverloadedError, storage_error
from api.job_events import JobEvents
from api.requests import InferenceRequest
from core.blobs import Blobs, remove_tree
from core.broker.codec import Fields, joined, pack, unpack
from core.broker.connection import JOB_UPDATES, connect_async, entries, preview_key
from core.catalog.recipes import TRAINER_TIMEOUT_S, TRAINING_WAKEUP, TRAINING_WORKERS, StatePaths
from core.cleanup import Cleanup
from core.imaging.tiling import stored
from core.jobs.lease_reaper import LeaseReaper
from core.jobs.store import API_OWNER_PREFIX, TERMINAL, Done, Job, JobStore, new_id
from core.settings import Settings
from core.storage import INSUFFICIENT_STORAGE, storage_problem

log = logging.getLogger(__name__)
T = TypeVar("T")

INLINE_BYTES = 256 << 10
_POLL_S = 0.5
_LOOK_AGAIN_S = 5.0
"""Who waits for a job is woken when it changes, and looks all the same after this time."""


class JobService:
    """Jobs as routes see them; one writer thread a process, since SQLite takes one writer at a time."""

    def __init__(self, settings: Settings, job_store: JobStore, blobs: Blobs, batch_sender: BatchSender) -> None:
        """Prepare; nothing runs before `start`."""
        self._settings = settings
        self._job_store = job_store
        self._blobs = blobs
        self._outbox = batch_sender
        self._cleanup = Cleanup(settings, job_store, blobs)
        self._reaper = LeaseReaper(job_store, settings.job_lease_s, settings.max_attempts)
        self._name = f"{API_OWNER_PREFIX}{uuid4().hex[:12]}"
        self._writer = ThreadPoolExecutor(1, "ledger-writer")
        self._readers = ThreadPoolExecutor(4, "ledger-reader")
        self._pending: list[tuple[Job, asyncio.Future[None]]] = []
        self._adopted: dict[str, PendingRequest] = {}
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self.job_events = JobEvents(self.events, self.exists, self.preview)
        self._tasks: set[asyncio.Task[None]] = set()
        self.counts: dict[str, int] = {}

    async def start(self) -> None:
        """Begin to renew, reap, reconcile and listen."""
        self._redis = connect_async(self._settings)
        self._trainers = redis.asyncio.Redis.from_url(
            self._settings.training_queue, socket_timeout=15, socket_connect_timeout=2
        )
        for loop in (self._keep, self._listen_for_updates, self._poll, self._sweep):
            self._run(loop())

    async def stop(self) -> None:
        """Hand over what this process still holds, for workers to take at once."""
        self.job_events.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(Exception):
            await self._write(self._job_store.release, self._name)
        self._writer.shutdown()
        self._readers.shutdown()
        await self._redis.aclose()
        await self._trainers.aclose()

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, act: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, act, *args)

    async def _read(self, act: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, act, *args)

    # --- promises ---

    @property
    def full(self) -> bool:
        """Whether the ledger holds as many unfinished jobs as it may."""
        return sum(self.counts.values()) >= self._settings.max_queued_jobs

    async def add(self, inference_request: InferenceRequest, owner: str, request_id: str) -> Job:
        """Promise a job: its row is committed when this returns."""
        row = await self._row(inference_request, owner, request_id)
        done = asyncio.get_running_loop().create_future()
        self._pending.append((row, done))
        if len(self._pending) == 1:
            self._run(self._flush())
        async with self._stored_inputs(row):
            await done
        self._outbox.wake()
        return row

    @contextlib.asynccontextmanager
    async def _stored_inputs(self, row: Job) -> AsyncIterator[None]:
        """While a row is being committed: see that its stored inputs stay with it, or go if it is refused.

        A sweep that found them before the row was there may have taken them for an orphan's.
        """
        key = row["items_blob"]
        try:
            yield
        except sa.exc.SQLAlchemyError:
            if key is not None:
                await self._read(self._blobs.delete, f"jobs/{row['id']}")
            raise
        if key is not None and not await self._read(self._blobs.exists, key):
            await self._write(self._job_store.delete, row["id"])
            raise OverloadedError("the request was stored too slowly; send it again", headers={"Retry-After": "2"})

    async def _flush(self) -> None:
        """Commit all rows that came up while the last commit was under way, in one transaction."""
        while self._pending:
            taken, self._pending[:] = list(self._pending), []
            try:
                await self._write(self._job_store.add, [row for row, _ in taken])
            except Exception as error:  # noqa: BLE001 - each waiting request is told
                for _, done in taken:
                    if not done.done():
                        done.set_exception(error)
            else:
                for _, done in taken:
                    self._count("queued")
                    if not done.done():
                        done.set_result(None)

    def _count(self, status: str) -> None:
        """One more unfinished job, until the ledger is asked again."""
        self.counts[status] = self.counts.get(status, 0) + 1

    async def add_once(
        self, inference_request: InferenceRequest, owner: str, request_id: str, route: str, key: str
    ) -> tuple[str, str]:
        """Promise a job under an Idempotency-Key; answers the id and fingerprint of whichever request was first."""
        row = await self._row(inference_request, owner, request_id)
        keep_s = self._settings.idempotency_key_ttl_s
        async with self._stored_inputs(row):
            job_id, first = await self._write(
                self._job_store.add_once, row, route, key, inference_request.fingerprint, keep_s
            )
        if job_id == row["id"]:
            self._count("queued")
            self._outbox.wake()
        elif row["items_blob"]:
            await self._read(self._blobs.delete, f"jobs/{row['id']}")
        return job_id, first

    async def adopt(
        self, inference_request: InferenceRequest, call: PendingRequest, owner: str, request_id: str
    ) -> Job:
        """Turn a call that has waited too long into a job that this process goes on with, under its own lease.

        Inserted as queued it would run twice. If this process dies, the lease lapses and a worker takes the job over.
        """
        row = await self._row(inference_request, owner, request_id)
        lease = {"lease_owner": self._name, "lease_until": time.time() + self._settings.job_lease_s}
        row |= {"status": "running", "token": 1, "started_at": time.time(), **lease}
        async with self._stored_inputs(row):
            await self._write(self._job_store.add, [row])
        self._count("running")
        self._adopted[row["id"]] = call
        self._run(self._complete_job(row, call))
        return row

    async def _complete_job(self, row: Job, call: PendingRequest) -> None:
        job_id = row["id"]
        report, size_bytes = Done(job_id, 1), 0
        blocked: dict[str, Any] | None = None
        try:
            fields = await call.result
            data = pack(fields)
            stored: dict[str, Any] = {"part": data}
            if len(data) > INLINE_BYTES:
                size_bytes, stored = len(data), {"blob": f"jobs/{job_id}/1-0"}
                await self._read(self._blobs.put, stored["blob"], data)
            report = Done(job_id, 1, 0, call.rows, **stored)
        except FailedError as error:
            blocked = error.problem if error.problem["status"] == INSUFFICIENT_STORAGE else None
            report = Done(job_id, 1, problem=error.problem)
        except OSError as error:
            log.warning("result not stored", extra={"job": job_id, "reason": str(error)})
            blocked = storage_problem(error)
        except asyncio.CancelledError:
            if not call.result.cancelled():
                raise  # this process stops
            self._adopted.pop(job_id, None)
            return
        if blocked is None:
            await self._insist(job_id, lambda: self._job_store.settle([report]))
        else:  # a worker takes it up when there may be room
            wait_s = self._settings.storage_wait_s
            await self._insist(job_id, lambda: self._job_store.defer(job_id, 1, blocked, wait_s, size_bytes))
        self._adopted.pop(job_id, None)
        self._tell(job_id)

    async def _insist(self, job_id: str, act: Callable[[], object]) -> None:
        """Write what became of an adopted job, however often that must be tried."""
        while True:
            try:
                await self._write(act)
            except sa.exc.OperationalError as error:
                log.warning("database not written", extra={"job": job_id, "reason": str(error.orig)})
                await asyncio.sleep(_POLL_S)
            else:
                return

    async def _row(self, inference_request: InferenceRequest, owner: str, request_id: str) -> Job:
        tiled = inference_request.operation.tiled
        items = pack(inference_request.items) if inference_request.items and not tiled else None
        row: Job = {
            "id": new_id(),
            "kind": inference_request.operation.path,
            "owner": owner,
            "status": "queued",
            "model": inference_request.entry.name,
            "version": inference_request.entry.version,
            "method": inference_request.operation.method,
            "options": orjson.dumps(inference_request.options, option=orjson.OPT_SORT_KEYS).decode(),
            "request": orjson.dumps(inference_request.summary).decode(),
            "request_id": request_id,
            "seed": inference_request.seed,
            "rows": inference_request.rows,
            "items": items,
            "items_blob": None,
            "per": inference_request.per,
            "token": 0,
            "lease_owner": None,
            "lease_until": None,
            "shared": False,
            "started_at": None,
            "turn": time.time(),
            "created_at": time.time(),
        }
        if inference_request.photograph is not None:
            items = await self._read(stored, inference_request.photograph)
        if items is not None and (tiled or len(items) > INLINE_BYTES):
            row |= {"items": None, "items_blob": f"jobs/{row['id']}/items"}
            try:
                await self._read(self._blobs.put, row["items_blob"], items)
            except OSError as error:
                raise storage_error(error) from error
        return row

    async def works_on(self, model: str) -> bool:
        """Return whether a job that has not ended names this model."""
        return bool(await self._read(self._job_store.unfinished_of, model, ""))

    # --- what is the training worker's ---

    async def look(self, act: Callable[[JobStore], T]) -> T:
        """What the ledger says."""
        return await self._read(act, self._job_store)

    async def change(self, act: Callable[[JobStore], T]) -> T:
        """Write to the ledger, in turn with everybody else."""
        return await self._write(act, self._job_store)

    async def rouse(self, job_id: str) -> None:
        """Tell whoever waits for a job, and the training workers, that there is something to do."""
        self._tell(job_id)
        with contextlib.suppress(redis.RedisError, OSError):  # they ask the ledger anyway
            async with self._trainers.pipeline() as line:
                line.lpush(
                    TRAINING_WAKEUP, *[job_id] * 8
                )  # whichever threads of the training workers wait; most find nothing
                line.ltrim(TRAINING_WAKEUP, 0, 15)
                await line.execute()

    async def training_devices(self) -> int | None:
        """The most devices that a live training worker says it has; None where none is alive or has said so yet.

        Raises redis.RedisError and OSError.
        """
        found: Any = await self._trainers.hgetall(TRAINING_WORKERS)
        heartbeats = [unpack(data) for data in found.values()]
        live = [one for one in heartbeats if time.time() - one["at"] < TRAINER_TIMEOUT_S]
        return max((one["devices"] for one in live if one.get("devices")), default=None)

    # --- looking ---

    async def get(self, job_id: str, owner: str) -> Job | None:
        """A job of this owner's, or None."""
        job = await self._read(self._job_store.get, job_id, owner)
        call = self._adopted.get(job_id)
        return {**job, "progress": max(job["progress"], call.progress)} if job and call else job

    async def listing(self, owner: str, filters: dict[str, str], after: str | None, limit: int) -> list[Job]:
        """Jobs of this owner's, newest first."""
        return await self._read(self._job_store.listing, owner, filters, after, limit)

    async def wait(self, job_id: str, owner: str, timeout_s: float) -> Job | None:
        """The job once it has ended, or as it stands when the time is up."""
        until = time.monotonic() + timeout_s
        async for job in self._watch(job_id, owner):
            left = until - time.monotonic()
            if job is None or job["status"] in TERMINAL or left <= 0:
                return job
            await self._changed(job_id, min(left, _LOOK_AGAIN_S))
        return None

    async def _watch(self, job_id: str, owner: str) -> AsyncIterator[Job | None]:
        while True:
            yield await self.get(job_id, owner)

    async def events(self, job_id: str, seq: int) -> list[Job]:
        """Events with a number above `seq`."""
        return await self._read(self._job_store.events_after, job_id, seq)

    async def _changed(self, job_id: str, timeout_s: float) -> None:
        """Return when there is news of a job, or after the time."""
        event = asyncio.Event()
        self._listeners.setdefault(job_id, set()).add(event)
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            listeners = self._listeners[job_id]
            listeners.discard(event)
            if not listeners:
                del self._listeners[job_id]

    async def exists(self, job_id: str) -> bool:
        """Whether a job is there still."""
        return bool(await self._read(self._job_store.last_events, [job_id]))

    async def preview(self, job_id: str) -> bytes | None:
        """A PNG of what a running job's pictures look like so far, if a worker has shown any lately."""
        call = self._adopted.get(job_id)
        try:
            found: Any = await self._redis.get(preview_key(call.id if call else job_id))
        except (redis.RedisError, OSError):
            return None
        return found if isinstance(found, bytes) else None

    async def fields(self, job: Job) -> Fields:
        """What a succeeded job computed. Raises LookupError if it was dropped."""

        def load() -> Fields:
            pieces = list(self.pieces(job))
            if not pieces:
                raise LookupError(f"{job['id']} has no result any more")
            return joined(pieces)

        return await self._read(load)

    def pieces(self, job: Job) -> Iterator[Fields]:
        """What a succeeded job computed, one slice after the other; for a thread. Raises LookupError."""
        for data, key in self._job_store.result(job["id"]):
            try:
                yield unpack(data if data is not None else self._blobs.get(str(key)))
            except FileNotFoundError as error:
                raise LookupError(f"{job['id']} has no result any more") from error

    # --- ending ---

    async def cancel(self, job_id: str) -> bool:
        """End a job that has not ended; answers whether this call did."""
        ended = await self._write(self._job_store.cancel, job_id)
        call = self._adopted.pop(job_id, None)
        if call is not None:
            self._outbox.drop(call)
        self._tell(job_id)
        return ended

    async def delete(self, job_id: str) -> None:
        """Forget an ended job and all it left: files first, so that a full disk has room for the rest.

        What a worker writes to it even later is swept.
        """
        await self._read(self._blobs.delete, f"jobs/{job_id}")
        await self._read(remove_tree, StatePaths(self._settings.state).run(job_id))
        await self._write(self._job_store.delete, job_id)

    def _tell(self, job_id: str) -> None:
        self.job_events.wake(job_id)
        for event in self._listeners.get(job_id, ()):
            event.set()

    # --- keeping promises ---

    async def _listen_for_updates(self) -> None:
        """Wake whoever waits for a job that a worker says has changed; the store is polled anyway."""
        last: bytes | str = "$"
        while True:
            try:
                found = await self._redis.xread({JOB_UPDATES: last}, count=256, block=5000)
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.2)
                continue
            for entry_id, values in entries(found):
                last = entry_id
                for job_id in unpack(values[b"ids"]):
                    self._tell(job_id)

    async def _poll(self) -> None:
        """Wake whoever waits for a job that has changed without a hint: one query for all of them, twice a second."""
        known: dict[str, int] = {}
        while True:
            await asyncio.sleep(_POLL_S)
            watched = {*self._listeners, *self.job_events.watched}
            try:
                last = await self._read(self._job_store.last_events, watched) if watched else {}
            except sa.exc.SQLAlchemyError:
                continue
            changed = [job_id for job_id in watched if known.get(job_id) != last.get(job_id, 0)]
            known = {job_id: last.get(job_id, 0) for job_id in watched}
            for job_id in changed:
                self._tell(job_id)

    async def _keep(self) -> None:
        """Renew this process's leases, give back lapsed ones, and remind the workers of jobs nobody took."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.job_lease_s / 3))
            try:
                if self._adopted:
                    await self._write(self._job_store.renew, self._name, self._settings.job_lease_s)
                    reached = {job_id: call.progress for job_id, call in self._adopted.items() if call.progress}
                    await self._write(self._job_store.progress, self._name, reached)
                given_back = await self._write(self._reaper.reap)
                for job_id in given_back:
                    log.warning("lease lapsed", extra={"job": job_id})
                    self._tell(job_id)
                self.counts = await self._read(self._job_store.counts)
                waiting = await self._read(self._job_store.claimable, 1.0)
                if waiting and (await self._outbox.queue_lengths())["bulk"] == 0:
                    for _ in range(min(waiting, max(1, len(self._outbox.live_workers())))):
                        self._outbox.wake()
            except (redis.RedisError, OSError):
                continue
            except Exception:
                log.exception("keeping the ledger")

    async def _sweep(self) -> None:
        """Drop what has expired, the oldest results over the quota, and files that belong to nothing."""
        while True:
            await asyncio.sleep(self._settings.sweep_s)
            try:
                await asyncio.to_thread(self._cleanup.run)
            except Exception:
                log.exception("sweeping")
