"""What is known of workers by their heartbeats."""

from __future__ import annotations

import time
from typing import Any

import pytest

from api.batching import worker_monitor
from api.batching.worker_monitor import WorkerMonitor
from core.broker.codec import pack


def update(monitor: WorkerMonitor, **heartbeats: dict[str, Any]) -> None:
    """Give a monitor new heartbeats of these workers."""
    defaults = {"state": "ready", "at": time.time(), "capacity": {}, "group": "g", "device_kind": "cpu"}
    beats = {name: {**defaults, "beat": time.monotonic(), **one} for name, one in heartbeats.items()}
    monitor.update({name.encode(): pack(one) for name, one in beats.items()})


def test_workers_that_stop_receive_nothing() -> None:
    """Draining workers are not in the fleet; if there are no others, the fleet before stays."""
    monitor = WorkerMonitor(10)
    update(monitor, a={}, b={"state": "loading"})
    assert len(fleet := monitor.fleet()) == 2
    assert monitor.fleet() is fleet
    update(monitor, a={"state": "draining"}, b={})
    assert [one.id for one in monitor.fleet().states] == ["b"]
    update(monitor, b={"state": "draining"})
    assert [one.id for one in monitor.fleet().states] == ["b"]


def test_capacity_is_that_of_the_device_kind() -> None:
    """The smallest capacity of a kind's workers counts, and a request without a kind gets the
    smallest of all.
    """
    monitor = WorkerMonitor(10)
    sizes = {"a": ("cpu", 64), "b": ("cpu", 32), "c": ("gpu", 1024)}
    beats = {
        name: {"device_kind": kind, "capacity": {"m@1": {"sample": [rows, rows]}}}
        for name, (kind, rows) in sizes.items()
    }
    update(monitor, **beats)
    expected = {
        ("cpu", "m@1", "sample"): (32, 32),
        ("gpu", "m@1", "sample"): (1024, 1024),
        ("", "m@1", "sample"): (32, 32),
    }
    assert monitor.capacity() == expected


def test_catalogs_are_read_once() -> None:
    """A catalog is asked for until it is known; then a version in no catalog of a kind is not
    routed to those that have another list.
    """
    monitor = WorkerMonitor(10)
    update(monitor, a={"catalog": "x"}, b={"catalog": "y"})
    assert sorted(monitor.missing_catalogs()) == ["x", "y"]
    monitor.add_catalog("x", ["m@1"])
    monitor.add_catalog("y", ["m@2"])
    assert monitor.missing_catalogs() == []
    route = monitor.fleet().route("m@2", "cpu")
    assert route is not None
    assert [one.name for one in route.preferred] == ["b"]


def test_a_rejection_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has rejected a version gets no batch of it for a while."""
    monitor = WorkerMonitor(10)
    update(monitor, a={}, b={})
    monitor.reject("a", "m@1")
    route = monitor.fleet().route("m@1", "cpu")
    assert route is not None
    assert [one.name for one in route.preferred] == ["b"]
    later = time.monotonic() + 2 * worker_monitor._REJECTION_S
    monkeypatch.setattr("api.batching.worker_monitor.time.monotonic", lambda: later)
    update(monitor, a={}, b={})
    route = monitor.fleet().route("m@1", "cpu")
    assert route is not None
    assert [one.name for one in route.preferred] == ["g"]


def test_a_worker_may_return(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that can run a model and was alive a moment ago may return; not one of other models."""
    monitor = WorkerMonitor(10)
    update(monitor, a={"models": ["m*"]}, b={"models": ["n"], "device_kind": "gpu"})
    monitor.fleet()
    update(monitor, b={"models": ["n"], "device_kind": "gpu"})
    monitor.fleet()
    assert [monitor.may_return(ref) for ref in ("m1@1", "n@1", "o@1")] == [True, True, False]
    assert [monitor.may_return("m1@1", kind) for kind in ("cpu", "gpu")] == [True, False]
    later = time.monotonic() + 2 * worker_monitor.RETURN_S
    monkeypatch.setattr("api.batching.worker_monitor.time.monotonic", lambda: later)
    assert not monitor.may_return("m1@1")
