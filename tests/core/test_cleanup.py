"""Sweeps over a real state folder: files without an owner are removed, used and recent ones are
kept.
"""

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from core import cleanup
from core.blobs import open_blobs, remove_tree
from core.catalog.versions import Versions
from core.cleanup import Cleanup
from core.datasets.store import Datasets
from core.files import work_folder
from core.jobs.records import SliceReport, new_id
from core.jobs.store import JobStore
from core.settings import Settings
from tests.core.jobs.test_store import LEASE_S, job
from tests.postgresql import PostgreSQL

OLD_S = 100.0


class Place:
    """A state folder with its database, blob store and cleanup; also one of several hosts."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.state = folder / "state"
        self.settings = Settings(state=self.state, sweep_s=10, **settings)
        self.job_store = JobStore(self.settings.database)
        self.blobs = open_blobs(self.settings.blobs)
        self.cleanup = Cleanup(self.settings, self.job_store, self.blobs)

    def ended(self, blob: bytes | None = b"result", **more: Any) -> str:
        """Insert a succeeded job with its result in the blob store, or in the database if `blob` is
        None; return its id.
        """
        row = job(id=old_id(), **more)
        self.job_store.insert(row)
        (held,) = self.job_store.claim("w", LEASE_S, 1)
        key = f"jobs/{row.id}/1-0"
        if blob is None:
            report = SliceReport(held.claim, 0, 1, data=b"result")
        else:
            self.blobs.put(key, blob)
            report = SliceReport(held.claim, 0, 1, blob_key=key)
        self.job_store.record_slices([report])
        return str(row.id)

    def sweep_twice(self) -> None:
        """Run two sweeps, because an orphan is removed when the second one finds it again."""
        self.cleanup.run()
        self.cleanup.run()

    def left(self) -> set[str]:
        """Return the paths in the state folder, except the database and lock files."""
        found = {str(path.relative_to(self.state)) for path in self.state.rglob("*")}
        return {name for name in found if not name.startswith("jobs.") and not name.endswith((".lock", "/lock"))}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty state folder."""
    return Place(tmp_path)


def old_id() -> str:
    """Return a job id that was created some minutes ago."""
    return f"job_{int((time.time() - OLD_S) * 1000):012x}{new_id()[16:]}"


def age(folder: Path, seconds: float = OLD_S) -> None:
    """Set the modification times of a path and all it contains to `seconds` ago."""
    moment = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (moment, moment), follow_symlinks=False)


def test_files_of_deleted_and_cancelled_jobs_go(place: Place) -> None:
    """Blobs of deleted, cancelled and expired jobs are removed; results and inputs of other jobs
    are kept.
    """
    kept, expired = place.ended(), place.ended()
    place.job_store.mark_expired([expired])
    waiting, cancelled, deleted = job(id=old_id()), job(id=old_id()), old_id()
    place.job_store.insert(waiting, cancelled)
    place.job_store.cancel(cancelled.id)
    for job_id in (waiting.id, cancelled.id, deleted):
        place.blobs.put(f"jobs/{job_id}/2-0", b"late")
    age(place.state / "blobs")
    place.sweep_twice()
    assert set(place.blobs.names("jobs")) == {kept, waiting.id}


def test_new_blobs_are_not_deleted(place: Place) -> None:
    """Recent blobs without a row are kept, because a blob is written before its row; old ones are
    removed by the second sweep that finds them.
    """
    place.blobs.put(f"jobs/{new_id()}/items", b"x")
    place.blobs.put(f"jobs/{old_id()}/items", b"x")
    (place.state / "scratch" / old_id()).mkdir(parents=True)
    for _ in range(3):
        place.cleanup.run()
    assert len(place.blobs.names("jobs")) == 2
    assert len(list((place.state / "scratch").iterdir())) == 1
    age(place.state / "blobs")
    age(place.state / "scratch")
    place.cleanup.run()
    assert len(place.blobs.names("jobs")) == 2  # found as an orphan for the first time
    place.cleanup.run()
    assert len(place.blobs.names("jobs")) == 1
    assert list((place.state / "scratch").iterdir()) == []


def test_a_row_that_comes_between_two_sweeps_keeps_its_files(place: Place) -> None:
    """A row inserted between two sweeps, or during the second, keeps its blobs."""
    row, other = job(id=old_id()), job(id=old_id())
    for one in (row, other):
        place.blobs.put(f"jobs/{one.id}/items", b"x")
    age(place.state / "blobs")
    place.cleanup.run()
    place.job_store.insert(row)
    listed = place.cleanup._orphaned_blobs

    def racing() -> Any:
        for name, orphan in listed():
            if other.id in name:
                place.job_store.insert(other)
            yield name, orphan

    with patch.object(place.cleanup, "_orphaned_blobs", racing):
        place.cleanup.run()
    assert set(place.blobs.names("jobs")) == {row.id, other.id}


def test_half_written_files_go(place: Place) -> None:
    """Unfinished files of every kind are removed, except those that are locked by their writer."""
    place.blobs.put(f"jobs/{place.ended()}/2-0", b"x")
    places = [
        f"blobs/jobs/{old_id()}/items.{'a' * 32}.part",
        f"blobs/notes/x.{'b' * 32}.part",
        "unfinished/tmpabc",
        "plans/0123.4567",
        f"checkpoints/m/2/.{'c' * 32}",
        f"checkpoints/.serving.json.{'d' * 32}",
    ]
    for name in (*places, "unfinished/tmplive", "plans/0123.json", "checkpoints/m/1/model.safetensors"):
        (place.state / name).parent.mkdir(parents=True, exist_ok=True)
        (place.state / name).write_bytes(b"half")
    with (place.state / "unfinished" / "tmplive").open("rb") as live:
        fcntl.flock(live, fcntl.LOCK_EX)
        age(place.state)
        place.sweep_twice()
        left = place.left()
    assert not left & {*places, "checkpoints/m/2"}
    assert {"unfinished/tmplive", "plans/0123.json", "checkpoints/m/1/model.safetensors"} <= left


def test_a_write_that_fails_leaves_nothing(place: Place, tmp_path: Path) -> None:
    """A failed write leaves no partial file."""
    with patch.object(Path, "replace", side_effect=OSError(28, "No space left on device")):
        with pytest.raises(OSError, match="No space"):
            place.blobs.put("jobs/a/1-0", b"x" * 1000)
        (tmp_path / "made").write_bytes(b"x")
        with pytest.raises(OSError, match="No space"):
            place.blobs.take("jobs/a/answer", tmp_path / "made")
    assert place.blobs.keys("jobs") == []
    assert list((place.state / "blobs" / "jobs" / "a").iterdir()) == []


def test_scratch_and_run_folders_go_with_their_jobs(place: Place) -> None:
    """Scratch and run folders of ended or deleted jobs are removed; those of queued imports,
    existing trainings and uploads in progress are kept.
    """
    waiting, done, training = job(id=old_id(), kind="import"), job(id=old_id()), job(id=old_id(), kind="training")
    place.job_store.insert(waiting, done, training)
    place.job_store.cancel(done.id)
    place.job_store.cancel(training.id)
    refused, deleted = old_id(), old_id()
    for name in (f"scratch/{waiting.id}", f"scratch/{done.id}", f"scratch/{refused}"):
        (place.state / name).mkdir(parents=True)
        (place.state / name / "file").write_bytes(b"x")
    for name in (f"runs/{training.id}", f"runs/{deleted}"):
        (place.state / name / "inner").mkdir(parents=True)
        (place.state / name / "state.pt").write_bytes(b"x")
    with work_folder(place.state / "scratch" / old_id()) as uploading:
        age(place.state / "scratch")
        age(place.state / "runs")
        place.sweep_twice()
        auxiliary_job = {path.name for path in (place.state / "scratch").iterdir()}
    assert auxiliary_job == {waiting.id, uploading.path.name}
    assert [path.name for path in (place.state / "runs").iterdir()] == [training.id]
    assert not uploading.path.exists()


def test_a_folder_that_is_handed_over_stays(tmp_path: Path) -> None:
    """A work folder is removed at the end of its block, also after an exception, unless it was
    handed over.
    """
    with work_folder(tmp_path / "a") as folder:
        folder.hand_over()
    assert (tmp_path / "a").exists()
    with contextlib.suppress(KeyError), work_folder(tmp_path / "b") as folder:
        (folder.path / "file").touch()
        raise KeyError
    assert not (tmp_path / "b").exists()
    with pytest.raises(FileExistsError), work_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a").exists()  # another owner holds it


def test_unused_reserved_numbers_are_removed(place: Place) -> None:
    """Reserved version numbers are removed, unless a job may be about to use one."""
    versions = Versions(place.state / "checkpoints")
    for name in ("m", "n"):
        assert versions.reserve(name, ["1"]) == "2"
    place.job_store.insert(job(kind="publication", model="m"))
    age(place.state / "checkpoints")
    place.sweep_twice()
    assert (place.state / "checkpoints" / "m" / "2").is_dir()
    assert not (place.state / "checkpoints" / "n").exists()
    assert versions.reserve("n", []) == "1"


def test_datasets_whose_making_was_killed_go(place: Place) -> None:
    """Folders of datasets whose creation or removal was killed are removed; the folder of a running
    upload is kept.
    """
    datasets = Datasets(place.state / "datasets")
    abandoned, half_removed = (datasets.folder / f".{letter * 32}" for letter in "ab")
    for folder in (abandoned, half_removed):
        (folder / "made").mkdir(parents=True)
        (folder / "made" / "train.npy").write_bytes(b"x")
    (abandoned / "lock").touch()
    with datasets.scratch_folder() as made:
        place.cleanup.run()
        assert abandoned.exists()  # too recent: another process may be writing it
        age(datasets.folder)
        place.cleanup.run()
        assert {path for path in datasets.folder.glob(".*") if path.is_dir()} == {made}


def test_results_go_before_they_are_called_expired(place: Place) -> None:
    """If a result's blobs cannot be deleted, its job is not marked as expired; other jobs are, and
    the next sweep retries.
    """
    ids = [place.ended() for _ in range(5)]
    remove = place.blobs.delete

    def failing(prefix: str) -> None:
        if prefix.endswith(ids[2]):
            raise OSError(5, "Input/output error")
        remove(prefix)

    place.cleanup = Cleanup(place.settings.model_copy(update={"result_ttl_s": 0.5}), place.job_store, place.blobs)
    time.sleep(0.6)
    with patch.object(place.blobs, "delete", failing):
        place.cleanup.expire()
    assert sorted(place.job_store.states(ids)[one].expired for one in ids) == [False, True, True, True, True]
    assert [place.job_store.states([one])[one].expired for one in ids] == [
        one not in place.blobs.names("jobs") for one in ids
    ]
    place.cleanup.expire()
    assert all(state.expired for state in place.job_store.states(ids).values())
    assert place.blobs.names("jobs") == {}


def test_the_oldest_results_go_over_the_quota(tmp_path: Path) -> None:
    """The oldest results are removed until the blob store is within its quota."""
    place = Place(tmp_path, disk_quota_bytes=3 << 20)
    ids = [place.ended(b"x" * (100 << 10)) for _ in range(60)]
    place.cleanup.run()
    assert sum(place.blobs.sizes("").values()) <= 3 << 20
    assert set(place.blobs.names("jobs")) == set(ids[40:])


def test_expiry_of_results_in_the_database_needs_no_blob_store(tmp_path: Path) -> None:
    """The blob store is asked to delete only for jobs with stored inputs or results; what else it
    has of expired jobs is removed as orphans.
    """
    place = Place(tmp_path, result_ttl_s=0.1)
    in_database = [place.ended(None) for _ in range(5)]
    stored = [place.ended(), place.ended(None, items_blob="jobs/x/items")]
    for job_id in stored:
        place.blobs.put(f"jobs/{job_id}/items", b"x")
    place.blobs.put(f"jobs/{in_database[0]}/rendered.png", b"x")
    age(place.state / "blobs")
    time.sleep(0.2)
    with patch.object(place.blobs, "delete", wraps=place.blobs.delete) as delete:
        place.cleanup.expire()
    assert sorted(call.args[0] for call in delete.call_args_list) == sorted(f"jobs/{job_id}" for job_id in stored)
    assert all(state.expired for state in place.job_store.states([*in_database, *stored]).values())
    place.sweep_twice()
    assert place.blobs.names("jobs") == {}


def test_many_expired_results_do_not_keep_other_steps_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry ends after its time, and the next sweep goes on with it."""
    monkeypatch.setattr(cleanup, "_PAGE", 1)
    monkeypatch.setattr(cleanup, "_EXPIRY_S", 0.1)
    place = Place(tmp_path, result_ttl_s=0.1)
    ids = [place.ended() for _ in range(4)]
    time.sleep(0.2)

    def expired() -> int:
        return sum(state.expired for state in place.job_store.states(ids).values())

    with patch.object(place.blobs, "delete", side_effect=lambda _prefix: time.sleep(0.06)):
        place.cleanup.run()
        assert expired() < 4
        for _ in range(100):  # a slow machine may not remove one in each
            place.cleanup.run()
            if expired() == 4:
                return
    pytest.fail("later sweeps have not removed the others")


def test_one_host_at_a_time_deletes_from_the_shared_stores(tmp_path: Path, postgresql: PostgreSQL) -> None:
    """A host that begins to sweep while another one does removes no results, but its own files."""
    shared = {"database_url": postgresql.create(), "blobs_url": f"file://{tmp_path / 'blobs'}"}
    a, b = (Place(tmp_path / name, disk_quota_bytes=2 << 20, **shared) for name in ("a", "b"))
    ids = [a.ended(b"x" * (100 << 10)) for _ in range(40)]
    (b.state / "scratch" / old_id()).mkdir(parents=True)
    age(b.state / "scratch")
    sizes = a.blobs.sizes

    def sizes_before_another_sweep(prefix: str) -> dict[str, int]:
        before = sizes(prefix)
        if prefix == "jobs":
            b.sweep_twice()
        return before

    with patch.object(a.blobs, "sizes", sizes_before_another_sweep):
        a.cleanup.run()
    assert set(a.blobs.names("jobs")) == set(ids[20:])
    assert list((b.state / "scratch").iterdir()) == []
    more = [a.ended(b"x" * (100 << 10)) for _ in range(20)]
    b.cleanup.run()  # the lock has ended
    assert set(a.blobs.names("jobs")) == set(more)
    for place in (a, b):
        place.job_store.engine.dispose()


def test_sweeps_do_not_mind_files_that_vanish(place: Place) -> None:
    """Concurrent sweeps over the same files remove all of them without an error."""
    for _ in range(500):
        place.blobs.put(f"jobs/{old_id()}/1-0", b"x")
    age(place.state / "blobs")
    others = [Cleanup(place.settings, place.job_store, place.blobs) for _ in range(3)]
    for other in others:
        other.remove_orphaned_blobs()
    option_errors: list[Exception] = []

    def sweep(other: Cleanup) -> None:
        try:
            other.remove_orphaned_blobs()
            sum(place.blobs.sizes("").values())
            other._blobs.sweep("", 0, partial=True)
        except Exception as error:  # noqa: BLE001 - the test says which
            option_errors.append(error)

    threads = [threading.Thread(target=sweep, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert option_errors == []
    assert place.blobs.names("jobs") == {}


def test_a_candidate_of_an_interrupted_activation_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate is unstaged when no version has changed for longer than an activation takes."""
    versions = Versions(place.state / "checkpoints")
    versions.activate("m", "1")
    versions.stage("m", "2")
    now = time.monotonic()
    for seconds, candidate in ((0, "2"), (100, "2"), (130, None)):
        monkeypatch.setattr("core.cleanup.time.monotonic", lambda seconds=seconds: now + seconds)
        place.cleanup.run()
        assert versions.pointers()["m"].get("next") == candidate
    assert versions.pointers()["m"] == {"serves": "1"}


def test_one_sweep_at_a_time(place: Place) -> None:
    """A sweep is skipped while another process sweeps the state folder."""
    with (place.state / ".sweep.lock").open("wb") as lock, patch.object(place.job_store, "kept_results") as asked:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place.cleanup.run()
        asked.assert_not_called()


def test_the_database_away_removes_nothing(place: Place) -> None:
    """If the database cannot be read, no file is removed."""
    place.blobs.put(f"jobs/{old_id()}/items", b"x")
    age(place.state / "blobs")
    place.cleanup.run()
    with patch.object(JobStore, "states", side_effect=RuntimeError("away")):
        place.cleanup.run()
    assert len(place.blobs.names("jobs")) == 1


def test_trees_are_removed_whatever_they_are(tmp_path: Path) -> None:
    """`remove_tree` removes a folder, a file or a link, not the link's target, and accepts a
    missing path.
    """
    (tmp_path / "folder" / "in").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    assert remove_tree(tmp_path / "link")
    assert (tmp_path / "folder").exists()
    for name in ("folder", "file", "none"):
        assert remove_tree(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
