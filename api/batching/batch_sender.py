"""Sends the batches of one API process to the workers, and completes the waiting requests.

While few batches are in flight, waiting rows are sent at once; while many are in flight, rows
collect for the next batch. So a request on an idle service does not wait, and batches grow under
load. A slice is the part of a request's rows that one batch contains. If the worker of a batch
dies, each slice of the batch is sent again in its own batch; if a slice is completed twice, the
first completion counts. `api.batching.scheduler` decides which rows go into a batch. A device kind
(device, processor, torch version, threads) is a class of workers whose results are bit-identical.
A worker group is the set of workers with the same device kind and the same `REVERIE_MODELS`.

This file has more than 400 lines because the methods that send, complete and resend a batch share
its state.
"""

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import orjson
import redis

from api.batching.batch_spans import batch_ended, batch_sent, observe_queue_time
from api.batching.fleet import ANY_KIND
from api.batching.large_results import LargeResults, discard_rows, take_result
from api.batching.requests import InFlightBatch, PendingRequest, RequestSlice, ResultWaits
from api.batching.scheduler import UNKNOWN_CAPACITY, BatchScheduler, Limits
from api.batching.worker_monitor import REJECTION_S, WorkerMonitor
from api.errors import OverloadedError
from core.blobs import Blobs
from core.broker.codec import Batch, Fields, unpack
from core.broker.connection import connect_async
from core.broker.keys import (
    DRAIN_TTL_S,
    QUEUES,
    WORKERS,
    QueueName,
    catalog_key,
    drain_key,
    dropped_key,
    new_completion_stream,
    queue_key,
    started_key,
)
from core.broker.pipelined_connection import PipelinedConnection
from core.broker.publisher import Command, publish_batch, wake_inference_workers
from core.settings import HEARTBEAT_S, Settings, StatePaths
from core.storage import storage_problem

log = logging.getLogger(__name__)

_RETRY_S = 0.25
_BLOCK_S = 5.0
_STOP_S = 2.0
_KEEP_LATE = 1000

# After so many bytes, completions are removed from their stream as soon as they are read; otherwise
# five times a second, with the check of the workers.
_TRIM_BYTES = 4 << 20

_MOVE_S = 2.0  # so long requests take to move to another device kind, at most

_NO_WORKER_RETRY_S = 5  # of responses that say that no worker can run a model

# A job of fewer time slices (ten seconds of one worker) is run by one worker. The rows of a spread
# job pass through this process, which takes less of its time the longer a worker computes a row.
_SPREAD_SLICES = 250

_JOIN_INLINE_CHUNKS = 16  # more chunks than this are joined in a thread


class FailedError(Exception):
    """Raised if the model or its worker failed; `problem` are the RFC 9457 problem details."""

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail", ""))
        self.problem = problem


class BatchSender:
    """Sends the requests of one API process to the workers in batches, and receives the results.

    Call all methods on the event loop that has called `start`.
    """

    def __init__(self, settings: Settings, blobs: Blobs) -> None:
        """Create empty queues of requests. Nothing is sent before `start` is called."""
        self._settings, self._blobs = settings, blobs
        self._large_results = LargeResults(StatePaths(settings.state).unfinished)
        self._stream = new_completion_stream()
        limits = Limits(settings.max_waiting, settings.key_waiting_requests, settings.key_waiting_rows)
        self._scheduler, self._monitor = BatchScheduler(limits), WorkerMonitor(settings.heartbeat_timeout_s)
        self._late: OrderedDict[str, InFlightBatch] = OrderedDict()
        self._read_bytes, self._read_until = 0, ""
        self._wakeup: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._dispatching: set[QueueName] = set()
        self._paused_until, self.resent = 0.0, 0
        self._lost: dict[tuple[str, str], float] = {}  # since when no worker can run a version on a device kind

    # --- start and stop ---

    async def start(self) -> None:
        """Connect to the queue server, and start to send batches and to receive completions."""
        self._loop = asyncio.get_running_loop()
        self._redis = connect_async(self._settings)
        self._sending, self._receiving = (PipelinedConnection(self._settings.queue_url) for _ in range(2))
        self._waits = ResultWaits(self._loop)
        self._tasks = {asyncio.create_task(self._read()), asyncio.create_task(self._watch())}

    async def stop(self) -> None:
        """Stop sending and receiving, and close the connections; waiting requests get no result."""
        self._cancel_wakeup()
        self._waits.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(redis.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_STOP_S):
                # not deleted: a late completion would create it again, without an expiry
                await self._redis.xtrim(self._stream, maxlen=0, approximate=False)
                await self._redis.expire(self._stream, 60)
        with contextlib.suppress(redis.RedisError, OSError):
            await self._redis.aclose()
        self._sending.close()
        self._receiving.close()

    # --- what routes use ---

    @property
    def waiting(self) -> int:
        """Number of requests without a complete result, including those in flight."""
        return len(self._scheduler)

    def usage(self, owner: str) -> dict[str, int]:
        """Return an owner's present use of the limits on waiting requests, keyed by limit.

        `waiting_requests` is the number of the owner's requests that have no complete result.
        `waiting_rows` is the total number of rows of those requests that are on the bulk queue,
        including rows that are already computed.
        """
        return self._scheduler.usage(owner)

    def live_workers(self) -> dict[str, dict[str, Any]]:
        """Return the heartbeats of live workers, keyed by worker id."""
        return self._monitor.live()

    def submit(self, request: PendingRequest) -> None:
        """Queue a request for the next batches, and give it a new future, `request.result`.

        Chooses the device kind of the request. Raises QueueFullError if a limit on waiting requests
        is reached, and OverloadedError if no worker can run the request's version.
        """
        request.device_kind = self._device_kind(request.entry.ref)
        self._scheduler.submit(request)
        request.result = self._loop.create_future()
        if request.queue not in self._dispatching:
            # after this iteration of the event loop, so that requests that arrive together share a
            # batch
            self._dispatching.add(request.queue)
            self._loop.call_soon(self._dispatch, request.queue)

    def device_kind(self, ref: str) -> str | None:
        """Choose the device kind for a new job of a version: the one with the fewest waiting
        requests.

        `ref` is `name@version`. The requests are counted per worker of the kind. Returns None if no
        worker can run the version now, or if the workers report no device kind.
        """
        kinds = self._scheduler.fleet.kinds(ref)
        return (self._least_loaded(ref, kinds) or None) if kinds else None

    def should_spread(self, ref: str, method: str, rows: int) -> bool:
        """Return whether several workers should compute a job together, because it has many rows.

        That is so if one worker would compute the job for about ten seconds or longer (250 time
        slices: a time slice is the time that a worker gives to one batch before it takes the next
        message), and if more than one worker of the job's device kind can run the version. `method`
        is the model's name for the operation.
        """
        kind = self.device_kind(ref)
        route = None if kind is None else self._scheduler.fleet.route(ref, kind)
        _, slice_rows = self._scheduler.capacity.get((kind or ANY_KIND, ref, method), UNKNOWN_CAPACITY)
        return route is not None and route.workers > 1 and rows >= _SPREAD_SLICES * slice_rows

    def is_listed(self, ref: str) -> bool:
        """Return whether a live worker has a version in its catalog; True while no catalog is
        known.
        """
        states = self._scheduler.fleet.states
        return not states or any(state.lists(ref) for state in states)

    def missing_worker(self, ref: str, kind: str | None = None) -> str:
        """Return the reason why no live worker can run a version; "" if a worker can.

        With `kind`, only workers of this device kind count.
        """
        if not self._monitor.live():
            return "no inference worker is running"
        if self._scheduler.fleet.can_run(ref, kind or ANY_KIND):
            return ""
        return f"no inference worker that runs has {ref}" + (f" and is of device kind {kind}" if kind else "")

    def lost_kind(self, ref: str, kind: str) -> bool:
        """Return whether to move the work for a version from the device kind `kind` to another one.

        That is so if workers of another kind can run the version, and for `device_wait_s` seconds
        no live worker of `kind` has been able to run it.
        """
        fleet = self._scheduler.fleet
        if not fleet.kinds(ref) or fleet.can_run(ref, kind) or not self._monitor.live():
            self._lost.pop((ref, kind), None)
            return False
        since = self._lost.setdefault((ref, kind), time.monotonic())
        return time.monotonic() - since >= self._settings.device_wait_s

    def _device_kind(self, ref: str) -> str:
        """Choose the device kind for a request; `ANY_KIND` while no worker that can run it is
        known.

        Raises OverloadedError if workers run, but no worker that can run the version is alive or
        was alive recently.
        """
        fleet, kind = self._scheduler.fleet, self.device_kind(ref)
        if kind is None and len(fleet) and not fleet.kinds(ref) and not self._monitor.may_return(ref):
            raise OverloadedError(_no_worker(ref), retry_after_s=_NO_WORKER_RETRY_S)
        return kind or ANY_KIND  # chosen when there is a worker

    def _least_loaded(self, ref: str, kinds: tuple[str, ...]) -> str:
        """Return the one of `kinds`, at least one, that has the fewest waiting requests per worker."""
        if len(kinds) == 1:
            return kinds[0]
        waiting: dict[str, int] = dict.fromkeys(kinds, 0)
        for (_, kind), number in self._scheduler.waiting_by_kind.items():
            if kind in waiting:
                waiting[kind] += number
        workers = self._scheduler.fleet.workers_by_kind(ref)
        return min(kinds, key=lambda kind: waiting[kind] / workers[kind])

    async def wait(self, request: PendingRequest) -> Fields:
        """Wait at most a second for the result of a request, and return it, keyed by field.

        Raises FailedError if the model or its worker failed, and StillWaitingError if there is no
        result after a second; the caller may then call this again.
        """
        return await self._waits.wait(request)

    def drop(self, request: PendingRequest) -> None:
        """Cancel a request; do nothing if it has ended.

        The request's unsent rows are not sent. If no other request has rows in a batch of this
        request, the batch is stopped: workers skip it if it is on the queue, and a worker that runs
        a long operation for it ends the operation after its present time slice (the time that a
        worker gives to one batch before it takes the next message).
        """
        if request not in self._scheduler:
            return
        abandoned = self._scheduler.cancel(request)
        request.result.cancel()
        discard_rows(request)
        self._stop(abandoned)

    def _stop(self, batches: list[InFlightBatch]) -> None:
        """Make the workers skip or end batches that no waiting request needs; forget the batches."""
        for batch in batches:
            self._later(self._redis.set(dropped_key(batch.id), 1, ex=600))
            self._finish(batch)

    async def drain_workers(self, worker_ids: list[str], reason: str) -> None:
        """Make inference workers finish their work and exit, as at SIGTERM.

        Their supervisor then starts new ones. `reason` goes to the workers' logs. Raises RedisError
        while the queue server is unreachable.
        """
        for worker_id in worker_ids:
            await self._redis.set(drain_key(worker_id), reason, ex=DRAIN_TTL_S)

    def wake(self, ref: str, kind: str | None = None) -> None:
        """Send a message by which an inference worker that can run a version looks for a queued
        job.

        With `kind`, the worker is of this device kind. If the message is lost, the job service
        sends another one later.
        """
        fleet = self._scheduler.fleet
        route = fleet.route(ref, kind or ANY_KIND)
        if route is not None:
            self._later(self._send(wake_inference_workers(route.preferred[0].name)))
        elif not len(fleet):
            self._later(self._send(wake_inference_workers()))

    async def wake_idle(self, most: int) -> None:
        """Send each worker group messages that make its workers look for queued jobs.

        Each message is for one worker, and a group is sent at most `most`. Groups that have
        messages on their bulk queue are left out. Raises RedisError while the queue server is
        unreachable.
        """
        groups = self._scheduler.fleet.groups or {"": 1}
        lengths = await self._lengths([queue_key("bulk", group) for group in groups])
        for (group, workers), length in zip(groups.items(), lengths, strict=True):
            for _ in range(0 if length else min(most, workers)):
                self._later(self._send(wake_inference_workers(group)))

    async def ping(self) -> bool:
        """Return whether the queue server replies to a PING."""
        try:
            return bool(await self._redis.ping())
        except (redis.RedisError, OSError):
            return False

    async def queue_lengths(self) -> dict[QueueName, int]:
        """Return the number of messages on each queue, of all workers together, keyed by queue
        name.

        Raises RedisError while the queue server is unreachable.
        """
        targets = {"", *self._scheduler.fleet.targets}
        names = [(queue, queue_key(queue, target)) for queue in QUEUES for target in targets]
        totals: dict[QueueName, int] = dict.fromkeys(QUEUES, 0)
        for (queue, _), length in zip(names, await self._lengths([key for _, key in names]), strict=True):
            totals[queue] += length
        return totals

    async def _lengths(self, keys: list[str]) -> list[int]:
        """Return the lengths of the Redis lists with these keys, in the same order."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.llen(key)
            return [int(length) for length in await pipeline.execute()]

    # --- sending ---

    def _dispatch(self, queue: QueueName) -> None:
        """Form all batches of a queue that may be sent now, and send them.

        If requests that may share a batch should wait for more rows, sets a timer that sends the
        interactive batches when the wait ends, unless the timer is already set to an earlier time.
        """
        self._dispatching.discard(queue)
        if time.monotonic() < self._paused_until:
            return
        while (batch := self._scheduler.next_batch(queue)) is not None:
            name, version, method, options, kind = batch.key[:5]
            model, slices = (name, version, method), [part.to_wire() for part in batch.slices]
            message = Batch(batch.id, self._stream, *model, orjson.loads(options), slices, isolated=batch.isolated)
            message.traceparent, message.device_kind, message.target = batch_sent(batch), kind, batch.target.name
            self._later(self._send(publish_batch(batch.sent_to, message.pack(), batch.target.name), batch))
        if self._scheduler.wakeup_at is not None:
            delay = self._scheduler.wakeup_at + 0.0005 - time.monotonic()
            if self._wakeup is None or self._loop.time() + delay < self._wakeup.when():
                self._cancel_wakeup()
                self._wakeup = self._loop.call_later(delay, self._wake_up)

    def _cancel_wakeup(self) -> None:
        """Cancel the timer that was set by `_dispatch`, if there is one."""
        if self._wakeup is not None:
            self._wakeup.cancel()

    def _wake_up(self) -> None:
        """Send interactive batches that were held back to collect more rows.

        Called by the timer `_wakeup`, which `_dispatch` sets.
        """
        self._wakeup = None
        self._dispatch("interactive")

    async def _send(self, command: Command, batch: InFlightBatch | None = None) -> None:
        """Send a command to the queue server.

        `batch` is the batch that the command publishes, if there is one. If the command fails, the
        rows of `batch` are queued again, and sending pauses for `_RETRY_S` seconds; a command
        without a batch is not repeated.
        """
        try:
            await self._sending.command(*command)
        except (redis.RedisError, OSError) as error:
            log.warning("not sent", extra={"queue": command[1], "reason": str(error)})
            if batch is not None and batch.id in self._scheduler.in_flight:
                self._paused_until = time.monotonic() + _RETRY_S
                self._loop.call_later(_RETRY_S + 0.01, self._dispatch, batch.queue)
                self._requeue(batch, isolate=False)

    def _requeue(self, batch: InFlightBatch, *, isolate: bool) -> None:
        """Queue the slices of a batch again; with `isolate`, each slice is then a batch of its own.

        The batch is kept in `_late`: if a worker completes it nevertheless, the results are
        accepted.
        """
        # after a time-out the server may have the message all the same: a late completion is
        # accepted
        self._late[batch.id] = batch
        while len(self._late) > _KEEP_LATE:
            self._late.popitem(last=False)
        self._scheduler.requeue(batch, isolate=isolate)
        batch_ended(batch)
        for queue in QUEUES:
            self._dispatch(queue)

    def _finish(self, batch: InFlightBatch) -> None:
        """Forget a batch that has ended, and send the next batches of its queue."""
        self._scheduler.finish_batch(batch)
        batch_ended(batch)
        self._late.pop(batch.id, None)
        self._dispatch(batch.queue)

    # --- completions ---

    async def _read(self) -> None:
        """Read completions from this process's stream and handle them, until cancelled."""
        last: bytes | str = "0"
        words = ("XREAD", "COUNT", "64", "BLOCK", str(int(_BLOCK_S * 1000)), "STREAMS", self._stream)
        while True:
            try:
                found = await self._receiving.command(*words, last, timeout_s=_BLOCK_S + 5)
            except (redis.RedisError, OSError):
                await asyncio.sleep(0.1)
                continue
            for entry_id, (_, data) in found[0][1] if found else ():
                last = entry_id
                self._read_until, self._read_bytes = entry_id.decode(), self._read_bytes + len(data)
                try:
                    await self._handle_completion(data)
                except Exception:
                    log.exception("completion not understood")
            if self._read_bytes > _TRIM_BYTES:
                self._later(self._trim())

    async def _trim(self) -> None:
        """Delete the completions that were read already from the stream on the queue server."""
        milliseconds, _, number = self._read_until.partition("-")
        self._read_bytes = 0
        await self._sending.command("XTRIM", self._stream, "MINID", f"{milliseconds}-{int(number) + 1}")

    async def _handle_completion(self, data: bytes) -> None:
        """Handle a message of a worker about one batch: its progress, its results, or its
        rejection.

        `data` is packed by MessagePack. A large message is in the blob store, and `data` has its
        key. Messages about unknown batches are ignored.
        """
        completion = unpack(data)
        if "blob" in completion:
            key = completion["blob"]
            completion = unpack(await asyncio.to_thread(self._blobs.get, key))
            self._later(asyncio.to_thread(self._blobs.delete, key))
        batch = self._scheduler.in_flight.get(completion["batch"]) or self._late.get(completion["batch"])
        if batch is None:
            return
        batch.last_seen, batch.worker, batch.missed_checks = time.monotonic(), completion["worker"], 0
        observe_queue_time(batch, completion.get("took", 0.0))
        if completion["kind"] == "progress":
            self._scheduler.record_progress(batch, completion["done"])
            self._dispatch("interactive")
        elif completion["kind"] == "done":
            took_s, multithreaded = completion.get("took", 0.0), completion.get("wide", False)
            self._scheduler.record_duration(batch, took_s, multithreaded=multithreaded)
            for part, outcome in zip(batch.slices, completion["outcomes"], strict=True):
                if part.outdated:
                    continue
                if part.rows < part.request.rows and outcome.get("fields"):
                    outcome["fields"] = await self._large_results.move_to_disk(part, outcome["fields"])
                self._complete(part, batch, outcome)
            self._finish(batch)
        elif completion["kind"] == "rejected" and batch.id in self._scheduler.in_flight:
            self._handle_rejection(batch, completion["worker"], completion["reason"], lacks=completion["lacks"])

    def _handle_rejection(self, batch: InFlightBatch, worker_id: str, reason: str, *, lacks: bool) -> None:
        """Send a batch to another worker, because the worker `worker_id` cannot run it.

        `lacks` says that this worker cannot run any batch of the version; then no batches of the
        version are sent to this worker for a while. If no worker can run the version, the requests
        of the batch fail.
        """
        log.warning("batch rejected", extra={"batch": batch.id, "worker": worker_id, "reason": reason})
        ref = f"{batch.key[0]}@{batch.key[1]}"
        if lacks:
            # where another device kind can run the version, long enough that the requests move to it
            others = set(self._scheduler.fleet.kinds(ref)) - {batch.key[4]}
            rejected_s = max(REJECTION_S, self._settings.device_wait_s + _MOVE_S) if others else REJECTION_S
            self._monitor.reject(worker_id, ref, rejected_s)
            if others:  # workers of the kind reject it one after another, each when it has tried to read it
                self._monitor.extend_rejections(ref, batch.key[4], rejected_s)
            self._scheduler.fleet = self._monitor.fleet()
        if self._scheduler.fleet.kinds(ref):
            self._requeue(batch, isolate=False)
            return
        # the reason is internal, so only the log has it
        problem = {"type": "about:blank", "title": "Overloaded", "status": 503, "detail": _no_worker(ref)}
        self._finish(batch)
        for part in batch.slices:
            if not part.outdated:
                self._fail(part.request, problem)

    def _complete(self, part: RequestSlice, batch: InFlightBatch, outcome: dict[str, Any]) -> None:
        """Store the outcome of `part`, a slice of `batch`.

        `outcome` has the result (`fields`), or the `problem` with which the slice's request fails.
        The request is completed when all of its slices have results.
        """
        request = part.request
        if part.outdated:
            return
        if (problem := outcome.get("problem")) is not None:
            self._fail(request, problem)
        elif self._scheduler.add_chunk(batch, part, outcome["fields"]) and not request.result.done():
            chunks, join = len(request.chunks), take_result(request)
            if chunks <= _JOIN_INLINE_CHUNKS:
                _set_result(request, join)
            else:
                self._later(self._join(request, join))

    @staticmethod
    async def _join(request: PendingRequest, join: Callable[[], Fields]) -> None:
        """Call `join`, which joins the slices' results, in a thread; set the request's result."""
        joined = asyncio.get_running_loop().run_in_executor(None, join)
        await asyncio.wait([joined])
        if not request.result.done():
            _set_result(request, joined.result)

    def _fail(self, request: PendingRequest, problem: dict[str, Any]) -> None:
        """Set FailedError as the outcome of a request, and cancel its remaining rows.

        Does nothing if the request has ended.
        """
        if request not in self._scheduler:
            return
        if not request.result.done():
            request.result.set_exception(FailedError(problem))
        self.drop(request)

    # --- heartbeats ---

    async def _watch(self) -> None:
        """Read the workers' heartbeats five times a second, and resend lost batches, until
        cancelled.

        Also updates the scheduler's list of workers and their largest batches, and deletes the
        heartbeats and queues of workers whose heartbeat has not changed for
        `worker_monitor.FORGET_S` seconds.
        """
        while True:
            await asyncio.sleep(HEARTBEAT_S / 2)
            try:
                await self._read_heartbeats()
                await self._redis.expire(self._stream, 3600)
                if self._read_bytes:
                    await self._trim()
            except (redis.RedisError, OSError):
                # without the queue server, silence of a worker means nothing
                for batch in self._scheduler.in_flight.values():
                    batch.last_seen = time.monotonic()
                continue
            except Exception:
                log.exception("reading the heartbeats")
                continue
            try:
                self._forget_late_batches()
                self._scheduler.capacity.update(self._monitor.capacity())
                self._scheduler.fleet = self._monitor.fleet()
                self._replace_kinds()
                await self._check_in_flight()
                for queue in QUEUES:
                    self._dispatch(queue)
                for name in self._monitor.silent():
                    self._later(self._redis.hdel(WORKERS, name))
                    self._later(self._redis.delete(*(queue_key(queue, name) for queue in QUEUES)))
            except Exception:
                log.exception("watching the workers")

    async def _read_heartbeats(self) -> None:
        """Pass the workers' heartbeats to the worker monitor, with the catalogs that it lacks.

        A catalog is the list of the versions that a worker knows. A heartbeat has only the digest
        of the worker's catalog, by which the catalog is read from the queue server.
        """
        started = time.monotonic()
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.hgetall(WORKERS)
            (seconds, microseconds), heartbeats = await pipeline.execute()
        self._monitor.update(heartbeats, seconds + microseconds / 1e6)
        now = time.monotonic()
        if now - started > HEARTBEAT_S:  # the queue server or this process was suspended
            self._monitor.excuse(now - started)
            for batch in self._scheduler.in_flight.values():
                batch.last_seen = min(now, batch.last_seen + now - started)
        for digest in self._monitor.missing_catalogs():
            packed = await self._redis.get(catalog_key(digest))
            if isinstance(packed, bytes):
                self._monitor.add_catalog(digest, unpack(packed))

    def _replace_kinds(self) -> None:
        """Choose a device kind for waiting requests that have none, or whose kind has no worker
        left.

        A request whose kind is replaced begins again at its first row, so that workers of one kind
        compute all of its rows.
        """
        self._lost = {key: since for key, since in self._lost.items() if not self._scheduler.fleet.can_run(*key)}
        for ref, kind in list(self._scheduler.waiting_by_kind):
            if kind == ANY_KIND:
                moved = [one for one in self._scheduler.waiting_on(ref, kind) if one.unsent_rows == one.rows]
            elif self.lost_kind(ref, kind):
                moved = self._scheduler.waiting_on(ref, kind)
            else:
                continue
            kinds = self._scheduler.fleet.kinds(ref)
            if not kinds or kinds == (kind,):
                continue
            for request in moved:
                log.info("device kind chosen", extra={"request_id": request.request_id, "before": kind})
                discard_rows(request)
                self._stop(self._scheduler.restart(request, self._least_loaded(ref, kinds)))

    def _forget_late_batches(self) -> None:
        """Delete the records of resent batches whose requests have all ended, to free memory.

        While a request of such a batch waits, the record is kept, because a worker may still
        complete the first copy of the batch.
        """
        for batch in list(self._late.values()):
            if not any(part.request in self._scheduler for part in batch.slices):
                del self._late[batch.id]

    async def _check_in_flight(self) -> None:
        """Resend the batches that were lost: no live worker runs them, and they are not on a queue.

        Only batches that no worker has reported within the heartbeat time-out are checked. Such a
        batch is lost if the worker that started it is dead, if no worker reads the queue to which
        it was sent any more, or if two of these checks in a row find that queue empty or a worker
        that has started the batch and does not run it any more. A batch with progress is not lost
        if its worker has exited cleanly: the worker has finished its time slice, and has left the
        batch on the bulk queue of the target or of the target's group.
        """
        now, live = time.monotonic(), self._monitor.live()
        running = {batch_id: name for name, payload in live.items() for batch_id in payload["running"]}
        for batch in list(self._scheduler.in_flight.values()):
            if batch.id in running:
                batch.last_seen, batch.worker, batch.missed_checks = now, running[batch.id], 0
            if now - batch.last_seen < self._settings.heartbeat_timeout_s:
                continue
            if batch.worker is None:
                found = await self._redis.get(started_key(batch.id))
                if isinstance(found, bytes):
                    # the batch was started after waiting on the queue: whether its worker is alive
                    # is known after one more time-out
                    batch.last_seen, batch.worker = now, found.decode()
                    continue
            # a worker that continues a long operation has put its batch on a queue again
            continued = batch.progress > 0
            died = (
                batch.worker is not None
                and batch.worker not in live
                and not (continued and self._monitor.has_exited(batch.worker))
            )
            targets = {batch.target.name, *([batch.target.group] if continued else [])}
            unread = bool(live) and not any(self._scheduler.fleet.has_target(name) for name in targets)
            if (batch.worker is None or continued) and not (died or unread):
                lengths = await self._lengths([queue_key(batch.sent_to, name) for name in targets])
                if any(lengths):
                    continue  # may still be on the queue
            batch.missed_checks += 1
            if (died or unread or batch.missed_checks > 1) and batch.id in self._scheduler.in_flight:
                self._resend(batch, died=died)

    def _resend(self, batch: InFlightBatch, *, died: bool) -> None:
        """Queue the slices of a lost batch again.

        `died` says that the batch's worker has died. Each slice then goes into a batch of its own,
        and if the lost batch was a single slice with which `max_attempts` workers have died, its
        request fails instead.
        """
        log.warning("batch sent again", extra={"batch": batch.id, "slices": len(batch.slices), "worker_died": died})
        self.resent += 1
        if died and len(batch.slices) == 1:
            part = batch.slices[0]
            part.attempts += 1
            if part.attempts >= self._settings.max_attempts:
                detail = f"the process that ran this request died or sent no heartbeat {part.attempts} times"
                problem = {"type": "about:blank", "title": "Worker lost", "status": 500, "detail": detail}
                self._finish(batch)
                self._fail(part.request, problem)
                return
        self._requeue(batch, isolate=died)

    def _later(self, act: Any) -> None:
        """Await `act` in a new task, without waiting for the task; ignore connection errors."""

        async def best_effort() -> None:
            with contextlib.suppress(redis.RedisError, OSError):
                await act

        task = self._loop.create_task(best_effort())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _set_result(request: PendingRequest, join: Callable[[], Fields]) -> None:
    """Set what `join` returns as the result of a request; FailedError if it raises an exception."""
    try:
        request.result.set_result(join())
    except Exception as error:
        log.exception("result not joined", extra={"request_id": request.request_id})
        request.result.set_exception(FailedError(storage_problem(error)))


def _no_worker(ref: str) -> str:
    """Return the text of the error that no running worker can run the version `ref`."""
    return (
        f"no running inference worker can run {ref}; try again later, or send the request with "
        "`Prefer: respond-async`: a job waits for a worker"
    )
