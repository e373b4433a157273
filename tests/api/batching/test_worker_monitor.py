"""What is known of workers by their heartbeats."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import redis

from api.batching import worker_monitor
from api.batching.batch_sender import BatchSender
from api.batching.worker_monitor import WorkerMonitor
from core.blobs import open_blobs
from core.broker.codec import pack
from core.broker.connection import server_time
from core.broker.keys import QUEUES, WORKERS, queue_key
from core.settings import Settings
from tests.stack import Stack


def update(monitor: WorkerMonitor, **heartbeats: dict[str, Any]) -> None:
    """Give a monitor new heartbeats of these workers."""
    defaults = {"state": "ready", "at": time.time(), "capacity": {}, "group": "g", "device_kind": "cpu"}
    beats = {name: {**defaults, "beat": time.monotonic(), **one} for name, one in heartbeats.items()}
    monitor.update({name.encode(): pack(one) for name, one in beats.items()}, time.time())


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


def test_a_heartbeat_that_cannot_be_read_is_left_out() -> None:
    """The other workers are known all the same."""
    monitor = WorkerMonitor(10)
    good = {"beat": 1, "state": "ready", "at": time.time(), "capacity": {}, "group": "g", "device_kind": "cpu"}
    damaged = {b"b": pack({"beat": 1}), b"c": b"\xc1", b"\xff": pack(good), b"d": pack([1])}
    monitor.update({b"a": pack(good), **damaged}, time.time())
    assert [one.id for one in monitor.fleet().states] == ["a"]


def test_a_queue_server_that_was_suspended_kills_no_worker() -> None:
    """Workers could write no heartbeat meanwhile; one that stays silent afterwards is dead."""
    monitor, now = WorkerMonitor(1.5), time.monotonic()
    beat = {"a": {"beat": 1}}
    update(monitor, **beat)
    with patch.object(time, "monotonic", lambda: now + 5):
        update(monitor, **beat)
        assert not monitor.live()
        monitor.excuse(5)
        assert list(monitor.live()) == ["a"]
    with patch.object(time, "monotonic", lambda: now + 7):
        update(monitor, **beat)
        assert not monitor.live()


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
    later = time.monotonic() + 2 * worker_monitor.REJECTION_S
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


@pytest.mark.parametrize("ahead_s", [120.0, -120.0])
def test_clocks_of_hosts_may_differ(tmp_path: Path, ahead_s: float) -> None:
    """With a host clock of two minutes ahead or behind, a live worker is seen and its queue stays;
    the heartbeat and queue of a worker that died 100 s ago are deleted.
    """
    stack = Stack(tmp_path)
    try:
        stack.start("queue")
        stack.wait_queue()
        with redis.Redis.from_url(stack.queue_url) as client:
            beat = {"beat": 1, "state": "ready", "capacity": {}, "group": "g", "device_kind": "cpu", "running": []}
            for name, age_s in (("live", 0.0), ("dead", 100.0)):
                client.hset(WORKERS, name, pack({**beat, "at": server_time(client) - age_s}))
                client.rpush(queue_key(QUEUES[0], name), b"batch")
            real = time.time
            with patch("time.time", lambda: real() + ahead_s):
                settings = Settings(state=tmp_path, queue_url=stack.queue_url, heartbeat_timeout_s=30)
                assert asyncio.run(_live_workers(settings)) == {"live"}
            assert client.hkeys(WORKERS) == [b"live"]
            assert [client.exists(queue_key(QUEUES[0], name)) for name in ("live", "dead")] == [1, 0]
    finally:
        stack.down()


async def _live_workers(settings: Settings) -> set[str]:
    """Return the ids of live workers, as a new API process sees them within a second."""
    sender = BatchSender(settings, open_blobs(settings.blobs))
    await sender.start()
    await asyncio.sleep(1.0)
    live = set(sender.live_workers())
    await sender.stop()
    return live
