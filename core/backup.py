"""`python -m core.backup create|restore FOLDER`: everything the service must not lose, in one folder and back.

`create` works while the service runs. The job database is copied by SQLite's online backup, which sees one moment of
it; then come the files that this copy names. Blobs, versions and datasets never change once they are written, so they
may be copied later than the moment; where one has gone meanwhile, its job was deleted or has expired, and the database
is copied anew. What is copied is on the disk, with its SHA-256 in `backup.json`, before that file is written: a folder
without it is no backup.

`restore` checks all of that first, and writes into an empty state folder only.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.blobs import Blobs, remove_tree
from core.catalog.versions import POINTERS
from core.jobs.records import TERMINAL
from core.jobs.store import JobStore
from core.settings import Settings
from core.startup import errors_end_the_program, load_settings
from core.storage import reason_of

FORMAT = 1
MANIFEST = "backup.json"
DATABASE = "jobs.sqlite3"
STATE, BLOBS = "state", "blobs"

_TRIES = 5
"""How often the database is copied anew where files it names have gone meanwhile."""

_CHECKPOINT = "state.pt"
_COPIED_BY_JOB = ("desk", "runs")
_LEFT_OUT = ("queue", "unfinished", "blobs", "instance-id", "supervisord.conf", "supervisord.log", "supervisord.pid")
"""What the state folder holds beside: the queue server's data, which are no memory of what is owed, the id of this
instance, which a copy must not share, and work files.
"""


class BackupError(Exception):
    """Why there is no backup, or nothing was restored; one sentence for the operator."""


@dataclass
class _Copy:
    """A backup in the making: files by their name in it, with size and SHA-256."""

    folder: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, name: str, source: Path) -> None:
        """Copy a local file. Raises FileNotFoundError where it vanished."""
        target = self._made(name)
        with source.open("rb") as file:
            self._write(name, target, iter(lambda: file.read(1 << 20), b""))

    def add_blob(self, blobs: Blobs, key: str) -> None:
        """Copy a blob. Raises FileNotFoundError where it vanished."""
        name = f"{BLOBS}/{key}"
        if name not in self.files:
            target = self._made(name)
            blobs.copy_to(key, target)
            self.note(name)

    def note(self, name: str) -> None:
        """Take the size and the hash of a file that is there already, and have it on the disk."""
        path = self.folder / name
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        self.files[name] = {"bytes": path.stat().st_size, "sha256": digest}

    def drop(self, name: str) -> None:
        """Leave a file out after all."""
        self.files.pop(name, None)
        (self.folder / name).unlink(missing_ok=True)

    def _made(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _write(self, name: str, target: Path, pieces: Iterator[bytes]) -> None:
        digest, size = hashlib.sha256(), 0
        with target.open("wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
            file.flush()
            os.fsync(file.fileno())
        self.files[name] = {"bytes": size, "sha256": digest.hexdigest()}


# --- create ---


def create(chosen: Settings, folder: Path) -> dict[str, Any]:
    """Write a backup into a folder that is new or empty; return its manifest. Raises BackupError, OSError."""
    database = _database(chosen)
    if not database.is_file():
        raise BackupError(f"there is no job database at {database}; is REVERIE_STATE the folder of the service?")
    if folder.exists() and any(folder.iterdir()):
        raise BackupError(f"{folder} is not empty; choose a new folder for each backup")
    if folder.resolve().is_relative_to(chosen.state.resolve()):
        raise BackupError(f"{folder} lies in the state folder; a backup belongs elsewhere, best on another disk")
    folder.mkdir(parents=True, exist_ok=True)
    copy = _Copy(folder)
    blobs = Blobs(chosen.blobs)
    for attempt in range(_TRIES):
        _copy_database(database, folder / DATABASE)
        if _copy_named(chosen, blobs, folder / DATABASE, copy, last=attempt == _TRIES - 1):
            break
    _copy_state(chosen.state, database.name, copy)
    copy.note(DATABASE)
    manifest = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "bytes": sum(file["bytes"] for file in copy.files.values()),
        "files": copy.files,
    }
    part = folder / f".{MANIFEST}"
    with part.open("w") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / MANIFEST)
    return manifest


def _database(chosen: Settings) -> Path:
    address = sa.make_url(chosen.database)
    if address.get_backend_name() != "sqlite" or not address.database:
        raise BackupError(
            f"the job database is {address.get_backend_name()}; back it up with its own tools, and the rest with a "
            "snapshot of the state folder and the blob store taken after it"
        )
    return Path(address.database)


def _copy_database(database: Path, target: Path) -> None:
    """Copy one moment of a database that is being written to."""
    target.unlink(missing_ok=True)
    with (
        contextlib.closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=rw", uri=True, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)  # in one step: the service writes on into its log meanwhile
    JobStore(f"sqlite:///{target.resolve()}").engine.dispose()  # migrates the copy of an older database
    with contextlib.closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE")  # one file
        copy.commit()


@dataclass(frozen=True)
class _Named:
    """A job of a copied database, and the keys of the blobs without which it is not whole."""

    id: str
    kind: str
    status: str
    expired: bool
    blobs: tuple[str, ...]

    @property
    def needs_blobs(self) -> bool:
        """Whether it will be run, or has a result that is kept."""
        return self.status not in TERMINAL or (self.status == "succeeded" and not self.expired)


def _jobs(database: Path) -> list[_Named]:
    parts: dict[str, list[str]] = {}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for job_id, key in connection.execute("SELECT job_id, blob_key FROM result_chunks WHERE blob_key IS NOT NULL"):
            parts.setdefault(job_id, []).append(key)
        rows = connection.execute("SELECT id, kind, status, expired, items_blob FROM jobs").fetchall()
    return [
        _Named(job_id, kind, status, bool(expired), (*parts.get(job_id, ()), *([items] if items else ())))
        for job_id, kind, status, expired, items in rows
    ]


def _copy_named(chosen: Settings, blobs: Blobs, database: Path, copy: _Copy, *, last: bool) -> bool:
    """Copy the files that belong to the jobs in a copied database; return whether all of them were there.

    At the last try, results that are gone are marked as expired, which is what they are.
    """
    gone, wanted = [], set()
    for job in _jobs(database):
        try:
            if job.needs_blobs and job.blobs:
                wanted |= _copy_blobs(blobs, job, copy)
            if job.status not in TERMINAL:
                wanted |= _copy_tree(chosen.state, Path("desk") / job.id, copy)
            if job.kind == "training":
                wanted |= _copy_run(chosen.state, job.id, copy)
        except FileNotFoundError:
            gone.append(job.id)
    for name in [name for name in copy.files if name not in wanted]:
        copy.drop(name)
    if gone and last:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            change = "UPDATE jobs SET expired = 1, items_blob = NULL WHERE id = ?"
            connection.executemany(change, [(job_id,) for job_id in gone])
            connection.commit()
    return not gone


def _copy_blobs(blobs: Blobs, job: _Named, copy: _Copy) -> set[str]:
    """Copy what a job cannot do without, and what was made from it since, which may vanish; return the names."""
    for key in job.blobs:
        copy.add_blob(blobs, key)
    names = {f"{BLOBS}/{key}" for key in job.blobs}
    for key in blobs.keys(f"jobs/{job.id}"):
        with contextlib.suppress(FileNotFoundError):
            copy.add_blob(blobs, key)
            names.add(f"{BLOBS}/{key}")
    return names


def _copy_run(state: Path, job_id: str, copy: _Copy) -> set[str]:
    """Copy a training's run, whose files change while it runs: what it goes on from first, then what it tells."""
    run = state / "runs" / job_id
    for _ in range(_TRIES):
        begun = _stamp(run / _CHECKPOINT)
        with contextlib.suppress(FileNotFoundError):
            names = _copy_tree(state, Path("runs") / job_id, copy, first=_CHECKPOINT)
            if _stamp(run / _CHECKPOINT) == begun:
                return names
    return _copy_tree(state, Path("runs") / job_id, copy, first=_CHECKPOINT, tolerant=True)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _copy_tree(state: Path, below: Path, copy: _Copy, first: str = "", *, tolerant: bool = False) -> set[str]:
    """Copy a folder of the state folder, `first` before the rest; hidden files and locks are work in progress."""
    names = set()
    root = state / below
    for path in sorted(root.rglob("*"), key=lambda path: (path.name != first, path)):
        inside = path.relative_to(root)
        if path.is_dir() or path.name == "lock" or any(part.startswith(".") for part in inside.parts):
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
    """Copy the rest of the state folder: pointers before the versions they point to, datasets, and small files."""
    pointers = state / "checkpoints" / POINTERS
    with contextlib.suppress(FileNotFoundError):
        copy.add(f"{STATE}/checkpoints/{POINTERS}", pointers)
    for path in sorted(state.iterdir()):
        if path.name in {*_LEFT_OUT, *_COPIED_BY_JOB} or path.name.startswith((".", database)):
            continue
        if path.is_file():
            with contextlib.suppress(FileNotFoundError):
                copy.add(f"{STATE}/{path.name}", path)
            continue
        for inner in sorted(path.iterdir()):
            # a dataset or version that is deleted meanwhile is left out as a whole
            if inner.name.startswith(".") or inner == pointers:
                continue
            before = set(copy.files)
            try:
                if inner.is_dir():
                    _copy_tree(state, Path(path.name) / inner.name, copy)
                else:
                    copy.add(f"{STATE}/{path.name}/{inner.name}", inner)
            except FileNotFoundError:
                for name in set(copy.files) - before:
                    copy.drop(name)


# --- restore ---


def restore(chosen: Settings, folder: Path) -> dict[str, Any]:
    """Put a backup into an empty state folder and blob store; return its manifest. Raises BackupError, OSError."""
    manifest = _checked(folder)
    database, state, blobs = _database(chosen), chosen.state, Blobs(chosen.blobs)
    if database.exists():
        raise BackupError(f"there is a job database at {database} already; restore into an empty state folder")
    blob_root = (state / "blobs").resolve()
    left = [path for path in state.rglob("*") if not path.is_dir() and blob_root not in path.resolve().parents]
    if left or blobs.keys(""):
        where = left[0] if left else "the blob store"
        raise BackupError(f"the state folder is not empty ({where}); restore into an empty one")
    state.mkdir(parents=True, exist_ok=True)
    for name in manifest["files"]:
        top, _, rest = name.partition("/")
        if top == STATE:
            _place(folder / name, state / rest)
        elif top == BLOBS:
            work = state / f".restore-{os.getpid()}"
            try:
                _place(folder / name, work)
                blobs.take(rest, work)
            finally:
                work.unlink(missing_ok=True)
    for dataset in (state / "datasets").glob("[!.]*"):
        (dataset / "uses").mkdir(exist_ok=True)  # empty folders are not in a backup
    _place(folder / DATABASE, database)  # last: without it the service would begin with an empty one
    _release_claims(chosen)
    return manifest


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())
    if target.suffix == ".safetensors":
        target.chmod(0o444)  # versions do not change


def _release_claims(chosen: Settings) -> None:
    """Have the jobs that ran at the moment of the backup run again, without charging them an attempt."""
    job_store = JobStore(chosen.database)
    job_store.release(None, "the service was restored from a backup")
    job_store.engine.dispose()


def _checked(folder: Path) -> dict[str, Any]:
    """The manifest of a backup all of whose files are there and as they were written. Raises BackupError."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise BackupError(f"{folder} is no backup, or one that was cut short: it has no {MANIFEST}") from error
    except ValueError as error:
        raise BackupError(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest.get("format") != FORMAT:
        raise BackupError(f"the backup has format {manifest.get('format')!r}; this release reads {FORMAT}")
    for name, said in manifest["files"].items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise BackupError(f"the backup names a file outside of it: {name!r}")
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise BackupError(f"the backup is damaged: {name} is missing") from error
        if digest != said["sha256"]:
            raise BackupError(f"the backup is damaged: {name} is not as it was written")
    return manifest


def main() -> int:
    """Create or restore a backup with the settings of the environment; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m core.backup", description=__doc__)
    parser.add_argument("command", choices=["create", "restore"])
    parser.add_argument("folder", type=Path, help="of the backup")
    given = parser.parse_args()
    with errors_end_the_program():
        chosen = load_settings()
    begun = time.monotonic()
    created = not given.folder.exists()
    try:
        manifest = (create if given.command == "create" else restore)(chosen, given.folder)
    except (BackupError, OSError, sqlite3.Error) as error:
        if given.command == "create" and created and not isinstance(error, BackupError):
            remove_tree(given.folder)
        reason = str(error) if not isinstance(error, OSError) else f"{reason_of(error)}: {error.filename or ''}"
        sys.stderr.write(f"nothing was {'backed up' if given.command == 'create' else 'restored'}: {reason}\n")
        return 1
    done = "backed up to" if given.command == "create" else "restored from"
    sys.stdout.write(
        f"{len(manifest['files'])} files, {manifest['bytes']} bytes, {done} {given.folder} "
        f"in {time.monotonic() - begun:.1f} s (state of {manifest['created_at']})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
