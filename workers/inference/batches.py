"""Run batches of requests that wait for a response, and send the results to their API process.

A batch runs for one time slice; then the worker receives its next message, and an unfinished batch
waits in the bulk queue.
"""

import logging
from typing import Any
from uuid import uuid4

import redis

from core import tracing
from core.broker.codec import Batch, pack
from core.broker.keys import STREAM_LENGTH, dropped_key, started_key
from core.broker.publisher import publish_batch
from core.catalog.operations import BY_METHOD
from core.storage import STORES_UNAVAILABLE, reason_of, storage_problem
from workers.inference import engine
from workers.inference.context import INLINE_BYTES, CannotRunError, InferenceContext, unloadable_problem

log = logging.getLogger(__name__)

_STARTED_TTL_S = 600


class BatchRunner:
    """Runs the batches that API processes send to this worker.

    `running` has the ids of the batches that have started and not finished: at most one long batch
    and one small batch that interrupts it. The worker's heartbeat publishes these ids.
    """

    def __init__(self, context: InferenceContext) -> None:
        """Keep the worker's context, which has its models and connections; run nothing yet."""
        self._context = context
        self.running: list[str] = []

    def run(self, data: bytes) -> None:
        """Run a packed batch for one time slice, and report to the API process that sent it.

        A time slice is the time that a worker gives to one batch before it receives the next
        message. A finished batch is reported with its results. An unfinished batch is reported with
        its progress, and is sent to the end of the bulk queue together with its state. A long batch
        for which no request waits any more is dropped: it neither runs nor is reported. A batch
        that this worker cannot run is rejected, so that the API process sends it to another worker.
        """
        batch = Batch.unpack(data)
        long = batch.state is not None or BY_METHOD[batch.method].tiled
        if long and self._context.queue_server.exists(dropped_key(batch.id)):
            return
        if batch.state is None:
            started = ("SET", started_key(batch.id), self._context.worker_id, "EX", _STARTED_TTL_S)
            self._context.commands.send(*started)
        self.running.append(batch.id)
        try:
            others = [one.traceparent for one in batch.slices if one.traceparent[:35] != batch.traceparent[:35]]
            attributes = {"reverie.batch_id": batch.id, "reverie.model": batch.model, "reverie.operation": batch.method}
            span = tracing.span("run batch", batch.traceparent, kind="consumer", links=others, attributes=attributes)
            with span, self._context.watchdog.working(batch.method, *(one.request_id for one in batch.slices)):
                self._run_slice(batch)
        finally:
            self.running.remove(batch.id)

    def _run_slice(self, batch: Batch) -> None:
        """Run a batch for one time slice (until the worker has to receive its next message).

        Sends a completion to the API process of the batch: done, progress or rejected.
        """
        context = self._context
        if batch.device_kind not in ("", context.device_kind):
            reason = f"it is for devices of kind {batch.device_kind}, this is {context.device_kind}"
            self._send_completion(batch, {"kind": "rejected", "lacks": False, "reason": reason})
            return
        try:
            model = context.load_model(batch.model, batch.version, batch.method)
        except CannotRunError as error:
            self._send_completion(batch, {"kind": "rejected", "lacks": True, "reason": str(error)})
            return
        except STORES_UNAVAILABLE as error:
            reason = f"the worker cannot read {batch.model}@{batch.version} now: {reason_of(error)}"
            self._send_completion(batch, {"kind": "rejected", "lacks": True, "reason": reason})
            return
        except Exception as error:
            log.exception("batch cannot run", extra={"model": f"{batch.model}@{batch.version}"})
            outcome = {"problem": unloadable_problem(error)}
            self._send_completion(batch, {"kind": "done", "outcomes": [outcome] * len(batch.slices)})
            return
        method, isolated = batch.method, batch.isolated
        result, seconds = context.run(model, method, batch.options, batch.slices, batch.state, isolated=isolated)
        if isinstance(result, engine.SliceResult):
            batch.state = result.state
            context.publish_previews(batch.slices, result)
            target = batch.target if batch.target in context.targets else context.group
            context.queue_server.execute_command(*publish_batch("bulk", batch.pack(), target))
            self._send_completion(batch, {"kind": "progress", "done": result.done, "took": seconds})
            return
        timing = {"took": seconds, "wide": model.threads > 1}
        self._send_completion(batch, {"kind": "done", **timing, "outcomes": [vars(outcome) for outcome in result]})
        if log.isEnabledFor(logging.INFO):
            request_ids = [one.request_id for one in batch.slices]
            log.info("batch", extra={"method": method, "slices": len(request_ids), "request_ids": request_ids})

    def _send_completion(self, batch: Batch, completion: dict[str, Any]) -> None:
        """Write a completion to the stream of the API process that waits for the batch.

        A completion of more than `INLINE_BYTES` is written to the blob store, and the stream gets
        its key instead. If the blob store rejects it, a problem is sent as the result of each
        request. If the queue server cannot be reached, the completion is lost, which is logged: the
        API process then sends the batch again.
        """
        data = self._packed(batch, completion)
        if len(data) > INLINE_BYTES:
            key = f"notes/{batch.id}-{uuid4().hex[:8]}"
            try:
                self._context.blobs.put(key, data)
                completion = {"kind": completion["kind"], "blob": key}
            # reported at once: without a completion the batch would be sent again and again
            except OSError as error:
                log.warning("result not stored", extra={"batch": batch.id, "reason": str(error)})
                completion = {"kind": "done", "outcomes": [{"problem": storage_problem(error)}] * len(batch.slices)}
            data = self._packed(batch, completion)
        try:
            self._context.commands.send("XADD", batch.reply, "MAXLEN", "~", STREAM_LENGTH, "*", "note", data)
        except redis.RedisError:
            log.warning("completion lost; the batch will be sent again", exc_info=True)

    def _packed(self, batch: Batch, completion: dict[str, Any]) -> bytes:
        """Return a completion as msgpack, with the ids of its batch and of this worker added."""
        return pack({**completion, "batch": batch.id, "worker": self._context.worker_id})
