"""Histograms in heartbeats, and their form in Prometheus metrics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from api.metrics import ServiceCollector, exposition
from core.broker.codec import pack, unpack
from core.histograms import BOUNDS, Histograms


def test_buckets_are_cumulative_and_survive_a_heartbeat() -> None:
    """Buckets are cumulative, a value on a bound is in its bucket, and sum and count cover all
    values.
    """
    histograms = Histograms()
    values = [0.0005, 0.001, 0.0011, 0.3, 11.0]
    for value in values:
        histograms.observe("run_seconds", ("vae", "sample"), value)
    histograms.observe("batch_rows", ("vae", "sample"), 4)
    heartbeat = {"counters": {}, "memory_bytes": 0, "histograms": unpack(pack(histograms.snapshot()))}
    sender = SimpleNamespace(waiting=0, resent=0, live_workers=lambda: {"w": heartbeat})
    state: Any = SimpleNamespace(batch_sender=sender, job_service=SimpleNamespace(counts={}, waiting=0))
    page = exposition("", ServiceCollector(state, {}, {}))[0].decode()
    families = {family.name: family.samples for family in text_string_to_metric_families(page)}
    samples = families["reverie_worker_run_seconds"]
    assert all(
        sample.labels.items() >= {"worker": "w", "model": "vae", "operation": "sample"}.items() for sample in samples
    )
    buckets = {float(sample.labels["le"]): sample.value for sample in samples if sample.name.endswith("_bucket")}
    assert list(buckets) == [*BOUNDS["run_seconds"], float("inf")]
    assert [buckets[bound] for bound in (0.001, 0.002, 0.2, 0.5, 10, float("inf"))] == [2, 3, 3, 4, 4, 5]
    totals = {sample.name: sample.value for sample in samples if not sample.name.endswith("_bucket")}
    assert totals == {"reverie_worker_run_seconds_count": 5, "reverie_worker_run_seconds_sum": sum(values)}
    assert families["reverie_worker_batch_rows"][-1].value == 4


def test_series_that_are_not_used_make_room() -> None:
    """The number of series in a heartbeat is limited; the most recently used are kept."""
    histograms = Histograms(3)
    for model in ("a", "b", "c", "a", "d"):
        histograms.observe("batch_rows", (model, "sample"), 1)
    assert [labels for labels, _ in histograms.snapshot()["batch_rows"]] == [
        ["c", "sample"],
        ["a", "sample"],
        ["d", "sample"],
    ]
