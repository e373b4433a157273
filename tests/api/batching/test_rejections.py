"""What an API process does when a worker rejects or loses a batch, and when a kind is lost."""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from api.batching.batch_sender import BatchSender, FailedError
from api.batching.requests import InFlightBatch, PendingRequest
from api.errors import OverloadedError
from core.blobs import open_blobs
from core.broker.codec import pack
from core.broker.keys import queue_key
from core.catalog.registry import Registry
from core.settings import Settings
from tests.api.helpers import MODEL

ENTRY = Registry(Path("checkpoints")).find(MODEL)


class _Bench:
    """A batch sender without a queue server, for workers that the test names."""

    def __init__(self, folder: Path, device_wait_s: float, **workers: dict[str, Any]) -> None:
        settings = Settings(state=folder, device_wait_s=device_wait_s)
        self.sender = BatchSender(settings, open_blobs(settings.blobs))
        self.sender._loop = asyncio.get_running_loop()
        self.sender._paused_until = math.inf
        self.workers(**workers)

    def workers(self, **workers: dict[str, Any]) -> None:
        """Give the sender new heartbeats."""
        defaults = {"state": "ready", "at": time.time(), "capacity": {}, "group": "g", "device_kind": "cpu"}
        beats = {name: {**defaults, "beat": time.monotonic(), **one} for name, one in workers.items()}
        self.sender._monitor.update({name.encode(): pack(one) for name, one in beats.items()}, time.time())
        self.sender._scheduler.fleet = self.sender._monitor.fleet()

    def submit(self) -> PendingRequest:
        """Submit a request for one row."""
        assert ENTRY is not None
        request = PendingRequest(ENTRY, "sample", {}, 7, 1)
        self.sender.submit(request)
        return request

    def batch(self) -> InFlightBatch:
        """Return the next batch."""
        batch = self.sender._scheduler.next_batch("interactive")
        assert batch is not None
        return batch

    async def reject(self, batch: InFlightBatch, worker: str, *, lacks: bool = True) -> None:
        """Report that a worker has rejected a batch."""
        body = {"batch": batch.id, "worker": worker, "kind": "rejected", "lacks": lacks, "reason": "it is not here"}
        await self.sender._handle_completion(pack(body))

    async def report_progress(self, batch: InFlightBatch, worker: str) -> None:
        """Report that a worker has run a batch for a time slice, and has put it on a queue again."""
        body = {"batch": batch.id, "worker": worker, "kind": "progress", "done": 0.25}
        await self.sender._handle_completion(pack(body))


def _run(folder: Path, act: Callable[[_Bench], Awaitable[None]], **workers: dict[str, Any]) -> None:
    async def run() -> None:
        await act(_Bench(folder, 0, **workers))

    asyncio.run(run())


def test_a_rejected_batch_goes_to_another_worker(tmp_path: Path) -> None:
    """The version is not sent to the worker again, and the client notices nothing."""

    async def check(bench: _Bench) -> None:
        request = bench.submit()
        await bench.reject(bench.batch(), "a")
        batch = bench.batch()
        assert (batch.target.name, batch.slices[0].request) == ("b", request)
        assert not request.result.done()

    _run(tmp_path, check, a={}, b={})


def test_a_batch_that_all_workers_reject_fails(tmp_path: Path) -> None:
    """If no worker has the version, the request fails with 503 and what would work, without the
    workers' reason.
    """

    async def check(bench: _Bench) -> None:
        request = bench.submit()
        for name in ("a", "b"):
            await bench.reject(bench.batch(), name)
        with pytest.raises(FailedError, match="no running inference worker can run") as failed:
            await request.result
        assert failed.value.problem["status"] == 503
        assert "Prefer: respond-async" in failed.value.problem["detail"]
        assert "it is not here" not in failed.value.problem["detail"]
        assert not bench.sender.waiting

    _run(tmp_path, check, a={}, b={})


def test_a_batch_for_another_kind_is_sent_again(tmp_path: Path) -> None:
    """A worker that rejects the device kind of a batch still gets the version."""

    async def check(bench: _Bench) -> None:
        bench.submit()
        await bench.reject(bench.batch(), "a", lacks=False)
        assert bench.batch().target.name == "g"

    _run(tmp_path, check, a={}, b={})


def test_a_model_that_all_workers_leave_out_is_rejected(tmp_path: Path) -> None:
    """A request that no worker can run is rejected; without any worker it waits."""

    async def check(bench: _Bench) -> None:
        with pytest.raises(OverloadedError, match="Prefer: respond-async"):
            bench.submit()

    async def check_waiting(bench: _Bench) -> None:
        assert bench.submit().device_kind == ""
        assert bench.sender._scheduler.next_batch("interactive") is None

    _run(tmp_path, check, a={"models": ["other"]})
    _run(tmp_path, check_waiting)


def test_a_request_without_a_kind_gets_one_when_a_worker_comes(tmp_path: Path) -> None:
    """That is no restart."""

    async def check(bench: _Bench) -> None:
        request = bench.submit()
        bench.workers(a={})
        bench.sender._replace_kinds()
        assert (request.device_kind, request.restarts) == ("cpu", 0)
        assert bench.batch().slices[0].request is request

    _run(tmp_path, check)


def test_a_request_leaves_a_lost_kind(tmp_path: Path) -> None:
    """When the kind of a request has no worker any more, the request begins again on another."""

    async def check(bench: _Bench) -> None:
        request = bench.submit()
        assert request.device_kind == "cpu"
        bench.batch()
        bench.sender._redis = type("Redis", (), {"set": lambda *_a, **_k: asyncio.sleep(0)})()
        bench.workers(b={"device_kind": "gpu", "group": "h"})
        bench.sender._replace_kinds()
        assert (request.device_kind, request.restarts) == ("gpu", 1)
        assert bench.batch().target.name == "h"

    _run(tmp_path, check, a={})


def test_a_request_leaves_a_kind_whose_workers_reject_it(tmp_path: Path) -> None:
    """The worker of its kind gets no batch of the version until the request has moved to another
    kind.
    """
    workers = {name: {"device_kind": name, "group": name} for name in ("cpu", "gpu")}

    async def run() -> None:
        bench = _Bench(tmp_path, 10.0, **workers)
        request = bench.submit()
        first = request.device_kind
        await bench.reject(bench.batch(), first)
        now = time.monotonic()
        for later_s in (0.0, 3.0, 6.0, 9.0, 11.0):
            with patch.object(time, "monotonic", lambda at=now + later_s: at):
                bench.workers(**workers)
                bench.sender._replace_kinds()
                assert (request.device_kind == first) is (later_s < 10)
        assert request.restarts == 1

    asyncio.run(run())


def test_a_request_leaves_a_kind_whose_workers_reject_it_one_after_another(tmp_path: Path) -> None:
    """The first worker of its kind gets no batch of the version again before the request has moved
    to another kind, although the second worker rejects it 3 s later.
    """
    kinds = {"a": "cpu", "b": "cpu", "c": "gpu"}
    workers = {name: {"device_kind": kind, "group": kind} for name, kind in kinds.items()}

    async def run() -> None:
        bench = _Bench(tmp_path, 10.0, **workers)
        request = bench.submit()
        assert request.device_kind == "cpu"
        await bench.reject(bench.batch(), "a")
        batch, now = bench.batch(), time.monotonic()
        assert batch.target.name == "b"
        for later_s in (3.0, 6.0, 9.0, 12.0, 14.0, 17.0):
            with patch.object(time, "monotonic", lambda at=now + later_s: at):
                bench.workers(**workers)
                if later_s == 3:
                    await bench.reject(batch, "b")
                bench.sender._replace_kinds()
                assert (request.device_kind == "cpu") is (later_s < 13), later_s
        assert (request.device_kind, request.restarts) == ("gpu", 1)

    asyncio.run(run())


def test_a_result_that_cannot_be_joined_is_an_error(tmp_path: Path) -> None:
    """The request fails with the reason, instead of waiting for ever."""

    async def check(bench: _Bench) -> None:
        for chunks in (1, 100):
            request = bench.submit()
            batch = bench.batch()
            request.chunks.update({first: {} for first in range(10, 9 + chunks)})
            error = OSError(errno.ENOSPC, "No space left on device")
            outcome = {"fields": {"images": np.zeros((1, 1, 2, 2), np.uint8)}}
            with patch("api.batching.large_results.joined", side_effect=error):
                bench.sender._complete(batch.slices[0], batch, outcome)
                with pytest.raises(FailedError) as failed:
                    await asyncio.wait_for(request.result, 5)
            assert failed.value.problem["status"] == 507
            bench.sender._finish(batch)

    _run(tmp_path, check, a={})


def test_a_batch_that_its_worker_started_and_lost_is_sent_again(tmp_path: Path) -> None:
    """It is not taken for a batch on the queue because others are on the queue."""

    async def check(bench: _Bench) -> None:
        bench.submit()
        batch = bench.batch()
        batch.worker, batch.last_seen = "a", -math.inf
        bench.sender._redis = type("Redis", (), {"llen": lambda *_: asyncio.sleep(0, 7)})()
        for _ in range(2):
            await bench.sender._check_in_flight()
        assert bench.sender.resent == 1

    _run(tmp_path, check, a={"running": []})


@pytest.mark.parametrize("target", ["g", "a"])
def test_a_long_batch_whose_worker_has_exited_is_not_lost(tmp_path: Path, target: str) -> None:
    """The worker has left it on the queue of its group. If it is not there, it is sent again; the
    worker has not died with it.
    """
    assert ENTRY is not None
    loaded = {"capacity": {ENTRY.ref: {"sample": [8, 8]}}} if target == "a" else {}

    async def check(bench: _Bench) -> None:
        bench.submit()
        batch, now = bench.batch(), time.monotonic()
        assert batch.target.name == target
        await bench.report_progress(batch, "a")
        asked: list[str] = []

        async def lengths(keys: list[str]) -> list[int]:
            asked.extend(keys)
            return [int(key == queue_key("bulk", "g") and queued) for key in keys]

        with (
            patch.object(time, "monotonic", lambda: now + 2),
            patch.object(bench.sender, "_lengths", lengths),
        ):
            bench.workers(b={"running": []})
            queued = True
            for _ in range(3):
                await bench.sender._check_in_flight()
            assert batch.id in bench.sender._scheduler.in_flight
            assert set(asked) == {queue_key("bulk", "g"), queue_key("bulk", target)}
            queued = False
            for _ in range(2):
                await bench.sender._check_in_flight()
        assert bench.sender.resent == 1
        assert (batch.slices[0].attempts, batch.slices[0].isolated) == (0, False)

    _run(tmp_path, check, a=loaded, b={})


def test_a_long_batch_whose_worker_was_killed_is_sent_again(tmp_path: Path) -> None:
    """The worker's last heartbeat stays; the batch runs alone then, and the attempt counts."""

    async def check(bench: _Bench) -> None:
        bench.submit()
        batch, now = bench.batch(), time.monotonic()
        await bench.report_progress(batch, "a")
        killed = {"beat": 1, "running": [batch.id]}
        bench.workers(a=killed, b={"running": []})
        with (
            patch.object(time, "monotonic", lambda: now + 2),
            patch.object(bench.sender, "_lengths", lambda keys: asyncio.sleep(0, [1] * len(keys))),
        ):
            bench.workers(a=killed, b={"running": []})
            await bench.sender._check_in_flight()
        assert bench.sender.resent == 1
        assert (batch.slices[0].attempts, batch.slices[0].isolated) == (1, True)

    _run(tmp_path, check, a={"beat": 1}, b={})
