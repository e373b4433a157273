"""Prometheus metrics: what this process did, and what workers, queue and ledger say of themselves."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

LATENCY = Histogram(
    "reverie_request_seconds",
    "Time from a request's first byte to its answer's last",
    ["method", "route", "status"],
    registry=None,
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)


class Reports(Collector):
    """Figures gathered when somebody asks: `gather` answers them as one dict."""

    def __init__(self, gather: Callable[[], dict[str, Any]]) -> None:
        """Ask `gather` at each scrape."""
        self._gather = gather

    def collect(self) -> Iterable[Metric]:
        """The figures as metric families."""
        said = self._gather()
        yield GaugeMetricFamily("reverie_waiting_requests", "Requests waiting for a worker", value=said["waiting"])
        yield CounterMetricFamily("reverie_batches_resent", "Batches sent again", value=said["resent"])
        lanes = GaugeMetricFamily("reverie_queue_messages", "Messages on a lane", labels=["lane"])
        for lane, length in said["queues"].items():
            lanes.add_metric([lane], length)
        yield lanes
        jobs = GaugeMetricFamily("reverie_jobs", "Unfinished jobs", labels=["status"])
        for status in ("queued", "running"):
            jobs.add_metric([status], said["jobs"].get(status, 0))
        yield jobs
        yield GaugeMetricFamily("reverie_workers", "Live workers", value=len(said["workers"]))
        rows = CounterMetricFamily("reverie_worker_rows", "Rows computed", labels=["worker", "operation"])
        busy = CounterMetricFamily("reverie_worker_busy_seconds", "Time spent in models", labels=["worker"])
        batches = CounterMetricFamily("reverie_worker_batches", "Forward runs", labels=["worker"])
        memory = GaugeMetricFamily("reverie_worker_memory_bytes", "Largest resident set", labels=["worker"])
        for name, worker in said["workers"].items():
            counters = worker["counters"]
            for key, value in counters.items():
                if key.startswith("rows:"):
                    rows.add_metric([name, key.removeprefix("rows:")], value)
            busy.add_metric([name], counters.get("busy_us", 0) / 1e6)
            batches.add_metric([name], counters.get("batches", 0))
            memory.add_metric([name], worker["memory_bytes"])
        yield from (rows, busy, batches, memory)


def exposition(accept: str, said: dict[str, Any]) -> tuple[bytes, str]:
    """The metrics page in the format that `accept` asks for, and its media type; `said` is what Reports gathers."""
    scrape = CollectorRegistry()
    scrape.register(LATENCY)
    scrape.register(Reports(lambda: said))
    encode, media = choose_encoder(accept)
    return encode(scrape), media
