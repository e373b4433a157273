"""A backup contains all accepted jobs, even if jobs change meanwhile, and is restored exactly or
not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from core import backup
from core.backup import BackupError, create, restore
from core.blobs import open_blobs
from core.catalog.versions import FILE, Versions
from core.datasets.store import Datasets
from core.jobs.records import Job, JobState, SliceReport, import_key, new_id
from core.jobs.store import JobStore
from core.settings import Settings
from tests.core.jobs.test_migrate import LAST, job_id, load
from tests.core.jobs.test_store import LEASE_S, job
from tests.datasets import digits


class Service:
    """The state of a service, without its processes."""

    def __init__(self, state: Path) -> None:
        self.settings = Settings(state=state)
        self.job_store = JobStore(self.settings.database)
        self.blobs = open_blobs(self.settings.blobs)

    def ended(self, data: bytes, blob: bytes) -> Job:
        """Insert a finished job of two slices: one in the database, one in the blob store."""
        row = job(rows=2)
        self.job_store.insert(row)
        (held,) = self.job_store.claim("w", LEASE_S, 1)
        self.job_store.record_slices([SliceReport(held.claim, 0, 1, data)])
        (held,) = self.job_store.claim("w", LEASE_S, 1)
        key = f"jobs/{row.id}/{held.token}-1"
        self.blobs.put(key, blob)
        self.job_store.record_slices([SliceReport(held.claim, 1, 1, blob_key=key)])
        return row

    def result(self, job_id: str) -> list[bytes]:
        """Return the chunks of a job's result, from the database and the blob store."""
        return [
            self.blobs.get(str(chunk.blob_key)) if chunk.data is None else chunk.data
            for chunk in self.job_store.result(job_id)
        ]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    """A service state with a dataset, two versions, a queue folder and an instance id."""
    made = Service(tmp_path / "state")
    state = made.settings.state
    digits(state / "datasets")
    (state / "datasets" / "digits" / "uses" / "job_1").touch()
    (state / "datasets" / f".{'a' * 32}").mkdir()
    versions = Versions(state / "checkpoints")
    for number in ("1", "2"):
        (state / "made").write_bytes(b"weights " + number.encode())
        versions.publish(state / "made", "m", number)
    versions.activate("m", "1")
    (state / "instance-id").write_text("1234")
    (state / "queue").mkdir()
    (state / "queue" / "appendonly.aof").write_bytes(b"messages")
    return made


def test_accepted_jobs_are_restored(service: Service, tmp_path: Path) -> None:
    """A restored service has results, queued jobs with inputs, running jobs as queued ones,
    versions, datasets and runs.
    """
    state = service.settings.state
    done = service.ended(b"one", b"two" * 200_000)
    training = job(kind="training", model="m")
    uploaded = job(kind="import", model="m")
    waiting_id = new_id()
    waiting = job(id=waiting_id, items_blob=f"jobs/{waiting_id}/items")
    service.blobs.put(f"jobs/{waiting_id}/items", b"pictures")
    running = job(method="encode", owner="bob")
    service.job_store.insert(training, uploaded, waiting, running)
    assert {one.id for _ in range(2) for one in service.job_store.claim("w", LEASE_S, 1)} >= {running.id}
    (state / "scratch" / uploaded.id).mkdir(parents=True)
    (state / "scratch" / uploaded.id / FILE).write_bytes(b"a version")
    (state / "runs" / training.id).mkdir(parents=True)
    (state / "runs" / training.id / "state.pt").write_bytes(b"step 7")
    create(service.settings, tmp_path / "backup")
    found = Settings(state=tmp_path / "other")
    restore(found, tmp_path / "backup")

    other = Service(tmp_path / "other")
    assert other.result(done.id) == [b"one", b"two" * 200_000]
    assert other.blobs.get(f"jobs/{waiting_id}/items") == b"pictures"
    assert other.job_store.states([running.id])[running.id] == JobState("queued", expired=False)
    claimed = [one for _ in range(2) for one in other.job_store.claim("w", LEASE_S, 1)]
    assert {one.id for one in claimed} == {running.id, waiting.id}
    assert {one.attempts for one in claimed} == {0}
    assert (tmp_path / "other" / "scratch" / uploaded.id / FILE).read_bytes() == b"a version"
    assert (tmp_path / "other" / "runs" / training.id / "state.pt").read_bytes() == b"step 7"
    versions = Versions(tmp_path / "other" / "checkpoints")
    assert versions.pointers() == {"m": {"serves": "1"}}
    assert versions.path("m", "2").read_bytes() == b"weights 2"
    assert not versions.path("m", "2").stat().st_mode & 0o222
    datasets = Datasets(tmp_path / "other" / "datasets")
    assert datasets.get("digits") == Datasets(state / "datasets").get("digits")
    assert datasets.users("digits") == ["job_1"]
    assert not (tmp_path / "other" / "queue").exists()
    assert not (tmp_path / "other" / "instance-id").exists()  # otherwise it could use the first service's queue
    other.job_store.engine.dispose()


def test_jobs_that_end_and_go_meanwhile(service: Service, tmp_path: Path) -> None:
    """Every result in the copied database is in the backup although jobs are created and deleted
    meanwhile.
    """
    stop = threading.Event()

    def busy() -> None:
        while not stop.wait(0.01):
            kept.append(service.ended(os.urandom(10), os.urandom(5000)))
            gone = kept.pop(0).id
            service.blobs.delete(f"jobs/{gone}")
            service.job_store.delete(gone)

    kept = [service.ended(os.urandom(10), os.urandom(5000)) for _ in range(50)]
    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for number in range(3):
            create(service.settings, tmp_path / f"backup{number}")
    finally:
        stop.set()
        thread.join()
    for number in range(3):
        restore(Settings(state=tmp_path / f"other{number}"), tmp_path / f"backup{number}")
        other = Service(tmp_path / f"other{number}")
        succeeded = other.job_store.kept_results(1000)
        assert len(succeeded) > 10
        for ended in succeeded:
            data, blob = other.result(ended)
            assert (len(data), len(blob)) == (10, 5000)
        other.job_store.engine.dispose()


def test_a_result_that_goes_every_time_is_expired(service: Service, tmp_path: Path) -> None:
    """A job whose blob is missing is restored as expired."""
    done = service.ended(b"one", b"two")
    service.blobs.delete(f"jobs/{done.id}")
    create(service.settings, tmp_path / "backup")
    restore(Settings(state=tmp_path / "other"), tmp_path / "backup")
    other = Service(tmp_path / "other")
    assert other.job_store.states([done.id]) == {done.id: JobState("succeeded", expired=True)}
    other.job_store.engine.dispose()


def test_imports_have_their_file_or_fail(service: Service, tmp_path: Path) -> None:
    """An unfinished import is restored with its file. If the file is missing every time, as that of
    an import that ends meanwhile, the restored job has failed with the reason.
    """
    waiting, lost = job(kind="import", model="m"), job(kind="import", model="m")
    service.job_store.insert(waiting, lost)
    folder = service.settings.state / "scratch" / waiting.id
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"weights")
    create(service.settings, tmp_path / "backup")
    restore(Settings(state=tmp_path / "other"), tmp_path / "backup")
    other = Service(tmp_path / "other")
    assert (tmp_path / "other" / "scratch" / waiting.id / FILE).read_bytes() == b"weights"
    found = [other.job_store.get(one.id) for one in (waiting, lost)]
    assert [one and one.status for one in found] == ["queued", "failed"]
    assert "while the backup was made" in str(found[1] and found[1].problem)
    other.job_store.engine.dispose()


def test_imports_have_their_blob(service: Service, tmp_path: Path) -> None:
    """With an object store, which hosts share, the file of an unfinished import is a blob."""
    waiting = job(kind="import", model="m")
    service.job_store.insert(waiting)
    service.blobs.put(import_key(waiting.id), b"weights")
    with patch.object(backup, "is_shared", lambda _settings: True):
        create(service.settings, tmp_path / "backup")
    assert (tmp_path / "backup" / "blobs" / import_key(waiting.id)).read_bytes() == b"weights"


def test_unfinished_jobs_keep_their_dataset_and_version(service: Service, tmp_path: Path) -> None:
    """A restored training still protects its dataset, and the version numbers that it and an import
    have reserved are not given to others.
    """
    state = service.settings.state
    versions = Versions(state / "checkpoints")
    training = job(kind="training", model="m", request={"dataset": "digits"})
    imported = job(kind="import", model="n", request={"model": "n"})
    service.job_store.insert(training, imported)
    for row, folder in (
        (training, state / "runs" / training.id / training.id),
        (imported, state / "scratch" / imported.id),
    ):
        folder.mkdir(parents=True)
        (folder / FILE).write_bytes(b"weights")
        (folder / "version").write_text(versions.reserve(row.model, []))
    create(service.settings, tmp_path / "backup")
    restore(Settings(state=tmp_path / "other"), tmp_path / "backup")
    restored = Versions(tmp_path / "other" / "checkpoints")
    assert (restored.reserve("m", []), restored.reserve("n", [])) == ("4", "2")
    assert training.id in Datasets(tmp_path / "other" / "datasets").users("digits")


def test_a_backup_of_an_earlier_release_is_restored(tmp_path: Path) -> None:
    """A backup of an earlier release is restored, and its database is migrated."""
    folder, key = tmp_path / "backup", f"jobs/{job_id(10)}/3-0"
    load(LAST, folder / backup.DATABASE)
    (folder / "blobs" / key).parent.mkdir(parents=True)
    (folder / "blobs" / key).write_bytes(b"in a blob")
    scratch = f"state/desk/{job_id(8)}/{FILE}"
    (folder / scratch).parent.mkdir(parents=True)
    (folder / scratch).write_bytes(b"a version")
    files = {}
    for name in (backup.DATABASE, f"blobs/{key}", scratch):
        data = (folder / name).read_bytes()
        files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / backup.MANIFEST).write_text(json.dumps({"format": 1, "created_at": "", "bytes": 0, "files": files}))
    restore(Settings(state=tmp_path / "state"), folder)
    service = Service(tmp_path / "state")
    assert service.result(job_id(10)) == [b"in a blob"]
    assert len(service.result(job_id(9))) == 1
    assert (tmp_path / "state" / "scratch" / job_id(8) / FILE).read_bytes() == b"a version"
    interrupted = service.job_store.get(job_id(5))
    assert interrupted is not None
    assert (interrupted.status, interrupted.attempts) == ("queued", 2)
    service.job_store.engine.dispose()


def test_a_state_folder_of_an_earlier_release_is_backed_up(tmp_path: Path) -> None:
    """A state folder that is not yet migrated can be backed up and is not changed by it."""
    settings, key = Settings(state=tmp_path / "state"), f"jobs/{job_id(10)}/3-0"
    load(LAST, settings.state / "ledger.sqlite3")
    before = (settings.state / "ledger.sqlite3").read_bytes()
    open_blobs(settings.blobs).put(key, b"in a blob")
    (settings.state / "desk" / job_id(8)).mkdir(parents=True)
    (settings.state / "desk" / job_id(8) / FILE).write_bytes(b"a version")
    manifest = create(settings, tmp_path / "backup")
    assert set(manifest["files"]) == {backup.DATABASE, f"blobs/{key}", f"state/desk/{job_id(8)}/{FILE}"}
    left = {path.name for path in (tmp_path / "backup").iterdir() if path.is_file()}
    assert left == {backup.DATABASE, backup.MANIFEST}
    assert (settings.state / "ledger.sqlite3").read_bytes() == before
    restore(Settings(state=tmp_path / "other"), tmp_path / "backup")
    other = Service(tmp_path / "other")
    assert other.result(job_id(10)) == [b"in a blob"]
    assert (tmp_path / "other" / "scratch" / job_id(8) / FILE).read_bytes() == b"a version"
    other.job_store.engine.dispose()


def test_a_backup_includes_the_write_ahead_log(service: Service, tmp_path: Path) -> None:
    """A backup has the jobs in SQLite's write-ahead log, which a plain copy of the file lacks."""
    service.ended(b"one", b"two")
    shutil.copy(service.settings.state / "jobs.sqlite3", tmp_path / "plain.sqlite3")
    create(service.settings, tmp_path / "backup")
    import sqlite3

    def count(file: Path) -> int:
        connection = sqlite3.connect(file)
        try:
            return int(connection.execute("SELECT count(*) FROM jobs").fetchone()[0])
        except sqlite3.OperationalError:
            return 0
        finally:
            connection.close()

    assert count(tmp_path / "backup" / backup.DATABASE) == 1
    assert count(tmp_path / "plain.sqlite3") == 0


def test_a_checkpoint_written_while_it_is_copied(service: Service, tmp_path: Path) -> None:
    """A run that changes while it is copied is copied again, until its files belong together."""
    training = job(kind="training")
    service.job_store.insert(training)
    run = service.settings.state / "runs" / training.id
    run.mkdir(parents=True)
    (run / "state.pt").write_bytes(b"step 1")
    (run / "metrics.jsonl").write_bytes(b"1")
    add, steps = backup._Copy.add, [2, 3]

    def adding(self: Any, name: str, source: Path) -> None:
        add(self, name, source)
        if source.name == "metrics.jsonl" and steps:
            step = steps.pop(0)
            (run / "state.pt").write_bytes(f"step {step}".encode())
            (run / "metrics.jsonl").write_bytes(str(step).encode())

    with patch.object(backup._Copy, "add", adding):
        create(service.settings, tmp_path / "backup")
    copied = tmp_path / "backup" / "state" / "runs" / training.id
    assert (copied / "state.pt").read_bytes() == b"step 3"
    assert (copied / "metrics.jsonl").read_bytes() == b"3"


@pytest.mark.parametrize(
    ("deleted", "kept"),
    [("datasets/digits/uses/job_1", True), ("datasets/digits", False), (f"checkpoints/m/2/{FILE}", True)],
    ids=["use", "dataset", "version"],
)
def test_files_deleted_meanwhile(service: Service, tmp_path: Path, deleted: str, *, kept: bool) -> None:
    """A backup has the other files of a dataset or model of which one file is deleted meanwhile, but
    nothing of a deleted dataset.
    """
    state = service.settings.state
    entry = state / "/".join(deleted.split("/")[:2])
    add, deletions = backup._Copy.add, [state / deleted]

    def adding(self: Any, name: str, source: Path) -> None:
        add(self, name, source)
        if entry in source.parents and deletions:
            deletions.pop().rename(tmp_path / "gone")

    files = {path.relative_to(state) for path in entry.rglob("*") if path.is_file()}
    with patch.object(backup._Copy, "add", adding):
        create(service.settings, tmp_path / "backup")
    restored = tmp_path / "restored"
    restore(Settings(state=restored), tmp_path / "backup")
    found = {path.relative_to(restored) for path in (restored / entry.relative_to(state)).rglob("*") if path.is_file()}
    assert not deletions
    assert found == (files - {Path(deleted)} if kept else set())


def test_existing_folders_are_not_overwritten(service: Service, tmp_path: Path) -> None:
    """Neither a backup nor a non-empty state folder or blob store is overwritten."""
    create(service.settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="not empty"):
        create(service.settings, tmp_path / "backup")
    with pytest.raises(BackupError, match="in the state folder"):
        create(service.settings, service.settings.state / "backup")
    with pytest.raises(BackupError, match="already"):
        restore(service.settings, tmp_path / "backup")
    (tmp_path / "other" / "datasets" / "mine").mkdir(parents=True)
    (tmp_path / "other" / "datasets" / "mine" / "dataset.json").touch()
    with pytest.raises(BackupError, match="not empty"):
        restore(Settings(state=tmp_path / "other"), tmp_path / "backup")
    assert not (tmp_path / "other" / "jobs.sqlite3").exists()
    open_blobs(f"file://{tmp_path / 'third' / 'blobs'}").put("jobs/a/1-0", b"x")
    with pytest.raises(BackupError, match="blob store"):
        restore(Settings(state=tmp_path / "third"), tmp_path / "backup")


def test_a_damaged_backup_is_refused(service: Service, tmp_path: Path) -> None:
    """A damaged, incomplete or unsafe backup is rejected before anything is written."""
    service.ended(b"one", b"two")
    create(service.settings, tmp_path / "backup")
    blob = next((tmp_path / "backup" / "blobs").rglob("*-1"))
    good = blob.read_bytes()
    other = Settings(state=tmp_path / "other")

    def refused(words: str) -> None:
        with pytest.raises(BackupError, match=words):
            restore(other, tmp_path / "backup")
        assert not (tmp_path / "other").exists()

    blob.write_bytes(b"twO")
    refused("not as it was written")
    blob.unlink()
    refused("missing")
    blob.write_bytes(good)
    manifest = tmp_path / "backup" / backup.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "files": {**content["files"], "state/../../x": {"sha256": ""}}}))
    refused("outside")
    manifest.write_text(json.dumps({**content, "format": 99}))
    refused("format 99")
    manifest.unlink()
    refused("no backup, or one that was cut short")


def test_the_command_says_in_a_sentence_what_is_wrong(service: Service, tmp_path: Path) -> None:
    """The command fails with one sentence and status 1, and succeeds with status 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")}

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "core.backup", *words]
        return subprocess.run(command, env=environment | settings, capture_output=True, text=True, check=False)

    state = {"REVERIE_STATE": str(service.settings.state)}
    made = run("create", str(tmp_path / "b"), **state)
    assert (made.returncode, made.stderr) == (0, "")
    assert "backed up to" in made.stdout
    again = run("create", str(tmp_path / "b"), **state)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1
    assert "not empty" in again.stderr
    nothing = run("create", str(tmp_path / "c"), REVERIE_STATE=str(tmp_path / "nowhere"))
    assert nothing.returncode == 1
    assert "no job database" in nothing.stderr
    misspelt = run("create", str(tmp_path / "c"), REVERIE_STAT="x")
    assert misspelt.returncode == 1
    assert "Traceback" not in misspelt.stderr
    postgresql = run("create", str(tmp_path / "c"), REVERIE_DATABASE_URL="postgresql://h/d", **state)
    assert postgresql.returncode == 1
    assert "own tools" in postgresql.stderr
    restored = run("restore", str(tmp_path / "b"), REVERIE_STATE=str(tmp_path / "new"))
    assert restored.returncode == 0, restored.stderr
