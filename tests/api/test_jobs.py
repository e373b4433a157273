"""The job service of an API process, with a real job store and blob store and no worker."""

import asyncio
import contextlib
import errno
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
import pytest
import sqlalchemy as sa

from api.adopted_jobs import INLINE_BYTES, AdoptedJobs
from api.app import create_app
from api.auth import Caller
from api.batching.batch_sender import BatchSender, FailedError
from api.batching.requests import PendingRequest
from api.dependencies import JOB_ID
from api.errors import FullError, ProblemError
from api.input_fetching import InputFetcher, _Progress
from api.jobs import JobService
from api.request_content import Content
from api.requests import InferenceRequest
from api.stored_content import store_content
from core.blobs import FolderBlobs, open_blobs
from core.broker.codec import Fields
from core.catalog.operations import BY_METHOD
from core.catalog.registry import Registry
from core.jobs import transitions
from core.jobs.records import TERMINAL, Job
from core.jobs.schema import transaction
from core.jobs.store import JobStore
from core.settings import Settings
from core.storage import ObjectStoreError
from tests.api.helpers import MODEL
from tests.core.jobs.test_migrate import FIRST, LAST, job_id, load
from tests.stack import free_port
from tests.waiting import wait_until

UNREACHABLE = sa.exc.OperationalError("UPDATE", {}, OSError("connection refused"))
SMALL: Fields = {"images": np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)}
LARGE: Fields = {"images": np.zeros((3, 1, 512, 512), np.uint8)}


def _ask() -> InferenceRequest:
    entry = Registry(Path("checkpoints")).find(MODEL)
    assert entry is not None
    return InferenceRequest(BY_METHOD["sample"], entry, {}, 7, 3, Content({}))


def _call(inference_request: InferenceRequest) -> PendingRequest:
    request = inference_request.pending()
    request.result = asyncio.get_running_loop().create_future()
    return request


@asynccontextmanager
async def _job_service(folder: Path, **settings: Any) -> AsyncIterator[tuple[JobService, JobStore]]:
    chosen = Settings(state=folder, queue_url=f"redis://127.0.0.1:{free_port()}/0", log_level="error", **settings)
    blobs, job_store = open_blobs(chosen.blobs), JobStore(chosen.database)
    batch_sender = BatchSender(chosen, blobs)
    job_service = JobService(chosen, job_store, blobs, batch_sender)
    await batch_sender.start()
    await job_service.start()
    try:
        yield job_service, job_store
    finally:
        await job_service.stop()
        await batch_sender.stop()


def _run(folder: Path, act: Callable[[JobService, JobStore], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        async with _job_service(folder, **settings) as (job_service, job_store):
            await act(job_service, job_store)

    asyncio.run(whole())


async def _adopted(job_service: JobService) -> tuple[Job, PendingRequest]:
    """Return a job that was adopted from a pending request of this process, and the request."""
    inference_request = _ask()
    call = _call(inference_request)
    return await job_service.adopt(inference_request, call), call


def _fetcher(job_service: JobService, folder: Path) -> InputFetcher:
    """Return a fetcher of images by URL, with a blob store of its own."""
    return InputFetcher(Settings(state=folder), job_service, open_blobs(f"file://{folder}/b"), folder)


async def _waiting(job_store: JobStore, job: Job) -> Job:
    """Wait until a job is queued again without a charged attempt; return it."""
    async with asyncio.timeout(10):
        while True:
            found = job_store.get(job.id)
            assert found is not None
            if found.status == "queued":
                assert found.attempts == 0
                return found
            await asyncio.sleep(0.05)


async def _ended(job_service: JobService, job: Job) -> Job:
    found = await job_service.wait(job.id, "", 10)
    assert found is not None
    assert found.status in TERMINAL
    return found


@pytest.mark.parametrize("fields", [SMALL, LARGE], ids=["small", "large"])
def test_an_adopted_request_ends_as_a_job(tmp_path: Path, fields: Fields) -> None:
    """An adopted job runs under this process's lease and succeeds with the result of its
    request.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        held = job_store.get(job.id)
        assert held is not None
        assert held.status == "running"
        assert held.lease_holder is not None
        assert job_store.claim("worker", 3, 8) == []  # no worker can claim it
        call.result.set_result(fields)
        done = await _ended(job_service, job)
        assert done.status == "succeeded"
        assert ((await job_service.result(done))["images"] == fields["images"]).all()

    assert LARGE["images"].nbytes > INLINE_BYTES > SMALL["images"].nbytes
    _run(tmp_path, act)


def test_an_adopted_job_has_the_id_of_its_request(tmp_path: Path) -> None:
    """Workers store previews under the id of the request; every API process finds them by the id of
    the job.
    """

    async def act(job_service: JobService, _job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        assert job.id == call.id
        assert JOB_ID.fullmatch(job.id)

    _run(tmp_path, act)


@pytest.mark.parametrize("requeued", [False, True])
def test_a_job_whose_lease_is_lost_is_not_computed(tmp_path: Path, requeued: bool) -> None:
    """If another process cancels or requeues an adopted job, its pending request is cancelled."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        kept, lost = [_ask().pending() for _ in range(2)]
        jobs = []
        for call in (kept, lost):
            job_service._batch_sender.submit(call)
            jobs.append(await job_service.adopt(_ask(), call))
        await asyncio.sleep(0.5)
        assert not lost.result.done()
        with transaction(job_store.engine) as connection:  # as another process does
            change = transitions.requeue if requeued else transitions.finish
            change(connection, transitions.held_by(jobs[1].claim), jobs[1].id, "reason" if requeued else "cancelled")
        await asyncio.wait({lost.result}, timeout=5)
        assert lost.result.cancelled()
        assert job_service._adopted.pending == {jobs[0].id: kept}
        assert not kept.result.done()
        found = job_store.get(jobs[1].id)
        assert found is not None
        assert found.status == ("queued" if requeued else "cancelled")

    _run(tmp_path, act, job_lease_s=0.8)


@pytest.mark.parametrize(
    ("owner", "method", "error"),
    [
        (AdoptedJobs, "_store", RuntimeError("unexpected")),
        (JobStore, "record_slices", sa.exc.DataError("INSERT", {}, ValueError("out of range"))),
    ],
)
def test_an_unexpected_error_gives_up_the_lease(tmp_path: Path, owner: type, method: str, error: Exception) -> None:
    """If the result of an adopted job cannot be written because of an unexpected error, the lease
    expires and workers can claim the job.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        with patch.object(owner, method, side_effect=error):
            call.result.set_result(SMALL)
            await _waiting(job_store, job)
        assert [held.id for held in job_store.claim("worker", 3, 8)] == [job.id]

    _run(tmp_path, act, job_lease_s=0.8)


def test_a_job_with_urls_waits_for_the_database(tmp_path: Path) -> None:
    """If the database cannot be used when its images were fetched, the job is queued again with the
    reason, and its images are fetched again later.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, _ = await _adopted(job_service)
        held = replace(job, input_urls={}, items=store_content(Content({}), {}, frozenset()))
        fetcher = _fetcher(job_service, tmp_path)

        async def build(_job: Job, _content: Content) -> InferenceRequest:
            return _ask()

        fetcher.builders["sample"] = build
        with patch.object(JobStore, "set_inputs", side_effect=UNREACHABLE):
            await fetcher._fetch(held)
        waiting = await _waiting(job_store, job)
        assert "the job database cannot be used now" in str(waiting.blocked_reason)

    _run(tmp_path, act)


def test_a_download_goes_on_while_the_database_cannot_be_used(tmp_path: Path) -> None:
    """An event about the progress of a download that cannot be written does not end the job."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, _ = await _adopted(job_service)
        with patch.object(JobStore, "append_events", side_effect=UNREACHABLE):
            await _Progress(job_service, job, 1).start_file("https://example.org/a.png")
        assert [event.name for event in job_store.events(job.id)] == ["status"]
        await _Progress(job_service, job, 1).start_file("https://example.org/a.png")
        assert [event.name for event in job_store.events(job.id)] == ["status", "message"]

    _run(tmp_path, act)


def test_only_leases_of_jobs_that_are_fetched_are_renewed(tmp_path: Path) -> None:
    """The lease of a job that was claimed, but is not fetched, expires; an error does not end the
    renewals of the others.
    """
    errors: list[Exception] = [ValueError("unexpected"), UNREACHABLE]
    renew = JobStore.renew_leases

    def renew_later(job_store: JobStore, holder: str, lease_s: float, job_ids: list[str] | None = None) -> list[str]:
        if errors:
            raise errors.pop()
        return renew(job_store, holder, lease_s, job_ids)

    async def act(job_service: JobService, job_store: JobStore) -> None:
        fetcher = InputFetcher(Settings(state=tmp_path, job_lease_s=0.9), job_service, FolderBlobs(tmp_path), tmp_path)
        for _ in range(2):
            job_store.insert(await job_service._new_job(replace(_ask(), input_urls={"image_url": ["https://e.org"]})))
        fetched, unknown = (job_store.claim_inputs(fetcher._holder, 1.5) for _ in range(2))
        assert fetched is not None
        assert unknown is not None
        task = asyncio.create_task(asyncio.sleep(60))
        fetcher._running[task] = fetched
        with patch.object(JobStore, "renew_leases", renew_later):
            renewal = asyncio.create_task(fetcher._renew_leases())
            await _waiting(job_store, unknown)
            assert errors == []
            found = job_store.get(fetched.id)
            assert found is not None
            assert (found.status, found.lease_holder) == ("running", fetcher._holder)
        for one in (task, renewal):
            one.cancel()

    _run(tmp_path, act, job_lease_s=0.9)


def test_a_job_with_urls_waits_for_its_stored_body(tmp_path: Path) -> None:
    """If the blob store is unreachable while images are fetched, the job is queued again with the
    reason.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, _ = await _adopted(job_service)
        held = replace(job, input_urls={}, items_blob="jobs/a/items")
        fetcher = _fetcher(job_service, tmp_path)
        error = ObjectStoreError(errno.EIO, "the object store failed (GenericError)")
        with patch.object(FolderBlobs, "get", side_effect=error):
            await fetcher._fetch(held)
        waiting = await _waiting(job_store, job)
        assert "the object store failed" in str(waiting.blocked_reason)

    _run(tmp_path, act)


def test_an_adopted_request_that_fails_fails_its_job(tmp_path: Path) -> None:
    """If its request fails, an adopted job fails with the same problem."""

    async def act(job_service: JobService, _job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        call.result.set_exception(FailedError({"status": 422, "title": "t", "detail": "no"}))
        done = await _ended(job_service, job)
        assert done.status == "failed"
        assert "no" in str(done.problem)

    _run(tmp_path, act)


def test_a_result_that_cannot_be_stored_waits_for_room(tmp_path: Path) -> None:
    """If the result cannot be stored, the job is queued again with the reason and without a charged
    attempt.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        (tmp_path / "blobs" / "jobs").write_text("in the way")
        call.result.set_result(LARGE)
        waiting = await _waiting(job_store, job)
        assert "could not be stored" in str(waiting.blocked_reason)
        assert (waiting.blocked_bytes or 0) > LARGE["images"].nbytes
        (tmp_path / "blobs" / "jobs").unlink()
        await asyncio.sleep(1.1)
        assert [held.id for held in job_store.claim("worker", 3, 8)] == [job.id]

    _run(tmp_path, act)


def test_a_result_that_cannot_be_stored_for_long_fails_its_job(tmp_path: Path) -> None:
    """If the result still cannot be stored after `storage_wait_s`, the job fails with the
    reason.
    """

    async def act(job_service: JobService, _job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        (tmp_path / "blobs" / "jobs").write_text("in the way")
        call.result.set_result(LARGE)
        done = await _ended(job_service, job)
        assert done.status == "failed"
        assert "could not be stored" in str(done.problem)

    _run(tmp_path, act, storage_wait_s=0)


@pytest.mark.parametrize("status", [503, 507])
def test_a_worker_without_disk_space_does_not_end_a_job(tmp_path: Path, status: int) -> None:
    """If a worker reports a full disk (507), or that a store or all workers are gone (503), an
    adopted job is queued again with the reason.
    """

    async def act(job_service: JobService, job_store: JobStore) -> None:
        job, call = await _adopted(job_service)
        call.result.set_exception(FailedError({"status": status, "title": "t", "detail": "no room"}))
        assert (await _waiting(job_store, job)).blocked_reason == "no room"

    _run(tmp_path, act)


def test_a_queue_server_that_hangs_costs_no_lease(tmp_path: Path) -> None:
    """The leases of adopted jobs are renewed while waking the workers takes longer than a lease."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        with patch.object(BatchSender, "wake_idle", lambda *_: asyncio.sleep(60)):
            await job_service.create(_ask())  # a queued job, for which workers are woken
            job, call = await _adopted(job_service)
            for _ in range(30):
                await asyncio.sleep(0.1)
                assert job_store.touch_lapsed() == []
            call.result.set_result(SMALL)
            assert (await _ended(job_service, job)).status == "succeeded"

    _run(tmp_path, act, job_lease_s=1.0)


def test_a_request_whose_inputs_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    """A job whose images cannot be stored is rejected with 503 or 507, and no row is left."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        inference_request = InferenceRequest(
            BY_METHOD["sample"], _ask().entry, {}, 7, 3, Content({}), items={"images": LARGE["images"]}
        )
        (tmp_path / "blobs" / "jobs").write_text("in the way")
        for creation in (
            job_service.create(inference_request),
            job_service.create_once(inference_request, "route", "key"),
        ):
            with pytest.raises(ProblemError) as refused:
                await creation
            assert refused.value.status == 503
        (tmp_path / "blobs" / "jobs").unlink()
        full = patch.object(FolderBlobs, "put", side_effect=OSError(errno.ENOSPC, "No space left on device"))
        with full, pytest.raises(FullError, match="No space left on device"):
            await job_service.create(inference_request)
        assert job_store.count_by_status() == {}

    _run(tmp_path, act)


def test_a_row_that_cannot_be_written_leaves_no_inputs(tmp_path: Path) -> None:
    """If the row cannot be inserted, the error is raised and the stored images are deleted."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        inference_request = InferenceRequest(
            BY_METHOD["sample"], _ask().entry, {}, 7, 3, Content({}), items={"images": LARGE["images"]}
        )
        error = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        with patch.object(JobStore, "insert", side_effect=error), pytest.raises(sa.exc.OperationalError):
            await job_service.create(inference_request)
        assert list((tmp_path / "blobs" / "jobs").iterdir()) == []

    _run(tmp_path, act)


def test_a_row_that_was_written_keeps_its_inputs(tmp_path: Path) -> None:
    """If the connection breaks after the commit, the job exists and keeps its stored images."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        inference_request = InferenceRequest(
            BY_METHOD["sample"], _ask().entry, {}, 7, 3, Content({}), items={"images": LARGE["images"]}
        )
        insert = JobStore.insert

        def without_reply(store: JobStore, *rows: Job) -> None:
            insert(store, *rows)
            raise sa.exc.OperationalError("COMMIT", {}, OSError("connection lost"))

        with patch.object(JobStore, "insert", without_reply), pytest.raises(sa.exc.OperationalError):
            await job_service.create(inference_request)
        (job,) = job_store.claim("worker", 3, 8)
        assert job.items_blob is not None
        assert FolderBlobs(tmp_path / "blobs").exists(job.items_blob)

    _run(tmp_path, act)


def test_a_stopping_process_hands_over_its_jobs(tmp_path: Path) -> None:
    """When the API process stops, a worker can claim its adopted jobs at once."""
    ids = []

    async def act(job_service: JobService, _job_store: JobStore) -> None:
        inference_request = _ask()
        ids.append((await job_service.adopt(inference_request, _call(inference_request))).id)

    _run(tmp_path, act)
    job_store = JobStore(Settings(state=tmp_path).database)
    assert [job.id for job in job_store.claim("worker", 3, 8)] == ids
    job_store.engine.dispose()


def test_many_jobs_are_committed_together(tmp_path: Path) -> None:
    """Of 50 concurrent creations, each job is committed when its `create` returns."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        async def one() -> None:
            job = await job_service.create(replace(_ask(), caller=Caller("ann", frozenset())))
            assert job_store.get(job.id, "ann") is not None
            assert job_store.get(job.id, "bob") is None

        await asyncio.gather(*(one() for _ in range(50)))
        assert job_service.counts["queued"] == 50

    _run(tmp_path, act)


def test_trainings_are_not_jobs_that_wait_for_inference_workers(tmp_path: Path) -> None:
    """The number by which inference workers are scaled counts inference jobs only."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        await job_service.create(_ask())
        job_store.insert(Job(kind="training", model="m", version="", method="train"))
        assert await asyncio.to_thread(wait_until, lambda: job_service.waiting, "the jobs are counted") == 1
        assert job_service.counts == {"queued": 2}

    _run(tmp_path, act)


def test_a_dropped_result_is_missed(tmp_path: Path) -> None:
    """A result whose rows expired or whose blob was deleted raises LookupError."""

    async def act(job_service: JobService, job_store: JobStore) -> None:
        for fields in (SMALL, LARGE):
            inference_request = _ask()
            call = _call(inference_request)
            job = await job_service.adopt(inference_request, call)
            call.result.set_result(fields)
            done = await _ended(job_service, job)
            if fields is SMALL:
                job_store.mark_expired([done.id])
            else:
                open_blobs(f"file://{tmp_path / 'blobs'}").delete(f"jobs/{job.id}")
            with pytest.raises(LookupError):
                await job_service.result(done)

    _run(tmp_path, act)


@pytest.mark.parametrize("dump", [FIRST, LAST])
def test_a_state_folder_of_an_earlier_release_is_served(tmp_path: Path, dump: str) -> None:
    """Jobs of an earlier release are listed, and its paused training can be resumed."""
    settings = Settings(state=tmp_path, queue_url=f"redis://127.0.0.1:{free_port()}/0", log_level="error")
    load(dump, tmp_path / "ledger.sqlite3")
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite3")) as connection:
        connection.execute("UPDATE jobs SET owner = ''")  # as without API keys
        connection.commit()

    async def act() -> None:
        app = create_app(settings)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            shown = {job["id"]: job for job in (await client.get("/v1/jobs")).json()["data"]}
            assert len(shown) == (13 if dump == FIRST else 14)
            assert shown[job_id(1)]["request"] == {"model": "vae-mnist-2d", "count": 2}
            assert shown[job_id(11)]["problem"]["detail"] == "no such digit"
            resumed = await client.post(f"/v1/trainings/{job_id(6)}/resume")
            assert (resumed.status_code, resumed.json()["status"]) == (200, "queued")
            assert (await client.post(f"/v1/jobs/{job_id(2)}/cancel")).json()["status"] == "cancelled"

    asyncio.run(act())
    assert (tmp_path / "jobs.sqlite3").exists()
