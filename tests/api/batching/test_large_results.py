"""Large results of synchronous requests: rows are on the disk while they arrive, and memory is
released when the request has ended.
"""

import asyncio
import math
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from api.batching.batch_sender import BatchSender
from api.batching.fleet import Fleet, WorkerState
from api.batching.requests import InFlightBatch, PendingRequest
from api.row_files import ROW_FILE_BYTES, array_bytes, cut_rows
from core.blobs import open_blobs
from core.broker.codec import Fields, pack
from core.catalog.registry import ModelVersion, Registry
from core.settings import Settings
from tests.api.helpers import MODEL

ROWS = 4000
CAPACITY = (256, 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 1, 28, 28), np.uint8)
RESULT: Fields = {"images": PIXELS, "unit": "nats", "energies": np.arange(ROWS, dtype=np.float32)}


class _Bench:
    """A batch sender without a queue server; the test completes its batches."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(state=folder)
        self.sender = BatchSender(settings, open_blobs(settings.blobs))
        self.sender._loop = asyncio.get_running_loop()
        self.sender._paused_until = math.inf
        self.unfinished = folder / "unfinished"
        entry = Registry(Path("checkpoints")).find(MODEL)
        assert isinstance(entry, ModelVersion)
        self.entry = entry
        self.sender._scheduler.capacity["", entry.ref, "sample"] = CAPACITY
        self.sender._scheduler.fleet = Fleet([WorkerState("w")])

    def submit(self, rows: int = ROWS) -> PendingRequest:
        """Submit a request to the batch sender."""
        request = PendingRequest(self.entry, "sample", {}, 7, rows)
        self.sender.submit(request)
        return request

    def batch(self, request: PendingRequest) -> InFlightBatch | None:
        """Return the next batch of a request's queue; None if there is none."""
        return self.sender._scheduler.next_batch(request.queue)

    async def complete(self, batch: InFlightBatch) -> None:
        """Report the batch's rows as a worker does."""
        outcomes = [{"fields": cut_rows(RESULT, part.first, part.rows)} for part in batch.slices]
        await self.sender._handle_completion(
            pack({"batch": batch.id, "worker": "w", "kind": "done", "outcomes": outcomes})
        )


def _run(folder: Path, act: Callable[[_Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        await act(_Bench(folder))

    asyncio.run(run())


def _held_bytes(request: PendingRequest) -> int:
    return sum(array_bytes(chunk) for chunk in request.chunks.values())


def _check(fields: Fields, rows: int = ROWS) -> None:
    assert list(fields) == list(RESULT)
    assert np.array_equal(fields["images"], PIXELS[:rows])
    assert np.array_equal(fields["energies"], RESULT["energies"][:rows])
    assert fields["unit"] == "nats"


@pytest.mark.parametrize("full", [False, True], ids=["disk", "full disk"])
def test_rows_of_a_large_result_are_on_the_disk(tmp_path: Path, full: bool) -> None:
    """Rows of a large result are written to the disk as they arrive; they stay in memory only if
    the disk is full.
    """

    async def act(bench: _Bench) -> None:
        if full:
            bench.unfinished.write_text("in the way")
        request = bench.submit()
        most = 0
        while (batch := bench.batch(request)) is not None:
            await bench.complete(batch)
            most = max(most, _held_bytes(request))
        _check(await asyncio.wait_for(request.result, 10))
        assert most > ROW_FILE_BYTES if full else most == 0
        assert request.chunks == {}
        assert request.row_file is None

    _run(tmp_path, act)


def test_a_disk_that_becomes_full_stops_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk becomes full halfway, later rows stay in memory and the result is complete."""

    async def act(bench: _Bench) -> None:
        request = bench.submit()
        while (batch := bench.batch(request)) is not None:
            if request.next_row > ROWS // 2 and request.row_file is not None:

                def full(*_: object) -> Fields:
                    raise OSError(28, "No space left on device")

                monkeypatch.setattr(request.row_file, "write", full)
            await bench.complete(batch)
        _check(await asyncio.wait_for(request.result, 10))

    _run(tmp_path, act)


def test_a_small_result_stays_in_memory(tmp_path: Path) -> None:
    """No file is created for a result of at most `LARGE_BYTES`."""

    async def act(bench: _Bench) -> None:
        request = bench.submit(rows := ROW_FILE_BYTES // (PIXELS[0].nbytes + 4))
        while (batch := bench.batch(request)) is not None:
            await bench.complete(batch)
        _check(await asyncio.wait_for(request.result, 10), rows)
        assert not bench.unfinished.exists()

    _run(tmp_path, act)


def test_a_dropped_request_holds_nothing(tmp_path: Path) -> None:
    """A dropped request holds no rows and no file, even if a completion with its rows arrives
    later.
    """

    async def act(bench: _Bench) -> None:
        request = bench.submit()
        first, second = bench.batch(request), bench.batch(request)
        assert first is not None
        assert second is not None
        await bench.complete(first)
        assert request.row_file is not None
        bench.sender._scheduler.finish_batch(second)  # not to be reported to the worker as dropped
        bench.sender.drop(request)
        await bench.complete(second)
        assert request.chunks == {}
        assert request.row_file is None

    _run(tmp_path, act)


def test_a_batch_that_was_sent_again_does_not_hold_the_result(tmp_path: Path) -> None:
    """The first, lost attempt of a retried batch keeps no reference to the result of its
    requests.
    """

    async def act(bench: _Bench) -> None:
        request = bench.submit()
        lost = bench.batch(request)
        assert lost is not None
        bench.sender._requeue(lost, isolate=False)
        bench.sender._forget_late_batches()
        assert bench.sender._late  # its completion may still come
        del lost
        while (batch := bench.batch(request)) is not None:
            await bench.complete(batch)
        del batch
        result = weakref.ref((await asyncio.wait_for(request.result, 10))["images"])
        del request
        bench.sender._forget_late_batches()
        await asyncio.sleep(0)
        assert result() is None

    _run(tmp_path, act)
