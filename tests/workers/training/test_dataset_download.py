"""Datasets by URL, fetched by a training worker in this process."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.broker.codec import unpack
from core.jobs.records import Job
from core.settings import Settings
from tests.waiting import wait_until
from tests.webhooks.pictures import FileServer, endless, redirect
from workers.training.worker import TrainingWorker


@pytest.fixture
def files() -> Iterator[FileServer]:
    """A running file server."""
    with FileServer().running() as running:
        yield running


def worker_of(folder: Path, **settings: Any) -> TrainingWorker:
    """Return a training worker without a queue server that may connect to this machine."""
    fixed = {"state": folder / "state", "checkpoints": folder / "none", "queue_url": "redis://127.0.0.1:1/0"}
    return TrainingWorker(Settings(**{"allowed_networks": "127.0.0.0/8", **fixed, **settings}))


def claimed(worker: TrainingWorker, url: str, **fields: Any) -> Job:
    """Insert a job that fetches a dataset by URL, and claim it; return it."""
    request = {"source_url": url, "name": "web", "validation": 0.1, "test": 0.2, "kind": "pictures", **fields}
    worker.context.job_store.insert(Job(kind="dataset", model="", method="dataset", request=request))
    (job,) = worker.context.job_store.claim(worker.id, 600, 1, kinds=("dataset",))
    return job


def ended(worker: TrainingWorker, job: Job) -> Job:
    """Return the current state of a job."""
    found = worker.context.job_store.get(job.id)
    assert found is not None
    return found


def npz(seed: int = 1, count: int = 50) -> bytes:
    """Return an NPZ of pictures."""
    buffer = io.BytesIO()
    np.savez(buffer, images=np.random.default_rng(seed).integers(0, 256, (count, 8, 8), np.uint8))
    return buffer.getvalue()


def test_the_file_at_a_url_becomes_a_dataset(tmp_path: Path, files: FileServer) -> None:
    """A file by URL becomes a dataset, with progress; other content under the same name is 409."""
    worker = worker_of(tmp_path)
    files.files = {"/a.npz": npz(), "/b.npz": npz(2)}
    job = claimed(worker, f"{files.url}/a.npz")
    worker.run_job(job)
    (chunk,) = worker.context.job_store.result(job.id)
    about = unpack(chunk.data or b"")
    assert (about["name"], about["source"], about["format"]) == ("web", f"{files.url}/a.npz", "npz")
    assert about["counts"] == {"train": 35, "validation": 5, "test": 10}
    events = worker.context.job_store.events(job.id)
    messages = [event.data["message"] for event in events if event.name == "message"]
    assert messages[0] == f"fetching {files.url}/a.npz"
    assert messages[1] == f"received {len(files.files['/a.npz'])} bytes"  # type: ignore[arg-type]
    job = claimed(worker, f"{files.url}/b.npz")
    worker.run_job(job)
    assert (ended(worker, job).problem or {})["status"] == 409


def test_a_file_that_cannot_be_used_fails_the_job(tmp_path: Path, files: FileServer) -> None:
    """A file that cannot be fetched or read fails the job with the reason, and nothing is
    stored.
    """
    worker = worker_of(tmp_path, max_dataset_bytes=1 << 20)
    files.files = {
        "/text": b"no dataset",
        "/redirect": redirect("http://10.0.0.1/"),
        "/endless": endless,
        "/huge": partial(endless, announced=10 << 30),
    }
    for path, status, words in [
        ("/missing", 422, "responded 404"),
        ("/redirect", 422, "redirects"),
        ("/endless", 413, "larger than 1048576 bytes"),
        ("/huge", 413, "larger than 1048576 bytes"),
        ("/text", 422, ""),
    ]:
        job = claimed(worker, files.url + path)
        worker.run_job(job)
        problem = ended(worker, job).problem or {}
        assert problem["status"] == status, problem
        assert words in problem["detail"]
    assert [path for path in worker.context.paths.datasets.iterdir() if path.name != ".lock"] == []


def test_an_internal_address_is_not_reached(tmp_path: Path, files: FileServer) -> None:
    """An internal address is not fetched, although the job had been accepted."""
    worker = worker_of(tmp_path, allowed_networks="")
    job = claimed(worker, f"{files.url}/a.npz")
    worker.run_job(job)
    assert "not a public address" in (ended(worker, job).problem or {})["detail"]
    assert files.requests == []


def test_a_download_that_takes_too_long_or_is_cancelled_stops(tmp_path: Path, files: FileServer) -> None:
    """A download stops at the time limit, and when its job is cancelled."""
    stop = threading.Event()

    def slow(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not stop.wait(0.1):
                handler.wfile.write(b"some")
        except OSError:
            pass

    files.files = {"/slow": slow}
    worker = worker_of(tmp_path, fetch_timeout_s=1)
    job = claimed(worker, f"{files.url}/slow")
    worker.run_job(job)
    assert "took more than 1 s" in (ended(worker, job).problem or {})["detail"]
    patient = worker_of(tmp_path)
    job = claimed(patient, f"{files.url}/slow")
    thread = threading.Thread(target=patient.run_job, args=(job,))
    thread.start()
    wait_until(lambda: len(files.requests) == 2, "the download has started")
    assert patient.context.job_store.cancel(job.id)
    thread.join(30)
    stop.set()
    assert not thread.is_alive()
    assert ended(patient, job).status == "cancelled"
