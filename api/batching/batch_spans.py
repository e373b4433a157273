"""Records the spans of traced requests: `queue` for the time in the queue, `batch` for each batch."""

import time

from api.batching.requests import InFlightBatch
from core import tracing
from core.histograms import HISTOGRAMS


def batch_sent(batch: InFlightBatch) -> str:
    """Start the spans of a batch that is being sent; return the `traceparent` for its message.

    Each traced request gets an ended span `queue`, which is its time in the queue, and an open span
    `batch`. The returned `traceparent` is that of the first traced request's span `batch`, to which
    the `batch` spans of the other requests link. It is empty if no request is traced.
    """
    if not tracing.is_on():
        return ""
    now, monotonic = time.time(), time.monotonic()
    attributes: tracing.Attributes = {
        "reverie.batch_id": batch.id,
        "reverie.rows": sum(part.rows for part in batch.slices),
    }
    first = ""
    for part in batch.slices:
        request = part.request
        if part.first == 0 and not part.attempts and not part.isolated:
            tracing.record("queue", request.traceparent, now - (monotonic - request.arrived), now)
        links = [first] if first else [other.request.traceparent for other in batch.slices if other is not part]
        span = tracing.start("batch", request.traceparent, kind="producer", links=links, attributes=attributes)
        if span is not None:
            batch.spans.append(span)
            first = first or tracing.traceparent(span)
    return first


def batch_ended(batch: InFlightBatch) -> None:
    """End the spans of a batch that has completed, will be resent, or is needed by no request."""
    for span in batch.spans:
        span.end()
    batch.spans.clear()


def observe_queue_time(batch: InFlightBatch, took_s: float) -> None:
    """Record in the metrics how long requests waited for the batch that has just completed.

    The batch ran for `took_s` seconds, which are subtracted from the time since a request arrived.
    Only requests whose first row is in the batch are recorded.
    """
    if batch.progress:
        return
    now, labels = time.monotonic(), (batch.key[0], batch.key[2])
    for part in batch.slices:
        if part.first == 0 and not part.request.chunks:
            HISTOGRAMS.observe("queue_seconds", labels, max(0.0, now - part.request.arrived - took_s))
