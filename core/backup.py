"""Backup and restore of the service's durable state: `python -m core.backup create|restore FOLDER`.

`create` works while the service runs. SQLite's online backup copies a consistent snapshot of the
job database. Then the files that this copy names are copied. Blobs, versions and datasets never
change once they are written, so they may be copied after the snapshot. If one of them was deleted
in between, the database is copied again. `backup.json` is written last and contains the SHA-256 of
each file; a folder without `backup.json` is not a backup.

`restore` first checks all files. It writes into an empty state folder only, and migrates the
database of an older release. Both commands are in this file, because they must agree on the layout.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.blobs import Blobs, open_blobs, remove_tree, walk
from core.catalog.versions import FILE, POINTERS
from core.files import modified_at_ns, write_durably
from core.instance import is_shared
from core.jobs import transitions
from core.jobs.migrate import existing_file
from core.jobs.records import AUXILIARY_KINDS, TERMINAL, TRAINING, JobState, import_key
from core.jobs.schema import jobs, transaction
from core.jobs.store import JobStore
from core.settings import Settings, StatePaths
from core.shared import open_datasets
from core.startup import errors_end_the_program, load_settings
from core.storage import reason_of

FORMAT = 1
MANIFEST = "backup.json"
DATABASE = "jobs.sqlite3"
STATE, BLOBS = "state", "blobs"

_TRIES = 5  # how often the database is copied if files that it names were deleted in between

_FILES_LOST = {
    "type": "about:blank",
    "title": "Files lost",
    "status": 500,
    "detail": "files of the job were deleted while the backup was made; send the request again",
}
_CHECKPOINT = "state.pt"
_COPIED_BY_JOB = ("scratch", "desk", "runs")
# Not in a backup: the queue server's data, which are not durable state; this instance's id, which
# no other instance may have; and temporary files.
_LEFT_OUT = (
    "queue",
    "unfinished",
    "blobs",
    "cache",
    "instance-id",
    "supervisord.conf",
    "supervisord.log",
    "supervisord.pid",
)


class BackupError(Exception):
    """Raised if a backup or restore failed; the message is one sentence for the operator."""


@dataclass
class _Copy:
    """A backup that is being written to `folder`.

    `files` has the size in bytes and the SHA-256 of each file written so far, keyed by its path in
    the backup.
    """

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, source: Path) -> None:
        """Copy the local file `source` into the backup at the path `name`.

        Raises FileNotFoundError if `source` does not exist any more.
        """
        shutil.copyfile(source, self._create_parent(name))
        self.add_written(name)

    def add_blob(self, blobs: Blobs, key: str) -> None:
        """Copy a blob into the backup, unless the backup has it already.

        Raises FileNotFoundError if the blob does not exist any more.
        """
        name = f"{BLOBS}/{key}"
        if name not in self.files:
            blobs.copy_to(key, self._create_parent(name))
            self.add_written(name)

    def add_written(self, name: str) -> None:
        """Flush the backup's file `name` to the disk; record its size and SHA-256."""
        path = self.folder / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self.files[name] = {"bytes": path.stat().st_size, "sha256": digest}

    def drop(self, name: str) -> None:
        """Delete the file `name` from the backup; do nothing if it is not there."""
        self.files.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def _create_parent(self, name: str) -> Path:
        """Return the path in the backup of the file `name`, after creating its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


# --- create ---


def create(settings: Settings, folder: Path) -> dict[str, Any]:
    """Write a backup into a new or empty folder; return the content of its `backup.json`.

    Raises BackupError if the job database is not SQLite or missing, or if the folder is not empty
    or is in the state folder; OSError if a file cannot be read or written.
    """
    database = existing_file(_database(settings))
    if not database.is_file():
        raise BackupError(f"there is no job database at {database}; is REVERIE_STATE the folder of the service?")
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; choose a new folder for each backup")
    if folder.resolve().is_relative_to(settings.state.resolve()):
        raise BackupError(f"{folder} lies in the state folder; a backup belongs elsewhere, best on another disk")
    folder.mkdir(parents=True, exist_ok=True)
    copy = _Copy(folder)
    blobs = open_blobs(settings.blobs)
    for attempt in range(_TRIES):
        _copy_database(database, folder / DATABASE)
        if _copy_files_of_jobs(settings, blobs, folder / DATABASE, copy, last=attempt == _TRIES - 1):
            break
    if is_shared(settings):
        for key in (key for prefix in ("versions", "datasets", "runs") for key in blobs.keys(prefix)):
            with contextlib.suppress(FileNotFoundError):  # it was deleted or replaced meanwhile
                copy.add_blob(blobs, key)
    _copy_state(settings.state, database.name, copy)
    copy.add_written(DATABASE)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    size_bytes = sum(file["bytes"] for file in copy.files.values())
    manifest = {"format": FORMAT, "created_at": created_at, "bytes": size_bytes, "files": copy.files}
    write_durably(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _database(settings: Settings) -> Path:
    """Return the path of the job database. Raises BackupError if the database is not SQLite."""
    address = sa.make_url(settings.database)
    if address.get_backend_name() != "sqlite" or not address.database:
        raise BackupError(
            f"the job database is {address.get_backend_name()}; back it up with its own tools, and the rest with a "
            "snapshot of the state folder and the blob store taken after it"
        )
    return Path(address.database)


def _copy_database(database: Path, target: Path) -> None:
    """Write a consistent snapshot of the SQLite database `database` to the file `target`.

    Other processes may write to `database` meanwhile. The snapshot is migrated to this release's
    schema, and replaces an earlier one.
    """
    target.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)  # in one step: the service writes to its WAL file meanwhile
    with _opened(target):
        pass  # migrates it


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[JobStore]:
    """Yield the job store of a database in a backup; afterwards the database is one file again."""
    job_store = JobStore(f"sqlite:///{database.resolve()}")
    try:
        yield job_store
    finally:
        job_store.engine.dispose()
    database.with_name(f".{database.name}.lock").unlink()
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.commit()


def _read_jobs(database: Path) -> list[tuple[str, str, JobState, list[str]]]:
    """Return (id, kind, state, keys of its blobs) of each job in a database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT id, kind, status, expired, items_blob FROM jobs").fetchall()
        keys = {job_id: [items] if items else [] for job_id, _, _, _, items in rows}
        for job_id, key in connection.execute("SELECT job_id, blob_key FROM result_chunks WHERE blob_key IS NOT NULL"):
            keys.get(job_id, []).append(key)
    return [(job_id, kind, JobState(status, expired), keys[job_id]) for job_id, kind, status, expired, _ in rows]


def _copy_files_of_jobs(settings: Settings, blobs: Blobs, database: Path, copy: _Copy, *, last: bool) -> bool:
    """Copy the files of all jobs in the backup's `database`; return whether all files existed.

    The files are blobs, folders of unfinished auxiliary jobs, and runs. Files that an earlier
    attempt copied and that no job needs any more are removed from the backup. If files are missing
    in the `last` attempt, their jobs are marked in `database`, as expired or, if they are
    unfinished, as failed; in an earlier attempt, the caller copies the database again.
    """
    gone: dict[str, JobState] = {}
    wanted: set[str] = set()
    for job_id, kind, state, keys in _read_jobs(database):
        try:
            if state.needs_blobs and keys:
                wanted |= _copy_blobs(blobs, job_id, keys, copy)
            if state.status not in TERMINAL:
                wanted |= _copy_inputs(settings, blobs, job_id, kind, copy)
            if kind == "training":
                wanted |= _copy_run(settings.state, job_id, copy)
        except FileNotFoundError:
            gone[job_id] = state
    for name in [name for name in copy.files if name not in wanted]:
        copy.drop(name)
    if gone and last:
        with _opened(database) as job_store:
            job_store.mark_expired([job_id for job_id, state in gone.items() if state.status in TERMINAL])
            with transaction(job_store.engine) as connection:
                for job_id in (job_id for job_id, state in gone.items() if state.status not in TERMINAL):
                    transitions.finish(connection, jobs.c.id == job_id, job_id, "failed", _FILES_LOST, items_blob=None)
    return not gone


def _copy_inputs(settings: Settings, blobs: Blobs, job_id: str, kind: str, copy: _Copy) -> set[str]:
    """Copy the files with which an unfinished auxiliary job begins; return their paths in the
    backup.

    Raises FileNotFoundError if the file of an import is missing: the import has ended meanwhile.
    """
    if kind == "import" and is_shared(settings):
        copy.add_blob(blobs, import_key(job_id))
        return {f"{BLOBS}/{import_key(job_id)}"}
    names = {
        name
        for scratch in ("scratch", "desk")  # "desk" is the name in earlier releases
        for name in _copy_tree(settings.state, Path(scratch) / job_id, copy)
    }
    if kind == "import" and not any(name.endswith(f"/{FILE}") for name in names):
        raise FileNotFoundError(f"{job_id} has no file to import")
    return names


def _copy_blobs(blobs: Blobs, job_id: str, keys: Sequence[str], copy: _Copy) -> set[str]:
    """Copy the blobs `keys` of a job, and its cached response files, into the backup.

    Returns the paths of the copies in the backup. Raises FileNotFoundError if one of `keys` does
    not exist any more. Cached files (a result as PNG, ZIP and so on) may be missing, because they
    can be made again.
    """
    for key in keys:
        copy.add_blob(blobs, key)
    names = {f"{BLOBS}/{key}" for key in keys}
    for key in blobs.keys(f"jobs/{job_id}"):
        with contextlib.suppress(FileNotFoundError):
            copy.add_blob(blobs, key)
            names.add(f"{BLOBS}/{key}")
    return names


def _copy_run(state: Path, job_id: str, copy: _Copy) -> set[str]:
    """Copy the run folder of a training into the backup, the checkpoint first.

    The copy is repeated if the training writes another checkpoint meanwhile; in the last of several
    attempts, missing files are left out. Returns the paths of the copies in the backup.
    """
    run = Path("runs") / job_id
    for _ in range(_TRIES):
        written = modified_at_ns(state / run / _CHECKPOINT)
        with contextlib.suppress(FileNotFoundError):
            names = _copy_tree(state, run, copy, first=_CHECKPOINT)
            if modified_at_ns(state / run / _CHECKPOINT) == written:
                return names
    return _copy_tree(state, run, copy, first=_CHECKPOINT, tolerant=True)


def _copy_tree(state: Path, below: Path, copy: _Copy, first: str = "", *, tolerant: bool = False) -> set[str]:
    """Copy the folder `state / below` into the backup, without hidden files and locks.

    Files with the name `first` are copied before the others. Returns the paths of the copies in the
    backup. Raises FileNotFoundError if a file is deleted before it is copied; with `tolerant`, such
    files are left out.
    """
    names = set()
    root = state / below
    for path in sorted(map(Path, (path for path, _ in walk(root))), key=lambda path: (path.name != first, path)):
        inside = path.relative_to(root)
        if path.name == "lock" or any(part.startswith(".") for part in inside.parts):
            continue
        name = f"{STATE}/{below / inside}"
        try:
            copy.add(name, path)
        except FileNotFoundError:
            if not tolerant:
                raise
            continue
        names.add(name)
    return names


def _copy_state(state: Path, database: str, copy: _Copy) -> None:
    """Copy the files of the state folder that belong to no job into the backup.

    The job database (its file has the name `database`), temporary files, the instance's id and the
    queue server's files are left out. The file of active versions is copied before the versions.
    """
    pointers = state / "checkpoints" / POINTERS
    with contextlib.suppress(FileNotFoundError):
        copy.add(f"{STATE}/checkpoints/{POINTERS}", pointers)
    for path in sorted(state.iterdir()):
        if path.name in {*_LEFT_OUT, *_COPIED_BY_JOB} or path.name.startswith((".", database)):
            continue
        for entry in [path] if path.is_file() else sorted(path.iterdir()):
            if not entry.name.startswith(".") and entry != pointers:
                _copy_entry(state, entry.relative_to(state), copy)


def _copy_entry(state: Path, below: Path, copy: _Copy) -> None:
    """Copy the file or folder `state / below` into the backup.

    Files that are deleted meanwhile are left out. If a whole folder is deleted, as a dataset is,
    nothing of it is in the backup.
    """
    source = state / below
    if not source.is_dir():
        with contextlib.suppress(FileNotFoundError):
            copy.add(f"{STATE}/{below}", source)
        return
    number = _inode_number(source)
    names = _copy_tree(state, below, copy, tolerant=True)
    if _inode_number(source) != number:
        for name in names:
            copy.drop(name)


def _inode_number(path: Path) -> int:
    """Return the number of a file's or folder's inode; 0 if it does not exist."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


# --- restore ---


def restore(settings: Settings, folder: Path) -> dict[str, Any]:
    """Copy a backup into an empty state folder and blob store; return its `backup.json`.

    Jobs that were running are queued again. Raises BackupError if the backup is damaged or of
    another format, or if the state folder or blob store is not empty; OSError if a file cannot be
    read or written.
    """
    manifest = _check(folder)
    database, state, blobs = _database(settings), settings.state, open_blobs(settings.blobs)
    if database.exists():
        raise BackupError(f"there is a job database at {database} already; restore into an empty state folder")
    blob_root = (state / "blobs").resolve()
    files = [path for path in state.rglob("*") if not path.is_dir() and blob_root not in path.resolve().parents]
    if files or blobs.keys(""):
        where = files[0] if files else "the blob store"
        raise BackupError(f"the state folder is not empty ({where}); restore into an empty one")
    state.mkdir(parents=True, exist_ok=True)
    work = state / f".restore-{os.getpid()}"
    for name in manifest["files"]:
        top, _, rest = name.partition("/")
        if top == STATE:
            _place(folder / name, state / re.sub("^desk/", "scratch/", rest))
        elif top == BLOBS:
            _place(folder / name, work)
            blobs.take(rest, work)
            work.unlink(missing_ok=True)  # a remote store leaves it
    for dataset in (state / "datasets").glob("[!.]*"):
        (dataset / "uses").mkdir(exist_ok=True)  # empty folders are not in a backup
    _place(folder / DATABASE, database)  # last: it names the other files
    job_store = JobStore(settings.database)
    # jobs that were running at the time of the backup are queued again
    job_store.release(None, "the service was restored from a backup")
    _restore_claims(settings, job_store)
    job_store.engine.dispose()
    return manifest


def _restore_claims(settings: Settings, job_store: JobStore) -> None:
    """Protect the datasets of unfinished trainings from deletion, and reserve the version numbers
    of unfinished jobs again.

    In a folder these are empty files and folders, which a backup may lack.
    """
    datasets = open_datasets(settings, job_store.engine, open_blobs(settings.blobs))
    paths = StatePaths(settings.state.resolve())
    unfinished = jobs.c.status.not_in(TERMINAL) & jobs.c.kind.in_((TRAINING, *AUXILIARY_KINDS))
    with job_store.engine.connect() as connection:
        rows = connection.execute(
            sa.select(jobs.c.id, jobs.c.kind, jobs.c.model, jobs.c.request).where(unfinished)
        ).all()
    for job_id, kind, model, request in rows:
        if kind == TRAINING:
            datasets.use(str(request.get("dataset")), job_id)
        for folder in (paths.run(request.get("training", job_id)) / job_id, paths.auxiliary_job(job_id)):
            with contextlib.suppress(FileNotFoundError):
                (paths.checkpoints / model / (folder / "version").read_text()).mkdir(parents=True, exist_ok=True)


def _place(source: Path, target: Path) -> None:
    """Restore one file: copy `source` to `target` and flush the copy to the disk.

    The copy of a model version is read-only.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    if target.suffix == ".safetensors":
        target.chmod(0o444)  # versions do not change


def _check(folder: Path) -> dict[str, Any]:
    """Compare a backup's files with its `backup.json`; return the content of `backup.json`.

    Raises BackupError if the folder is not a backup, or if a file is missing or damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise BackupError(f"{folder} is no backup, or one that was cut short: it has no {MANIFEST}") from error
    except ValueError as error:
        raise BackupError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise BackupError(f"the backup has format {manifest.get('format')!r}; this release reads {FORMAT}")
    for name, entry in manifest["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BackupError(f"the backup names a file outside of it: {name!r}")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise BackupError(f"the backup is damaged: {name} is missing") from error
        if digest != entry["sha256"]:
            raise BackupError(f"the backup is damaged: {name} is not as it was written")
    return manifest


def main() -> int:
    """Create or restore a backup with the settings of the environment; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m core.backup", description=__doc__)
    parser.add_argument("command", choices=["create", "restore"])
    parser.add_argument("folder", type=Path, help="of the backup")
    arguments = parser.parse_args()
    with errors_end_the_program():
        settings = load_settings()
    started = time.monotonic()
    created = not arguments.folder.exists()
    try:
        manifest = (create if arguments.command == "create" else restore)(settings, arguments.folder)
    except (BackupError, OSError, sqlite3.Error) as error:
        if arguments.command == "create" and created and not isinstance(error, BackupError):
            remove_tree(arguments.folder)
        reason = str(error) if not isinstance(error, OSError) else f"{reason_of(error)}: {error.filename or ''}"
        sys.stderr.write(f"nothing was {'backed up' if arguments.command == 'create' else 'restored'}: {reason}\n")
        return 1
    done = "backed up to" if arguments.command == "create" else "restored from"
    sys.stdout.write(
        f"{len(manifest['files'])} files, {manifest['bytes']} bytes, {done} {arguments.folder} "
        f"in {time.monotonic() - started:.1f} s (state of {manifest['created_at']})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
