"""Store the versions made by this service for hosts without a common folder.

Their model cards, states, and which of them are active or candidates are rows in the job database;
their files are blobs. A version is written in this order: its number is reserved by a row, the file
is uploaded, the row is completed. So a process that dies leaves a reserved number, or a blob
without a row, which the cleanup deletes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sqlalchemy as sa

from core.blob_cache import BlobCache, digest_of
from core.blobs import Blobs
from core.catalog.checkpoint_file import read_metadata
from core.catalog.versions import FILE, VersionActiveError, Versions
from core.jobs.database import NOW, dialect_insert
from core.jobs.schema import instance, transaction, version_pointers, versions
from core.log import best_effort

PREFIX = "versions"  # of the keys of blobs

_RESERVED, _PUBLISHED, _HIDDEN, _DELETED = "reserved", "published", "hidden", "deleted"
_TRIES = 20

Pointers = dict[str, str]


@dataclass(frozen=True)
class SharedFile:
    """A version's file in the blob store, and the text of its model card."""

    name: str
    version: str
    key: str
    sha256: str
    size_bytes: int
    card: str


class SharedVersions(Versions):
    """The versions in the job database and the blob store. Its methods block."""

    def __init__(self, folder: Path, engine: sa.Engine, blobs: Blobs, cache: BlobCache) -> None:
        """Use the stores of this process. Paths of versions begin with `folder`, which has no
        files.
        """
        super().__init__(folder)
        self._engine = engine
        self._blobs = blobs
        self._cache = cache

    def fetch(self, file: SharedFile) -> Path:
        """Return the path of a local copy of a version's file; download it if there is none."""
        return self._cache.fetch(file.key, file.sha256)

    # --- the active version ---

    def stamp(self) -> int:
        """Return a counter that increases when a version changes, becomes active or a candidate."""
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.select(instance.c.version_changes)) or 0)

    def pointers(self) -> dict[str, Pointers]:
        """Return each model's active version (`serves`) and candidate (`next`), keyed by model."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(version_pointers)).all()
        return {row.name: _pointer(row) for row in rows if _pointer(row)}

    def published(self) -> list[SharedFile]:
        """Return the files of all versions that requests may use."""
        columns = (versions.c.name, versions.c.version, versions.c.blob_key, versions.c.sha256, versions.c.bytes)
        query = sa.select(*columns, versions.c.card).where(versions.c.status == _PUBLISHED)
        with self._engine.connect() as connection:
            return [SharedFile(*row) for row in connection.execute(query.order_by(versions.c.name, versions.c.version))]

    @contextmanager
    def _update_pointer(self, name: str) -> Iterator[Pointers]:
        """Yield a model's active version and candidate; store the changes that the block makes.

        The model's row is locked meanwhile.
        """
        with transaction(self._engine) as connection:
            pointer = _lock_pointer(connection, name)
            yield pointer
            _store_pointer(connection, name, pointer)

    # --- removal ---

    def hide(self, name: str, versions_: Sequence[str], *, model: bool = False) -> Pointers:
        """Hide versions from new requests before they are deleted.

        Returns the model's active version (`serves`) and candidate (`next`) as they were before the
        call. With `model`, the whole model is to be deleted, and it has neither any more. Raises
        VersionActiveError as `Versions.hide` does.
        """
        with transaction(self._engine) as connection:
            pointer = _lock_pointer(connection, name)
            if pointer.get("next") in versions_ or (pointer.get("serves") in versions_ and not model):
                raise VersionActiveError(f"{name}@{pointer.get('next') or pointer['serves']}")
            _set_status(connection, name, versions_, _PUBLISHED, _HIDDEN)
            _store_pointer(connection, name, {} if model else pointer)
        return pointer

    def unhide(self, name: str, versions_: Sequence[str], pointer: Mapping[str, str]) -> None:
        """Make hidden versions available again, because they are not deleted after all.

        `pointer` has the active version and candidate from before; they are set if the model has
        none now.
        """
        with transaction(self._engine) as connection:
            current = _lock_pointer(connection, name)
            _set_status(connection, name, versions_, _HIDDEN, _PUBLISHED)
            _store_pointer(connection, name, current or dict(pointer))

    def discard(self, name: str, versions_: Sequence[str]) -> None:
        """Delete hidden versions. Their rows stay, so that no version number is used twice."""
        with transaction(self._engine) as connection:
            _set_status(connection, name, versions_, _HIDDEN, _DELETED)
        for version in versions_:
            with self._engine.connect() as connection:
                deleted = _is_version(name, version) & (versions.c.status == _DELETED)
                if connection.scalar(sa.select(versions.c.name).where(deleted)) is None:
                    continue
            # if this fails, the cleanup deletes the blob, which belongs to no version
            best_effort(partial(self._blobs.delete, f"{PREFIX}/{name}/{version}"))

    def discard_interrupted(self, older_than_s: float) -> None:
        """Delete versions that have been hidden for more than `older_than_s` seconds."""
        old = (versions.c.status == _HIDDEN) & (versions.c.changed_at < NOW - older_than_s)
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(versions.c.name, versions.c.version).where(old)).all()
        for name, version in rows:
            self.discard(name, [version])

    # --- new versions ---

    def reserve(self, name: str, known: list[str], job_id: str = "") -> str:
        """Reserve and return a version number above all in `known` and all reserved ones.

        A second call for the same job returns the number of the first, also on another host.
        """
        for _ in range(_TRIES):
            with self._engine.connect() as connection:
                query = sa.select(versions.c.version, versions.c.job_id).where(versions.c.name == name)
                rows = connection.execute(query).all()
            if job_id and (own := [row.version for row in rows if row.job_id == job_id]):
                return str(own[0])
            numbers = [int(version) for version in (*known, *(row.version for row in rows)) if version.isdecimal()]
            version = str(max(numbers, default=0) + 1)
            row = {"name": name, "version": version, "status": _RESERVED, "job_id": job_id or None, "changed_at": NOW}
            with transaction(self._engine) as connection:
                insert = dialect_insert(connection, versions).values(row).on_conflict_do_nothing()
                if connection.execute(insert).rowcount:
                    return version
        raise RuntimeError(f"no version number of {name} could be reserved in {_TRIES} tries")

    def mark_used(self, name: str, version: str) -> None:
        """Keep a version number from being reserved, unless there is such a version."""
        row = {"name": name, "version": version, "status": _DELETED, "changed_at": NOW}
        with transaction(self._engine) as connection:
            connection.execute(dialect_insert(connection, versions).values(row).on_conflict_do_nothing())

    def leftovers(self, in_progress: Callable[[str], bool]) -> list[Path]:  # noqa: ARG002 - of the folder's
        """Return an empty list: only a store in a folder has partial files.

        Reserved numbers are kept, and `orphans` returns unused blobs.
        """
        return []

    def orphans(self) -> list[str]:
        """Return the keys of blobs that belong to no version."""
        keys = self._blobs.keys(PREFIX)
        with self._engine.connect() as connection:
            needed = sa.select(versions.c.blob_key).where(versions.c.status.in_((_PUBLISHED, _HIDDEN)))
            known = set(connection.scalars(needed))
        return [key for key in keys if key not in known]

    def is_removed(self, name: str, version: str) -> bool:
        """Return whether the row of a version says that it is hidden or deleted."""
        removed = _is_version(name, version) & versions.c.status.in_((_HIDDEN, _DELETED))
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(versions.c.name).where(removed)) is not None

    def exists(self, name: str, version: str) -> bool:
        """Return whether a version was published and is not deleted."""
        there = _is_version(name, version) & versions.c.status.in_((_PUBLISHED, _HIDDEN))
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(versions.c.name).where(there)) is not None

    def publish(self, made: Path, name: str, version: str) -> Path:
        """Upload the file `made` and make it a version; return the path of a local copy.

        Raises FileExistsError if the version exists.
        """
        card, sha256 = read_metadata(made)["card"], digest_of(made)
        key = f"{PREFIX}/{name}/{version}/{sha256}/{FILE}"
        if self.exists(name, version):
            raise FileExistsError(self.path(name, version))
        values = {"blob_key": key, "sha256": sha256, "bytes": made.stat().st_size, "card": card}
        self._blobs.take(key, made)
        with transaction(self._engine) as connection:
            row = {"name": name, "version": version, "status": _RESERVED, "changed_at": NOW}
            connection.execute(dialect_insert(connection, versions).values(row).on_conflict_do_nothing())
            reserved = _is_version(name, version) & (versions.c.status == _RESERVED)
            change = versions.update().where(reserved).values(status=_PUBLISHED, changed_at=NOW, **values)
            if not connection.execute(change).rowcount:
                raise FileExistsError(self.path(name, version))
            _count_change(connection)
        return self._cache.add(made, sha256) if made.exists() else self._cache.fetch(key, sha256)


def _is_version(name: str, version: str) -> sa.ColumnElement[bool]:
    return (versions.c.name == name) & (versions.c.version == version)


def _set_status(connection: sa.Connection, name: str, numbers: Sequence[str], old: str, new: str) -> None:
    changed = (versions.c.name == name) & versions.c.version.in_(numbers) & (versions.c.status == old)
    connection.execute(versions.update().where(changed).values(status=new, changed_at=NOW))
    _count_change(connection)


def _pointer(row: sa.Row[tuple[str, str | None, str | None]]) -> Pointers:
    return {key: value for key, value in (("serves", row.serves), ("next", row.next)) if value is not None}


def _lock_pointer(connection: sa.Connection, name: str) -> Pointers:
    """Lock a model's row of active version and candidate, insert it if missing, and return it."""
    connection.execute(dialect_insert(connection, version_pointers).values(name=name).on_conflict_do_nothing())
    query = sa.select(version_pointers).where(version_pointers.c.name == name).with_for_update()
    return _pointer(connection.execute(query).one())


def _store_pointer(connection: sa.Connection, name: str, pointer: Mapping[str, str]) -> None:
    values = {"serves": pointer.get("serves"), "next": pointer.get("next")}
    connection.execute(version_pointers.update().where(version_pointers.c.name == name).values(**values))
    _count_change(connection)


def _count_change(connection: sa.Connection) -> None:
    connection.execute(instance.update().values(version_changes=instance.c.version_changes + 1))
