"""Stores that hosts without a common folder share: two hosts see each other's versions, datasets
and runs.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from core import blob_cache
from core.blob_cache import BlobCache, digest_of
from core.blobs import FolderBlobs
from core.catalog.registry import Registry
from core.catalog.shared_versions import SharedVersions
from core.catalog.versions import FILE, VersionActiveError, VersionRemovedError, Versions
from core.cleanup import Cleanup
from core.datasets.shared_store import SharedDatasets
from core.datasets.store import Datasets, InUseError, NameTakenError
from core.instance import instance_id, share_webhook_secret
from core.jobs.records import TRAINING, Claim
from core.jobs.store import JobStore
from core.resources import NameOwnedError, ResourceStore
from core.runs import CHECKPOINT_FILES, SharedRuns
from core.settings import Settings, StatePaths
from core.shared import import_state
from core.storage import ObjectStoreError
from tests.core.jobs.test_store import LEASE_S, job
from tests.waiting import wait_until

SHIPPED = next(Path("checkpoints").glob(f"vae-mnist-2d/*/{FILE}"))


class Host:
    """A host with a state folder of its own."""

    def __init__(self, folder: Path, database: str, shared: Path) -> None:
        self.folder = folder
        self.job_store = JobStore(database)
        self.blobs = FolderBlobs(shared)
        self.paths = StatePaths(folder)
        engine = self.job_store.engine
        self.cache = BlobCache(self.blobs, folder / "cache", 1 << 30)
        self.versions = SharedVersions(self.paths.checkpoints, engine, self.blobs, self.cache)
        self.datasets = SharedDatasets(self.paths.datasets, engine, self.blobs, self.cache)
        self.runs = SharedRuns(self.paths, engine, self.blobs)

    def made(self) -> Path:
        """Return a new checkpoint file."""
        path = self.folder / "made"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(SHIPPED.read_bytes())
        return path

    def publish(self, name: str = "m") -> str:
        """Publish a version; return its number."""
        version = self.versions.reserve(name, [])
        self.versions.publish(self.made(), name, version)
        return version

    def array(self, name: str, value: int) -> bool:
        """Store a dataset of one array; return whether it is new."""
        with self.datasets.scratch_folder() as folder:
            (folder / "made").mkdir()
            for split in ("train", "validation", "test"):
                np.save(folder / "made" / f"{split}.npy", np.full((3, 1, 2, 2), value, np.uint8))
            return self.datasets.add(folder / "made", name, {"sha256": str(value)})[1]


@pytest.fixture
def hosts(tmp_path: Path, database: str) -> Iterator[list[Host]]:
    """Two hosts with one database and one blob store."""
    hosts = [Host(tmp_path / name, database, tmp_path / "blobs") for name in ("a", "b")]
    yield hosts
    for host in hosts:
        host.job_store.engine.dispose()


# --- versions ---


def test_a_version_is_found_and_read_on_another_host(hosts: list[Host]) -> None:
    """A registry follows versions and pointers of other hosts; the file is verified by its digest."""
    with contextlib.closing(Registry(hosts[1].folder / "none", hosts[1].versions)) as registry:
        _check_registry(registry, *hosts)


def _check_registry(registry: Registry, a: Host, b: Host) -> None:
    assert registry.find("m") is None
    assert (a.publish(), a.publish()) == ("1", "2")
    wait_until(lambda: registry.versions("m") == ["1", "2"], "the versions are seen", 10)
    entry = registry.find("m")
    assert entry is not None
    assert (entry.version, entry.size_bytes, registry.is_made(entry)) == ("2", SHIPPED.stat().st_size, True)
    assert entry.file().read_bytes() == SHIPPED.read_bytes()
    assert entry.file().is_relative_to(b.folder)
    a.versions.activate("m", "1")
    a.versions.stage("m", "2")
    wait_until(lambda: [one.ref for one in registry.candidates()] == ["m@2"], "the candidate is seen", 10)
    assert getattr(registry.find("m"), "version", "") == "1"


def test_numbers_are_reserved_once(hosts: list[Host]) -> None:
    """Two hosts get two numbers; a job gets its own again on another host, and a deleted one is not
    used again.
    """
    a, b = hosts
    assert a.versions.reserve("m", ["4"], "job_1") == "5"
    assert b.versions.reserve("m", ["4"], "job_2") == "6"
    assert b.versions.reserve("m", ["4"], "job_1") == "5"
    a.versions.publish(a.made(), "m", "5")
    with pytest.raises(FileExistsError):
        b.versions.publish(b.made(), "m", "5")
    b.versions.discard("m", list(b.versions.hide("m", ["5"]) or ["5"]))
    assert not a.versions.exists("m", "5")
    assert a.blobs.keys("versions") == []
    assert a.versions.reserve("m", []) == "7"


def test_a_version_that_is_active_is_not_deleted(hosts: list[Host]) -> None:
    """Hiding is refused for the active version and the candidate, and can be undone."""
    a, b = hosts
    a.publish()
    a.publish()
    b.versions.pin("m", "1")
    b.versions.pin("m", "2")
    b.versions.stage("m", "2")
    for version in ("1", "2"):
        with pytest.raises(VersionActiveError):
            a.versions.hide("m", [version])
    b.versions.unstage("m", "2")
    pointer = a.versions.hide("m", ["1", "2"], model=True)
    assert [file.version for file in b.versions.published()] == []
    assert b.versions.pointers() == {}
    b.versions.unhide("m", ["1", "2"], pointer)
    assert a.versions.pointers() == {"m": {"serves": "1"}}
    assert [file.version for file in a.versions.published()] == ["1", "2"]


def test_a_version_that_is_deleted_meanwhile_does_not_become_active(hosts: list[Host]) -> None:
    """Once a version is hidden, no process makes it the candidate or active."""
    a, b = hosts
    for _ in range(3):
        a.publish()
    a.versions.activate("m", "2")
    a.versions.hide("m", ["1"])
    for _ in ("hidden", "deleted"):
        for act in (b.versions.stage, b.versions.activate):
            with pytest.raises(VersionRemovedError, match="m@1 was deleted"):
                act("m", "1")
        assert b.versions.pointers() == {"m": {"serves": "2"}}
        a.versions.discard("m", ["1"])
    a.publish("n")
    a.versions.hide("n", ["1"])
    b.versions.pin("n", "1")
    assert "n" not in b.versions.pointers()


def test_a_deletion_succeeds_although_blobs_cannot_be_deleted(hosts: list[Host]) -> None:
    """The cleanup deletes the blobs, which belong to nothing any more."""
    a, b = hosts
    a.array("squares", 7)
    a.publish()
    with patch.object(a.blobs, "delete", side_effect=ObjectStoreError(errno.EIO, "no connection")):
        assert a.datasets.delete("squares")
        a.versions.hide("m", ["1"])
        a.versions.discard("m", ["1"])
    assert b.datasets.get("squares") is None
    assert not b.versions.exists("m", "1")
    assert set(b.datasets.orphans()) | set(b.versions.orphans()) == set(a.blobs.keys(""))


def test_an_interrupted_deletion_is_finished_by_another_host(hosts: list[Host]) -> None:
    """Versions that stay hidden are deleted with their blobs."""
    a, b = hosts
    a.publish()
    a.versions.hide("m", ["1"])
    b.versions.discard_interrupted(60.0)
    assert b.versions.exists("m", "1")
    b.versions.discard_interrupted(-1.0)
    assert not a.versions.exists("m", "1")
    assert a.blobs.keys("versions") == []


# --- datasets ---


def test_a_dataset_is_read_on_another_host(hosts: list[Host]) -> None:
    """Its arrays are there, also in a folder for child processes; other content is rejected."""
    a, b = hosts
    assert a.array("squares", 7)
    assert not b.array("squares", 7)
    with pytest.raises(NameTakenError):
        b.array("squares", 8)
    page = b.datasets.images("squares", "train", 1, 5)
    assert page is not None
    assert (page.total, page.pixels.tolist(), page.labels) == (3, [[[[7, 7], [7, 7]]]] * 2, None)
    assert b.datasets.preview("squares", "test", 4)
    assert [one["name"] for one in b.datasets.listing()] == ["squares"]
    folder = b.datasets.data_folder("squares", b.folder / "work")
    assert np.load(folder / "squares" / "train.npy").shape == (3, 1, 2, 2)
    assert json.loads((folder / "squares" / "dataset.json").read_text())["sha256"] == "7"


def test_a_dataset_in_use_on_another_host_is_not_deleted(hosts: list[Host]) -> None:
    """A use by one host protects it from deletion by another; afterwards its blobs are deleted."""
    a, b = hosts
    a.array("squares", 7)
    assert b.datasets.use("squares", "job_1")
    assert b.datasets.use("squares", "job_1")
    assert not b.datasets.use("none", "job_1")
    with pytest.raises(InUseError, match="job_1"):
        a.datasets.delete("squares")
    b.datasets.release("squares", "job_1")
    assert a.datasets.delete("squares")
    assert not b.datasets.delete("squares")
    assert a.blobs.keys("datasets") == []
    assert b.datasets.images("squares", "train", 0, 1) is None


# --- copies on a host ---


def test_a_dataset_and_its_owner_are_stored_together(hosts: list[Host]) -> None:
    """A dataset is not stored, and leaves no blobs, if its name has another owner; a dataset that
    has replaced another one is not deleted in its place.
    """
    host = hosts[0]
    owners = ResourceStore(host.job_store.engine)

    def stored(owner: str) -> None:
        with host.datasets.scratch_folder() as folder:
            (folder / "made").mkdir()
            np.save(folder / "made" / "train.npy", np.zeros((3, 1, 2, 2), np.uint8))
            confirm = partial(owners.confirm, "dataset", "squares", owner, shared=None)
            host.datasets.add(folder / "made", "squares", {"sha256": "0"}, confirm)

    owners.claim("dataset", "squares", "bob", shared=False)
    with pytest.raises(NameOwnedError):
        stored("ann")
    assert (host.datasets.get("squares"), host.blobs.keys("datasets")) == (None, [])
    owners.release("dataset", "squares")
    stored("ann")
    assert owners.get("dataset", "squares").owner == "ann"
    about = host.datasets.get("squares")
    assert about is not None
    assert not host.datasets.delete("squares", "2020-01-01T00:00:00.000+00:00")
    assert host.datasets.delete("squares", about["created_at"])
    owners.release("dataset", "squares", replace(owners.get("dataset", "squares"), created_at=1.0))
    assert owners.get("dataset", "squares").owner == "ann"
    owners.release("dataset", "squares", owners.get("dataset", "squares"))
    assert owners.all() == {}


def test_a_damaged_copy_is_replaced_and_a_damaged_blob_rejected(tmp_path: Path) -> None:
    """A copy is verified when a process first uses it, and a download always."""
    blobs = FolderBlobs(tmp_path / "blobs")
    blobs.put("a", b"content")
    (tmp_path / "file").write_bytes(b"content")
    digest = digest_of(tmp_path / "file")
    copy = BlobCache(blobs, tmp_path / "cache", 1 << 20).fetch("a", digest)
    copy.write_bytes(b"damaged")
    assert BlobCache(blobs, tmp_path / "cache", 1 << 20).fetch("a", digest).read_bytes() == b"content"
    blobs.put("b", b"other")
    with pytest.raises(OSError, match="digest"):
        BlobCache(blobs, tmp_path / "cache", 1 << 20).fetch("b", "0" * 64)
    assert not (tmp_path / "cache" / ("0" * 64)).exists()


def test_copies_that_were_not_used_for_long_make_room(tmp_path: Path) -> None:
    """The folder stays below its limit; a copy that was requested just now stays."""
    blobs, digests = FolderBlobs(tmp_path / "blobs"), []
    cache = BlobCache(blobs, tmp_path / "cache", 2500)
    for number in range(4):
        blobs.put(str(number), data := bytes([number]) * 1000)
        (tmp_path / "file").write_bytes(data)
        digests.append(digest_of(tmp_path / "file"))
        path = cache.fetch(str(number), digests[-1])
        os.utime(path, (number, number))
    cache.fetch("1", digests[1])
    assert [cache.path(digest).exists() for digest in digests] == [False, True, False, True]


def test_removed_copies_leave_few_files(tmp_path: Path) -> None:
    """The number of lock files does not grow with the number of blobs that the cache has had."""
    blobs = FolderBlobs(tmp_path / "blobs")
    cache = BlobCache(blobs, tmp_path / "cache", 0)
    with patch.object(blob_cache, "_LOCK_DIGITS", 1), patch.object(blob_cache, "_IN_USE_S", 0.0):
        for number in range(40):
            data = b"%d" % number
            blobs.put(str(number), data)
            cache.fetch(str(number), hashlib.sha256(data).hexdigest())
    assert len(list((tmp_path / "cache").iterdir())) <= 16


# --- runs ---


def _training(host: Host) -> Claim:
    """Insert a training and claim it; return the claim."""
    host.job_store.insert(job(kind=TRAINING, model="m"))
    (held,) = host.job_store.claim("w", LEASE_S, kinds=(TRAINING,))
    return held.claim


def _write_run(folder: Path, step: int, state: bytes) -> None:
    (folder / "previews").mkdir(parents=True, exist_ok=True)
    (folder / "state.pt").write_bytes(state)
    (folder / "progress.json").write_text(json.dumps({"checkpoint": {"steps": step}}))
    (folder / "metrics.jsonl").write_text("{}\n" * step)
    for name in ("recipe.json", "provenance.json"):
        (folder / name).write_text("{}")
    for name in ("preview.png", f"previews/{step}.png"):
        (folder / name).write_bytes(b"picture %d" % step)


def test_a_run_goes_on_from_its_checkpoint_on_another_host(hosts: list[Host]) -> None:
    """The last checkpoint and the previews are restored; an older one does not replace a later one."""
    a, b = hosts
    claim = _training(a)
    run = a.paths.run(claim.job_id)
    for step in (1, 2):
        _write_run(run, step, b"weights %d" % step)
        assert a.runs.upload(claim, run)
    assert b.runs.has_checkpoint(claim.job_id)
    assert b.runs.preview(claim.job_id) == b"picture 2"
    assert b.runs.preview_sizes(claim.job_id) == {1: 9, 2: 9}
    assert b.runs.preview(claim.job_id, 1) == b"picture 1"
    other = b.paths.run(claim.job_id)
    other.mkdir(parents=True)
    b.runs.restore(claim.job_id, other)
    assert [(other / name).read_bytes() for name in CHECKPOINT_FILES] == [
        (run / name).read_bytes() for name in CHECKPOINT_FILES
    ]
    _write_run(other, 3, b"weights 3")
    b.runs.restore(claim.job_id, other)
    assert (other / "state.pt").read_bytes() == b"weights 3"
    assert len(b.blobs.keys(f"runs/{claim.job_id}/checkpoint")) == len(CHECKPOINT_FILES)
    assert b.runs.sizes()[claim.job_id] > 0
    b.runs.remove(claim.job_id)
    assert a.blobs.keys("runs") == []
    assert not a.runs.has_checkpoint(claim.job_id)


def test_a_checkpoint_without_its_blobs_is_reported_and_stored_anew(hosts: list[Host]) -> None:
    """A restored database may name blobs that its backup lacks. The next checkpoint has all files,
    also those that have not changed.
    """
    a, b = hosts
    claim = _training(a)
    run, other = (host.paths.run(claim.job_id) for host in hosts)
    other.mkdir(parents=True)
    _write_run(run, 1, b"weights 1")
    assert a.runs.upload(claim, run)
    a.blobs.delete(f"runs/{claim.job_id}/checkpoint")
    assert b.runs.restore(claim.job_id, other) is False
    assert not (other / "state.pt").exists()
    _write_run(run, 2, b"weights 2")
    assert a.runs.upload(claim, run)
    assert b.runs.restore(claim.job_id, other) is True
    assert (other / "state.pt").read_bytes() == b"weights 2"


def test_a_worker_that_lost_its_claim_does_not_replace_a_checkpoint(hosts: list[Host]) -> None:
    """After another claim nothing is recorded; after a pause the last checkpoint is."""
    a, b = hosts
    claim = _training(a)
    _write_run(a.paths.run(claim.job_id), 1, b"weights 1")
    assert a.job_store.pause(claim.job_id)
    assert a.runs.upload(claim, a.paths.run(claim.job_id))
    assert b.job_store.resume(claim.job_id)
    (held,) = b.job_store.claim("other", LEASE_S, kinds=(TRAINING,))
    _write_run(b.paths.run(claim.job_id), 2, b"weights 2")
    assert b.runs.upload(held.claim, b.paths.run(claim.job_id))
    _write_run(a.paths.run(claim.job_id), 5, b"late")
    assert not a.runs.upload(claim, a.paths.run(claim.job_id))
    third = a.folder / "third"
    third.mkdir()
    a.runs.restore(claim.job_id, third)
    assert (third / "state.pt").read_bytes() == b"weights 2"
    assert len(a.blobs.keys(f"runs/{claim.job_id}/checkpoint")) == len(CHECKPOINT_FILES)


@pytest.mark.parametrize("how", ["deadline", "paused and cancelled", "failed by the reaper"])
def test_the_last_checkpoint_of_a_training_that_was_ended_is_stored(hosts: list[Host], how: str) -> None:
    """A worker whose training was ended by another process uploads its last checkpoint."""
    a, b = hosts
    deadline_at = time.time() + 0.2 if how == "deadline" else None
    a.job_store.insert(job(kind=TRAINING, model="m", deadline_at=deadline_at))
    (held,) = a.job_store.claim("w", 0.1 if how == "failed by the reaper" else LEASE_S, kinds=(TRAINING,))
    claim, run = held.claim, a.paths.run(held.id)
    _write_run(run, 1, b"weights 1")
    if how == "deadline":
        wait_until(lambda: b.job_store.end_overdue() == [claim.job_id], "the deadline has passed", 5)
    elif how == "paused and cancelled":
        assert b.job_store.pause(claim.job_id)
        b.job_store.cancel(claim.job_id)
    else:
        wait_until(b.job_store.touch_lapsed, "the lease has expired", 5)
        b.job_store.reap(1, [claim.job_id])
    ended = b.job_store.get(claim.job_id)
    assert ended is not None
    assert ended.ended
    assert a.runs.upload(claim, run)
    assert b.runs.has_checkpoint(claim.job_id)


def test_previews_are_restored_although_the_first_try_failed(hosts: list[Host]) -> None:
    """A training that is resumed after an error of the object store keeps its earlier previews."""
    a, b = hosts
    claim = _training(a)
    run, other = (host.paths.run(claim.job_id) for host in hosts)
    for step in (1, 2, 3):
        _write_run(run, step, b"weights %d" % step)
        assert a.runs.upload(claim, run)
    b.job_store.requeue(claim, "its lease expired")
    (held,) = b.job_store.claim("other", LEASE_S, kinds=(TRAINING,))
    other.mkdir(parents=True)
    get = b.blobs.get

    def failing(key: str, *part: int) -> bytes:
        if key.endswith("previews/2.png"):
            raise ObjectStoreError(errno.EIO, "no connection")
        return get(key, *part)

    with patch.object(b.blobs, "get", failing), pytest.raises(ObjectStoreError):
        b.runs.restore(claim.job_id, other)
    assert b.runs.restore(claim.job_id, other)
    _write_run(other, 4, b"weights 4")
    assert b.runs.upload(held.claim, other)
    assert sorted(a.runs.preview_sizes(claim.job_id)) == [1, 2, 3, 4]


def test_an_upload_that_the_store_loses_replaces_no_checkpoint(hosts: list[Host]) -> None:
    """The error is raised, and the earlier checkpoint stays."""
    a, b = hosts
    claim = _training(a)
    run, other = (host.paths.run(claim.job_id) for host in hosts)
    _write_run(run, 1, b"weights 1")
    assert a.runs.upload(claim, run)
    shutil.rmtree(run)  # blobs in a folder are hard links
    _write_run(run, 2, b"weights 2")
    take = a.blobs.take

    def losing(key: str, file: Path) -> None:
        if key.endswith("state.pt"):
            raise FileNotFoundError(errno.ENOENT, "no such upload", key)
        take(key, file)

    with patch.object(a.blobs, "take", losing), pytest.raises(FileNotFoundError):
        a.runs.upload(claim, run)
    other.mkdir(parents=True)
    assert b.runs.restore(claim.job_id, other)
    assert (other / "state.pt").read_bytes() == b"weights 1"


@pytest.mark.parametrize("late", [False, True], ids=["before the upload", "during the upload"])
def test_a_worker_that_lost_its_claim_changes_no_preview(hosts: list[Host], late: bool) -> None:
    """A worker whose job was resumed elsewhere neither replaces nor deletes the previews made
    there, also if it loses its claim during its upload.
    """
    a, b = hosts
    claim = _training(a)
    run, other = (host.paths.run(claim.job_id) for host in hosts)
    for step in (1, 2):
        _write_run(run, step, b"weights %d" % step)
        assert a.runs.upload(claim, run)
    upload_previews = a.runs._upload_previews

    def resume_elsewhere(*arguments: Any) -> None:
        b.job_store.requeue(claim, "its lease expired")
        (held,) = b.job_store.claim("other", LEASE_S, kinds=(TRAINING,))
        other.mkdir(parents=True)
        b.runs.restore(claim.job_id, other)
        assert b.runs.upload(held.claim, other)
        assert b.runs.preview(claim.job_id) == b"picture 2"  # until there is a later one
        for step in (3, 4):
            _write_run(other, step, b"weights %d" % step)
            assert b.runs.upload(held.claim, other)
        assert b.job_store.finish(held.claim, result=b"")
        if arguments:
            upload_previews(*arguments)

    if late:
        with patch.object(a.runs, "_upload_previews", resume_elsewhere):
            assert not a.runs.upload(claim, run)
    else:
        resume_elsewhere()
        assert not a.runs.upload(claim, run)
    assert b.runs.preview(claim.job_id) == b"picture 4"
    assert b.runs.preview_sizes(claim.job_id) == dict.fromkeys((1, 2, 3, 4), 9)
    assert late or len({key.split("/")[3] for key in a.blobs.keys(f"runs/{claim.job_id}/claims")}) == 1


def test_previews_of_an_earlier_release_are_read_and_replaced(hosts: list[Host]) -> None:
    """Previews whose keys have no token are read until the training makes another one."""
    a, b = hosts
    claim = _training(a)
    old = [f"runs/{claim.job_id}/{name}" for name in ("preview.png", "previews/1.png")]
    for key in old:
        a.blobs.put(key, b"old")
    assert b.runs.preview(claim.job_id) == b"old"
    assert b.runs.preview_sizes(claim.job_id) == {1: 3}
    _write_run(a.paths.run(claim.job_id), 2, b"weights 2")
    assert a.runs.upload(claim, a.paths.run(claim.job_id))
    assert b.runs.preview(claim.job_id) == b"picture 2"
    assert not set(old) & set(a.blobs.keys("runs"))


# --- all ---


def test_blobs_of_processes_that_died_are_removed(hosts: list[Host], tmp_path: Path, database: str) -> None:
    """The cleanup removes blobs without a row, and only these."""
    a, _ = hosts
    a.publish()
    a.array("squares", 7)
    claim = _training(a)
    _write_run(a.paths.run(claim.job_id), 1, b"weights")
    a.runs.upload(claim, a.paths.run(claim.job_id))
    kept = a.blobs.keys("")
    left = ["versions/m/9/x/model.safetensors", "datasets/none/1/train.npy", "runs/job_0/preview.png"]
    left += [f"runs/{claim.job_id}/checkpoint/x/state.pt"]
    for key in left:
        a.blobs.put(key, b"x")
    for key in a.blobs.keys(""):
        os.utime(a.blobs.path(key), (1, 1))
    settings = Settings(state=a.folder, database_url=database, blobs_url="s3://unused", sweep_s=1)
    cleanup = Cleanup(settings, a.job_store, a.blobs)
    cleanup.remove_orphaned_blobs()
    assert set(left) <= set(a.blobs.keys(""))
    cleanup.remove_orphaned_blobs()
    assert a.blobs.keys("") == kept


class _SlowUploads(FolderBlobs):
    """Blobs of which each upload of a file takes 3000 s by their times; `meanwhile` runs in that
    time.
    """

    upload_s = 3680.0
    meanwhile: Callable[[], object]

    def take(self, key: str, file: Path, media: str = "") -> None:
        """Copy the file, and date the blob by the start of its upload, as S3 does."""
        copy = file.with_name("copy")
        shutil.copyfile(file, copy)
        for earlier in self.keys(""):
            self._age(earlier)
        self.meanwhile()
        super().take(key, copy, media)
        self._age(key)

    def _age(self, key: str) -> None:
        written_at = self.path(key).stat().st_mtime - 3000.0
        os.utime(self.path(key), (written_at, written_at))


def test_the_first_files_of_a_dataset_are_kept_while_the_last_one_is_uploaded(
    hosts: list[Host], tmp_path: Path, database: str
) -> None:
    """The cleanup deletes no file of a dataset whose upload takes longer than the age of orphans,
    and deletes all files of an upload that was interrupted.
    """
    a, b = hosts
    blobs = _SlowUploads(tmp_path / "blobs")
    settings = Settings(state=b.folder, database_url=database, blobs_url="s3://unused", sweep_s=1)
    cleanup = Cleanup(settings, b.job_store, blobs)

    def sweep_twice() -> None:
        cleanup.remove_orphaned_blobs()
        cleanup.remove_orphaned_blobs()

    blobs.meanwhile = sweep_twice
    a.datasets = SharedDatasets(a.paths.datasets, a.job_store.engine, blobs, a.cache)
    assert a.array("squares", 7)
    sweep_twice()
    names = [key.rpartition("/")[2] for key in blobs.keys("datasets/squares")]
    assert names == ["test.npy", "train.npy", "validation.npy"]
    folder = b.datasets.data_folder("squares", b.folder / "work")
    assert np.load(folder / "squares" / "test.npy").shape == (3, 1, 2, 2)
    blobs.put("datasets/circles/1/test.npy", b"x")
    blobs.put("datasets/circles/1/uploading", b"")
    for key in blobs.keys("datasets/circles"):
        os.utime(blobs.path(key), (1, 1))
    sweep_twice()
    assert blobs.keys("datasets/circles") == []


def test_the_state_folder_of_one_host_is_imported(tmp_path: Path, database: str) -> None:
    """Versions, pointers, datasets with their uses, and checkpoints are copied once."""
    paths = StatePaths(tmp_path / "state")
    host = Host(tmp_path / "b", database, tmp_path / "blobs")
    old = Versions(paths.checkpoints)
    old.publish(host.made(), "m", old.reserve("m", []))
    old.publish(host.made(), "m", old.reserve("m", []))
    old.publish(host.made(), "m", old.reserve("m", []))
    old.activate("m", "1")
    old.hide("m", ["3"])
    old.discard("m", ["3"])
    datasets = Datasets(paths.datasets)
    with datasets.scratch_folder() as folder:
        (folder / "made").mkdir()
        np.save(folder / "made" / "train.npy", np.zeros((2, 1, 2, 2), np.uint8))
        datasets.add(folder / "made", "squares", {"sha256": "0"})
    datasets.use("squares", "job_1")
    claim = _training(host)
    _write_run(paths.run(claim.job_id), 1, b"weights")
    settings = Settings(state=paths.state, database_url=database, blobs_url="s3://unused")
    with patch("core.shared.open_blobs", lambda _url: host.blobs):
        assert import_state(settings) == {"versions": 2, "datasets": 1, "runs": 1}
        assert import_state(settings)["versions"] == 0
    assert host.versions.pointers() == {"m": {"serves": "1"}}
    assert [file.version for file in host.versions.published()] == ["1", "2"]
    assert host.versions.reserve("m", []) == "4"  # the number of a deleted version is not used again
    assert host.datasets.users("squares") == ["job_1"]
    assert host.runs.has_checkpoint(claim.job_id)
    assert (paths.checkpoints / "m" / "1" / FILE).exists()
    host.job_store.engine.dispose()


def test_hosts_sign_webhooks_with_one_secret(tmp_path: Path, database: str) -> None:
    """The second host takes over the secret of the first one."""
    hosts = [Settings(state=tmp_path / name, database_url=database) for name in ("a", "b")]
    for host in hosts:
        host.state.mkdir()
        share_webhook_secret(host)
    first, second = ((host.state / "webhook-secret").read_text() for host in hosts)
    assert first == second
    assert (hosts[1].state / "webhook-secret").stat().st_mode & 0o777 == 0o600


def test_hosts_agree_on_the_id_of_their_instance(database: str) -> None:
    """The first host stores its id, which later ones use."""
    assert instance_id(database, "first") == "first"
    instance_id.cache_clear()
    assert instance_id(database, "second") == "first"
