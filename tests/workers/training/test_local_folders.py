"""Folders of jobs on a host whose jobs and checkpoints are in stores that hosts share."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import pytest

from core.files import locked
from core.jobs.records import TRAINING, Claim, Job
from core.settings import Settings
from core.storage import ObjectStoreError
from tests.deferred_jobs import claimable_from
from tests.object_store import CREDENTIALS, new_store
from tests.training_jobs import claimed_job
from tests.waiting import wait_until
from workers.training.local_folders import LocalFolders
from workers.training.worker import TrainingWorker


@pytest.fixture
def shared_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingWorker:
    """A training worker with an object store, without a queue server."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        state=tmp_path,
        checkpoints=tmp_path / "none",
        queue_url="redis://127.0.0.1:1/0",
        blobs_url=new_store(),
        training_device="cpu",
    )
    return TrainingWorker(settings)


class Folders:
    """The run and scratch folders of a training that a worker has claimed, with a checkpoint of a
    step.
    """

    def __init__(self, trainer: TrainingWorker, *, stored: bool) -> None:
        """Make the folders; `stored` says whether the checkpoint is uploaded."""
        self.trainer = trainer
        name = f"m{uuid4().hex}"
        self.job = claimed_job(trainer, Job(kind=TRAINING, model=name, method=TRAINING, request={"recipe": {}}))
        self.run = trainer.context.paths.run(self.job.id)
        self.scratch = trainer.context.paths.auxiliary_job(self.job.id)
        (self.scratch / "data").mkdir(parents=True)
        (self.scratch / "data" / "train.npy").write_bytes(b"images")
        self.write(1)
        if stored:
            assert trainer.context.runs.upload(self.job.claim, self.run)

    def write(self, step: int) -> None:
        """Write a checkpoint."""
        self.run.mkdir(parents=True, exist_ok=True)
        (self.run / "state.pt").write_bytes(b"%d" % step)
        (self.run / "progress.json").write_text(json.dumps({"checkpoint": {"steps": step}}))

    def resume_elsewhere(self) -> Claim:
        """Let another worker claim the job; return its claim."""
        self.trainer.context.job_store.requeue(self.job.claim, "its lease expired")
        (held,) = self.trainer.context.job_store.claim("other", 600, kinds=(TRAINING,))
        return held.claim

    def kept(self) -> tuple[bool, bool]:
        """Return whether the run folder and the scratch folder exist."""
        return self.run.exists(), self.scratch.exists()


def test_a_lost_claim_leaves_no_folders(shared_trainer: TrainingWorker) -> None:
    """When another worker has resumed a training, its folders are removed here, but a checkpoint
    that is later than the stored one only when it is not needed any more.
    """
    folders = Folders(shared_trainer, stored=True)
    folders.resume_elsewhere()
    shared_trainer.remove_scratch(folders.job)
    assert folders.kept() == (False, False)
    ahead = Folders(shared_trainer, stored=True)
    ahead.write(5)
    claim = ahead.resume_elsewhere()
    shared_trainer.remove_scratch(ahead.job)
    assert ahead.kept() == (True, False)
    assert shared_trainer.context.job_store.finish(claim, result=b"")
    shared_trainer.remove_scratch(ahead.job)
    assert ahead.kept() == (False, False)


def test_a_queued_training_keeps_its_folders(shared_trainer: TrainingWorker) -> None:
    """A training that waits for the disk keeps its folders for its next run on this host."""
    folders = Folders(shared_trainer, stored=True)
    shared_trainer.context.postpone(folders.job, "waits")
    shared_trainer.remove_scratch(folders.job)
    assert folders.kept() == (True, True)
    claimable_from(shared_trainer.context.job_store, folders.job.id, 0.0)
    (job,) = shared_trainer.context.job_store.claim(shared_trainer.id, 600, kinds=(TRAINING,))
    with shared_trainer.folders.locked(job):
        shared_trainer.folders.remove_unneeded()
    assert folders.kept() == (True, True)


def test_folders_that_a_killed_worker_left_are_removed(shared_trainer: TrainingWorker) -> None:
    """A worker removes at its start what a killed one has left, unless a process works there, or a
    checkpoint is nowhere else.
    """
    store = shared_trainer.context.job_store
    left = {
        name: Folders(shared_trainer, stored=name != "only copy")
        for name in ("ended", "paused", "only copy", "of a worker", "of a training process")
    }
    store.cancel(left["ended"].job.id)
    store.pause(left["paused"].job.id)
    left["only copy"].resume_elsewhere()
    neighbour = LocalFolders(shared_trainer.context)
    working = threading.Thread(target=shared_trainer.start)
    with neighbour.locked(left["of a worker"].job), locked(left["of a training process"].run / "lock"):
        working.start()
        try:
            removed = ("ended", "paused")
            wait_until(lambda: not any(any(left[name].kept()) for name in removed), "the folders are removed", 20)
            wait_until(lambda: left["only copy"].kept() == (True, False), "the scratch folder is removed", 20)
            shared_trainer.folders.remove_unneeded()
            assert left["of a worker"].kept() == left["of a training process"].kept() == (True, True)
        finally:
            shared_trainer.stop()
            working.join()


def test_a_checkpoint_whose_upload_failed_is_uploaded_later(shared_trainer: TrainingWorker) -> None:
    """While the object store fails, the folder of a training that failed or was paused is kept; then
    its checkpoint is uploaded.
    """
    store, blobs, runs = shared_trainer.context.job_store, shared_trainer.context.blobs, shared_trainer.context.runs
    failed, paused = (Folders(shared_trainer, stored=False) for _ in range(2))
    assert store.finish(failed.job.claim, problem={"status": 500})
    assert store.pause(paused.job.id)
    with patch.object(type(blobs), "take", side_effect=ObjectStoreError(errno.EIO, "no connection")):
        shared_trainer.folders.remove_unneeded()
    for folders in (failed, paused):
        assert folders.run.exists()
        assert not runs.has_checkpoint(folders.job.id)
    shared_trainer.folders.remove_unneeded()
    for folders in (failed, paused):
        assert runs.has_checkpoint(folders.job.id)
        assert folders.kept() == (False, False)


def test_a_publication_keeps_the_run_folder_of_its_training(shared_trainer: TrainingWorker) -> None:
    """The run folder that a publication reads is kept while it runs, although the training ended."""
    folders = Folders(shared_trainer, stored=True)
    shared_trainer.context.job_store.cancel(folders.job.id)
    request = {"training": folders.job.id}
    publication = claimed_job(shared_trainer, Job(kind="publication", model="m", method="", request=request))
    with shared_trainer.folders.locked(publication):
        shared_trainer.folders.remove_unneeded()
        assert folders.run.exists()
    assert shared_trainer.context.job_store.finish(publication.claim, result=b"")
    shared_trainer.remove_scratch(publication)
    assert folders.kept() == (False, False)
    assert not shared_trainer.context.paths.auxiliary_job(publication.id).exists()


def test_without_an_object_store_a_run_folder_is_kept(trainer: TrainingWorker) -> None:
    """On one host the run folder is the only place of a checkpoint, and stays."""
    folders = Folders(trainer, stored=False)
    trainer.folders.remove_unneeded()
    trainer.context.job_store.cancel(folders.job.id)
    trainer.folders.remove_unneeded()
    trainer.remove_scratch(folders.job)
    assert folders.kept() == (True, False)
