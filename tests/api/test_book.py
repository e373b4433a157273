"""The API's side of the ledger, with a real ledger and blob store and no worker."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from api.ask import Ask
from api.book import INLINE_BYTES, Book
from tests.api.telling import MODEL
from tests.stack import free_port
from workers.batching.requests import PendingRequest
from workers.blobs import Blobs
from workers.ledger import TERMINAL, Job, Ledger
from workers.operations import BY_METHOD
from workers.outbox import FailedError, Outbox
from workers.registry import Registry
from workers.settings import Settings
from workers.wire import Fields

SMALL: Fields = {"images": np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)}
LARGE: Fields = {"images": np.zeros((3, 1, 512, 512), np.uint8)}


def _ask() -> Ask:
    entry = Registry(Path("checkpoints")).find(MODEL)
    assert entry is not None
    return Ask(BY_METHOD["sample"], entry, {}, 7, 3, "f" * 64)


def _call(ask: Ask) -> PendingRequest:
    request = PendingRequest(ask.entry, ask.operation.method, ask.options, ask.seed, ask.rows)
    request.result = asyncio.get_running_loop().create_future()
    return request


@asynccontextmanager
async def _book(folder: Path) -> AsyncIterator[tuple[Book, Ledger]]:
    chosen = Settings(state=folder, queue_url=f"redis://127.0.0.1:{free_port()}/0", log_level="error")
    blobs, ledger = Blobs(chosen.blobs), Ledger(chosen.ledger)
    outbox = Outbox(chosen, blobs)
    book = Book(chosen, ledger, blobs, outbox)
    await outbox.start()
    await book.start()
    try:
        yield book, ledger
    finally:
        await book.stop()
        await outbox.stop()


def _run(folder: Path, act: Callable[[Book, Ledger], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with _book(folder) as (book, ledger):
            await act(book, ledger)

    asyncio.run(whole())


async def _ended(book: Book, job: Job) -> Job:
    found = await book.wait(job["id"], "", 10)
    assert found is not None
    assert found["status"] in TERMINAL
    return found


@pytest.mark.parametrize("fields", [SMALL, LARGE], ids=["small", "large"])
def test_a_call_taken_over_ends_as_a_job(tmp_path: Path, fields: Fields) -> None:
    """Running at once under this process's lease, and succeeded with the call's result when it comes."""

    async def act(book: Book, ledger: Ledger) -> None:
        ask = _ask()
        call = _call(ask)
        job = await book.adopt(ask, call, "", "r")
        held = ledger.get(job["id"])
        assert held is not None
        assert held["status"] == "running"
        assert held["lease_owner"] is not None
        assert ledger.claim("worker", 3, 8) == []  # nobody runs it a second time
        call.result.set_result(fields)
        done = await _ended(book, job)
        assert done["status"] == "succeeded"
        assert ((await book.fields(done))["images"] == fields["images"]).all()

    assert LARGE["images"].nbytes > INLINE_BYTES > SMALL["images"].nbytes
    _run(tmp_path, act)


def test_a_call_that_fails_fails_its_job(tmp_path: Path) -> None:
    """With the same problem."""

    async def act(book: Book, _ledger: Ledger) -> None:
        ask = _ask()
        call = _call(ask)
        job = await book.adopt(ask, call, "", "r")
        call.result.set_exception(FailedError({"status": 422, "title": "t", "detail": "no"}))
        done = await _ended(book, job)
        assert done["status"] == "failed"
        assert '"no"' in done["problem"]

    _run(tmp_path, act)


def test_a_result_that_cannot_be_stored_fails_its_job(tmp_path: Path) -> None:
    """A promise ends one way or another, with the reason, also where the blob store is full or away."""

    async def act(book: Book, _ledger: Ledger) -> None:
        ask = _ask()
        call = _call(ask)
        job = await book.adopt(ask, call, "", "r")
        (tmp_path / "blobs" / "jobs").write_text("in the way")
        call.result.set_result(LARGE)
        done = await _ended(book, job)
        assert done["status"] == "failed"
        assert "could not be stored" in done["problem"]

    _run(tmp_path, act)


def test_a_process_that_stops_hands_over_what_it_holds(tmp_path: Path) -> None:
    """A worker may take the job at once."""
    ids = []

    async def act(book: Book, _ledger: Ledger) -> None:
        ask = _ask()
        ids.append((await book.adopt(ask, _call(ask), "", "r"))["id"])

    _run(tmp_path, act)
    ledger = Ledger(Settings(state=tmp_path).ledger)
    assert [job["id"] for job in ledger.claim("worker", 3, 8)] == ids
    ledger.engine.dispose()


def test_many_promises_are_committed_together(tmp_path: Path) -> None:
    """Each is in the ledger when its `add` returns."""

    async def act(book: Book, ledger: Ledger) -> None:
        async def one() -> None:
            job = await book.add(_ask(), "ann", "r")
            assert ledger.get(job["id"], "ann") is not None
            assert ledger.get(job["id"], "bob") is None

        await asyncio.gather(*(one() for _ in range(50)))
        assert book.counts["queued"] == 50

    _run(tmp_path, act)


def test_a_dropped_result_is_missed(tmp_path: Path) -> None:
    """LookupError, whether its rows or its blob went."""

    async def act(book: Book, ledger: Ledger) -> None:
        for fields in (SMALL, LARGE):
            ask = _ask()
            call = _call(ask)
            job = await book.adopt(ask, call, "", "r")
            call.result.set_result(fields)
            done = await _ended(book, job)
            if fields is SMALL:
                ledger.expire(-1, 1e9)
            else:
                Blobs(f"file://{tmp_path / 'blobs'}").delete(f"jobs/{job['id']}")
            with pytest.raises(LookupError):
                await book.fields(done)

    _run(tmp_path, act)
