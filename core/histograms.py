"""Count observed values in histograms, which an API process exports to Prometheus.

A worker sends its histograms in its heartbeat, because it has no HTTP server that Prometheus could
read; histograms of prometheus_client cannot be sent. An observation takes a tenth of the time that
prometheus_client needs.
"""

from bisect import bisect_left
from collections import OrderedDict
from threading import Lock
from typing import Any

Labels = tuple[str, ...]

# Upper bounds of the buckets of each histogram, by name.
BOUNDS: dict[str, tuple[float, ...]] = {
    "request_seconds": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
    "queue_seconds": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
    "run_seconds": (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
    "batch_rows": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
    "job_queue_seconds": (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 7200, 86_400),
    "training_queue_seconds": (0.1, 1, 10, 60, 300, 1800, 7200, 86_400, 604_800),
    "training_run_seconds": (1, 5, 10, 60, 300, 1800, 7200, 21_600, 86_400, 604_800),
}


class Histograms:
    """The histograms of a process: counts of observed values, by histogram and labels."""

    def __init__(self, max_series: int = 300) -> None:
        """Start without observations.

        Each histogram has at most `max_series` combinations of labels; for a further one, the least
        recently used is removed.
        """
        self._max_series = max_series
        self._lock = Lock()
        self._series: dict[str, OrderedDict[Labels, list[float]]] = {name: OrderedDict() for name in BOUNDS}

    def observe(self, name: str, labels: Labels, value: float) -> None:
        """Count `value` in the histogram `name`, a key of `BOUNDS`, under these label values."""
        series, bounds = self._series[name], BOUNDS[name]
        with self._lock:
            counts = series.get(labels)
            if counts is None:
                counts = series[labels] = [0] * (len(bounds) + 2)
                if len(series) > self._max_series:
                    series.popitem(last=False)
            else:
                series.move_to_end(labels)
            counts[bisect_left(bounds, value)] += 1
            counts[-1] += value

    def snapshot(self) -> dict[str, list[Any]]:
        """Return a list of [label values, counts] for each histogram, keyed by its name.

        `counts` has the number of values in each bucket (not cumulative), then the number of values
        above the last bound, then the sum of all values. Histograms without observations are left
        out.
        """
        with self._lock:
            return {
                name: [[list(labels), list(counts)] for labels, counts in series.items()]
                for name, series in self._series.items()
                if series
            }


HISTOGRAMS = Histograms()
"""Those of this process."""
