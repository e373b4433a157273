"""Prometheus metrics of this process, the workers, the queues and the job store."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api.state import AppState
from core.broker.keys import QueueName

LATENCY = Histogram(
    "reverie_request_seconds",
    "Time from the first byte of a request to the last byte of its response",
    ["method", "route", "status"],
    registry=None,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)


class ServiceCollector(Collector):
    """Reads the metrics of the services at each scrape; prometheus_client does not count them."""

    def __init__(self, state: AppState, queue_lengths: dict[QueueName, int]) -> None:
        """Set the services to read; `queue_lengths` has the number of messages on each queue."""
        self._sender, self._jobs, self._queue_lengths = state.batch_sender, state.job_service.counts, queue_lengths

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
            jobs.add_metric([status], self._jobs.get(status, 0))
        yield jobs
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


def exposition(accept: str, collector: ServiceCollector) -> tuple[bytes, str]:
    """Return all metrics in the format that the header `accept` prefers, and its media type."""
    scrape = CollectorRegistry()
    scrape.register(LATENCY)
    scrape.register(collector)
    encode, media = choose_encoder(accept)
    return encode(scrape), media
