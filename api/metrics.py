"""Collects the Prometheus metrics of this process, the workers, the queues and the job store."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from api.state import AppState
from core.broker.keys import QueueName
from core.histograms import BOUNDS, HISTOGRAMS

# Histograms by their name in `core.histograms`: the name of the metric, its labels, and its help.
# Those of workers have the label `worker` besides.
_OWN_HISTOGRAMS = {
    "request_seconds": (
        "reverie_request_seconds",
        ["method", "route", "status"],
        "Time from the first byte of a request to the last byte of its response",
    ),
    "queue_seconds": (
        "reverie_queue_seconds",
        ["model", "operation"],
        "Time that synchronous requests waited before a worker ran their first rows",
    ),
}
_INFERENCE_HISTOGRAMS = {
    "run_seconds": ("reverie_worker_run_seconds", ["model", "operation"], "Time slices of batches and jobs in models"),
    "batch_rows": ("reverie_worker_batch_rows", ["model", "operation"], "Rows of batches and jobs in a time slice"),
    "job_queue_seconds": ("reverie_job_queue_seconds", ["model", "operation"], "Time until a job was first claimed"),
}
_TRAINING_HISTOGRAMS = {
    "training_queue_seconds": (
        "reverie_training_queue_seconds",
        ["kind", "family"],
        "Time until a training or auxiliary job was first claimed",
    ),
    "training_run_seconds": (
        "reverie_training_run_seconds",
        ["kind", "family"],
        "Time that a training or auxiliary job ran, from a claim to its end or a pause",
    ),
}


def _histograms(
    described: dict[str, tuple[str, list[str], str]], snapshots: dict[str | None, dict[str, Any]]
) -> Iterable[Metric]:
    """Yield Prometheus histograms with the names, labels and help texts in `described`.

    `described` is keyed by the internal name of a histogram, as are the `snapshots`: the bucket
    counts of one worker or process, keyed by worker id, which becomes the label `worker`. The key
    None stands for this process, whose histograms have no such label.
    """
    for key, (name, labels, text) in described.items():
        family = HistogramMetricFamily(name, text, labels=labels if None in snapshots else ["worker", *labels])
        bounds = [*map(floatToGoString, BOUNDS[key]), "+Inf"]
        for worker, snapshot in snapshots.items():
            for values, counts in snapshot.get(key, ()):
                *numbers, total = counts
                buckets = list(zip(bounds, accumulate(numbers), strict=True))
                family.add_metric(values if worker is None else [worker, *values], buckets, total)
        yield family


def _heartbeat_histograms(
    described: dict[str, tuple[str, list[str], str]], workers: dict[str, dict[str, Any]]
) -> Iterable[Metric]:
    """Yield the histograms that workers report; `workers` has their heartbeats, keyed by worker id.

    `described` has the name, labels and help text of each histogram, keyed by its internal name.
    """
    return _histograms(described, {name: one.get("histograms", {}) for name, one in workers.items()})


class ServiceCollector(Collector):
    """Reads metrics from the services at each scrape, such as numbers of workers and jobs."""

    def __init__(
        self, state: AppState, queue_lengths: dict[QueueName, int], training_workers: dict[str, dict[str, Any]]
    ) -> None:
        """Set the services to read, and two values that only asynchronous calls can read.

        `queue_lengths` has the number of messages on each queue, and `training_workers` the
        heartbeats of live training workers, keyed by worker id.
        """
        self._sender, self._job_service, self._queue_lengths = state.batch_sender, state.job_service, queue_lengths
        self._training_workers = training_workers

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics for prometheus_client."""
        waiting, resent = self._sender.waiting, self._sender.resent
        yield GaugeMetricFamily("reverie_waiting_requests", "Requests that wait for a worker", value=waiting)
        yield CounterMetricFamily("reverie_batches_resent", "Batches sent again", value=resent)
        queues = GaugeMetricFamily("reverie_queue_messages", "Messages on a queue", labels=["queue"])
        for queue, length in self._queue_lengths.items():
            queues.add_metric([queue], length)
        yield queues
        jobs = GaugeMetricFamily("reverie_jobs", "Unfinished jobs", labels=["status"])
        for status in ("queued", "running"):
            jobs.add_metric([status], self._job_service.counts.get(status, 0))
        yield jobs
        unclaimed = self._job_service.waiting
        yield GaugeMetricFamily("reverie_waiting_jobs", "Inference jobs not claimed within a second", value=unclaimed)
        workers = self._sender.live_workers()
        yield GaugeMetricFamily("reverie_workers", "Live workers", value=len(workers))
        rows = CounterMetricFamily("reverie_worker_rows", "Rows computed", labels=["worker", "operation"])
        busy = CounterMetricFamily("reverie_worker_busy_seconds", "Time spent in models", labels=["worker"])
        batches = CounterMetricFamily("reverie_worker_batches", "Forward passes", labels=["worker"])
        memory = GaugeMetricFamily("reverie_worker_memory_bytes", "Largest resident set", labels=["worker"])
        for name, worker in workers.items():
            counters = worker["counters"]
            for key, value in counters.items():
                if key.startswith("rows:"):
                    rows.add_metric([name, key.removeprefix("rows:")], value)
            busy.add_metric([name], counters.get("busy_us", 0) / 1e6)
            batches.add_metric([name], counters.get("batches", 0))
            memory.add_metric([name], worker["memory_bytes"])
        yield from (rows, busy, batches, memory)
        yield from _heartbeat_histograms(_INFERENCE_HISTOGRAMS, workers)
        trainers = self._training_workers
        yield GaugeMetricFamily("reverie_training_workers", "Live training workers", value=len(trainers))
        yield from _heartbeat_histograms(_TRAINING_HISTOGRAMS, trainers)
        yield from _histograms(_OWN_HISTOGRAMS, {None: HISTOGRAMS.snapshot()})


def exposition(accept: str, collector: ServiceCollector) -> tuple[bytes, str]:
    """Return the metrics of `collector` in the format that `accept` prefers, and its media type.

    `accept` is the value of the header `Accept`.
    """
    scrape = CollectorRegistry()
    scrape.register(collector)
    encode, media = choose_encoder(accept)
    return encode(scrape), media
