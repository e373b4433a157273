"""Store datasets for hosts without a common folder: descriptions in the job database, files as
blobs.

The files of a dataset are uploaded before its row is inserted, and deleted after the row. So a
process that dies leaves blobs without a row, which the cleanup deletes. It dates them by the newest
blob in their folder: a marker, which is written again before each file, keeps the first files while
the later ones are uploaded.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import sqlalchemy as sa

from core.blob_cache import BlobCache, digest_of
from core.blobs import Blobs
from core.datasets.store import DESCRIPTION, NAME, Datasets, InUseError, NameTakenError
from core.jobs.database import NOW, dialect_insert
from core.jobs.schema import dataset_uses, datasets, transaction
from core.log import best_effort
from core.resources import NameOwnedError

PREFIX = "datasets"  # of the keys of blobs
_MARKER = "uploading"  # the name of a blob beside the files of a dataset that has no row yet


class SharedDatasets(Datasets):
    """The datasets in the job database and the blob store. Its methods block.

    Uploads are converted in scratch folders of this host.
    """

    def __init__(self, folder: Path, engine: sa.Engine, blobs: Blobs, cache: BlobCache) -> None:
        """Use the stores of this process, and `folder` for scratch folders."""
        super().__init__(folder)
        self._engine = engine
        self._blobs = blobs
        self._cache = cache

    def add(
        self, made: Path, name: str, description: dict[str, Any], confirm: Callable[..., None] = lambda **_: None
    ) -> tuple[dict[str, Any], bool]:
        """Upload the arrays in the folder `made`, and store them as the dataset `name`.

        Returns the stored description, and whether the dataset is new, as `Datasets.add` does.
        `confirm(connection=...)` is called in the transaction that stores a new dataset.
        """
        if (existing := self.get(name)) is not None:
            return _same(existing, description, name), False
        prefix = f"{PREFIX}/{name}/{uuid4().hex}"
        files = {}
        for path in sorted(made.glob("*.npy")):
            key, sha256, size = f"{prefix}/{path.name}", digest_of(path), path.stat().st_size
            self._blobs.put(f"{prefix}/{_MARKER}", b"")
            self._blobs.take(key, path)
            files[path.name] = {"key": key, "sha256": sha256, "bytes": size}
        self._blobs.put(f"{prefix}/{_MARKER}", b"")  # the files are kept for the time of one more upload
        created_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        description = {"name": name, "created_at": created_at, **description}
        row = {"name": name, "description": description, "files": files, "created_at": NOW}
        try:
            with transaction(self._engine) as connection:
                insert = dialect_insert(connection, datasets).values(row).on_conflict_do_nothing()
                new = connection.execute(insert).rowcount
                if new:
                    confirm(connection=connection)
        except NameOwnedError:
            self._discard(prefix)
            raise
        if new:
            self._discard(f"{prefix}/{_MARKER}")
            return description, True
        self._discard(prefix)  # another process was faster
        if (existing := self.get(name)) is None:
            raise NameTakenError(name)  # and it was deleted again
        return _same(existing, description, name), False

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a dataset's description; None if there is no such dataset."""
        if not NAME.fullmatch(name):
            return None
        with self._engine.connect() as connection:
            description: dict[str, Any] | None = connection.scalar(
                sa.select(datasets.c.description).where(datasets.c.name == name)
            )
        return description

    def listing(
        self, after: str = "", limit: int = 20, visible: Callable[[str], bool] = lambda _name: True
    ) -> list[dict[str, Any]]:
        """Return the descriptions of at most `limit` visible datasets, sorted by name.

        Only datasets with names after `after` are listed.
        """
        with self._engine.connect() as connection:
            # sorted here, because databases sort by their locale
            names = sorted(name for name in connection.scalars(sa.select(datasets.c.name)) if name > after)
            shown = [name for name in names if visible(name)][:limit]
            query = sa.select(datasets.c.name, datasets.c.description).where(datasets.c.name.in_(shown))
            descriptions = {row.name: row.description for row in connection.execute(query)}
        return [descriptions[name] for name in shown if name in descriptions]

    def delete(self, name: str, created_at: str | None = None) -> bool:
        """Delete a dataset and return True; return False if it does not exist, or was replaced."""
        with transaction(self._engine) as connection:
            if (row := _lock(connection, name)) is None or created_at not in {None, row.description["created_at"]}:
                return False
            users = list(connection.scalars(sa.select(dataset_uses.c.job_id).where(dataset_uses.c.name == name)))
            if users:
                raise InUseError(sorted(users))
            connection.execute(datasets.delete().where(datasets.c.name == name))
        for prefix in {file["key"].rpartition("/")[0] for file in row.files.values()}:
            self._discard(prefix)
        return True

    def _discard(self, prefix: str) -> None:
        """Delete blobs that no row names; if that fails, the cleanup deletes them later."""
        best_effort(lambda: self._blobs.delete(prefix))

    def use(self, name: str, user: str) -> bool:
        """Protect a dataset from deletion while the job `user` uses it, until `release` is called.

        Returns False if the dataset does not exist.
        """
        with transaction(self._engine) as connection:
            if _lock(connection, name) is None:
                return False
            row = {"name": name, "job_id": user}
            connection.execute(dialect_insert(connection, dataset_uses).values(row).on_conflict_do_nothing())
            return True

    def release(self, name: str, user: str) -> None:
        """End the protection of a dataset by the job `user`; do nothing if there is none."""
        with transaction(self._engine) as connection:
            own = (dataset_uses.c.name == name) & (dataset_uses.c.job_id == user)
            connection.execute(dataset_uses.delete().where(own))

    def uses(self) -> list[tuple[str, str]]:
        """Return all protections from deletion, as (name of the dataset, id of the job)."""
        with self._engine.connect() as connection:
            return [(name, job_id) for name, job_id in connection.execute(sa.select(dataset_uses))]

    def users(self, name: str) -> list[str]:
        """Return the ids of the jobs that protect the dataset `name` from deletion, sorted."""
        return sorted(job_id for used, job_id in self.uses() if used == name)

    def file(self, name: str, file: str) -> Path:
        """Return the path of a local copy of a dataset's file; download it if there is none."""
        entry = self._files(name).get(file)
        if entry is None:
            raise FileNotFoundError(file)
        return self._cache.fetch(entry["key"], entry["sha256"])

    def data_folder(self, name: str, work: Path) -> Path:
        """Return the folder `work / "data"`, whose subfolder `name` has the files of the dataset.

        The files are hard links to copies in this host's cache, which are downloaded if needed.
        `work` is a folder of the job. Blocks.
        """
        folder = work / "data" / name
        for file, entry in self._files(name).items():
            self._cache.link(entry["key"], entry["sha256"], folder / file)
        if (description := self.get(name)) is not None:
            (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        return folder.parent

    def orphans(self) -> list[str]:
        """Return the keys of blobs that belong to no dataset."""
        keys = self._blobs.keys(PREFIX)
        with self._engine.connect() as connection:
            stored = list(connection.scalars(sa.select(datasets.c.files)))
        known = {file["key"] for files in stored for file in files.values()}
        return [key for key in keys if key not in known]

    def _files(self, name: str) -> dict[str, Any]:
        """Return {key, digest, size} of each file of a dataset, keyed by file name.

        The result is empty if there is no such dataset.
        """
        with self._engine.connect() as connection:
            files = connection.scalar(sa.select(datasets.c.files).where(datasets.c.name == name))
        return files or {}


def _lock(connection: sa.Connection, name: str) -> sa.Row[Any] | None:
    """Lock the row of a dataset and return it; None if there is no such dataset."""
    return connection.execute(sa.select(datasets).where(datasets.c.name == name).with_for_update()).one_or_none()


def _same(existing: dict[str, Any], description: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the description of the existing dataset `name`, which has the arrays of `description`.

    Raises NameTakenError if the arrays differ.
    """
    if existing["sha256"] != description["sha256"]:
        raise NameTakenError(name)
    return existing
