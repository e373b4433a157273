"""Store the owners of datasets and models in a table of the job database.

A dataset or model without a row has no owner: for example shipped checkpoints, and everything that
was created without API keys. Every API key may use it, and only the role `admin` may change it. A
version has the owner of its model.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from core.jobs.database import current_time, dialect_insert
from core.jobs.schema import resource_changes, resources, transaction

Kind = Literal["dataset", "model"]


@dataclass(frozen=True)
class Ownership:
    """The owner of a dataset or model (None without one), and whether it is shared.

    Every API key may use a dataset or model that is `shared`; otherwise only its owner and keys
    with the role `admin` may use it. `created_at` is the Unix time of the owner's last claim.
    """

    owner: str | None
    shared: bool
    created_at: float = 0.0


UNOWNED = Ownership(None, shared=True)


class NameOwnedError(ValueError):
    """Raised if a dataset or model cannot be stored, because its name belongs to another owner."""


# See docs/decisions.md#owners-are-rows-and-keys-are-a-file
class ResourceStore:
    """The table of owners of datasets and models, which several processes may use."""

    def __init__(self, engine: sa.Engine) -> None:
        """Use the database of an open job store by its engine."""
        self._engine = engine

    def change_count(self) -> int:
        """Return a counter that increases when any process changes an owner or what is shared.

        As long as it has not changed, a process can use the ownerships that it read before.
        """
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.select(resource_changes.c.count)) or 0)

    def all(self) -> dict[tuple[str, str], Ownership]:
        """Return the ownership of each dataset and model with an owner, keyed by (kind, name).

        The kind is "dataset" or "model".
        """
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(resources)).all()
        return {(row.kind, row.name): Ownership(row.owner, row.shared, row.created_at) for row in rows}

    def get(self, kind: Kind, name: str) -> Ownership:
        """Return the ownership of a dataset or model; `UNOWNED` if it has no owner."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(resources).where(_is_resource(kind, name))).one_or_none()
        return Ownership(row.owner, row.shared, row.created_at) if row else UNOWNED

    def claim(
        self, kind: Kind, name: str, owner: str, *, shared: bool | None, vacant_after_s: float | None = None
    ) -> Ownership:
        """Make `owner` the owner of a dataset or model that has none; return the ownership.

        If the dataset or model has another owner, the existing ownership is returned unchanged. If
        the dataset or model does not exist, give `vacant_after_s`: an existing ownership older than
        this many seconds belongs to a deleted one, and `owner` replaces it. `shared` says whether
        every API key may use the dataset or model; None means no for a new owner, and no change if
        `owner` is the owner already. Each claim of the owner sets `created_at` to the present time.
        """
        resource = _is_resource(kind, name)
        with transaction(self._engine) as connection:
            ownership = Ownership(owner, bool(shared), current_time(connection))
            new = dialect_insert(connection, resources).values(kind=kind, name=name, **vars(ownership))
            # changes nothing in an existing row, but locks and returns it
            insert = new.on_conflict_do_update(index_elements=["kind", "name"], set_={"kind": kind})
            row = connection.execute(insert.returning(*resources.c)).one()
            stored = Ownership(row.owner, row.shared, row.created_at)
            if stored == ownership:
                pass  # there was no row
            elif row.owner == owner:
                ownership = Ownership(owner, row.shared if shared is None else shared, ownership.created_at)
                connection.execute(resources.update().where(resource).values(**vars(ownership)))
                if ownership.shared == row.shared:
                    return ownership
            elif vacant_after_s is not None and row.created_at < ownership.created_at - vacant_after_s:
                connection.execute(resources.update().where(resource).values(**vars(ownership)))
            else:
                return stored
            _count_change(connection)
            return ownership

    def confirm(
        self, kind: Kind, name: str, owner: str, *, shared: bool | None, connection: sa.Connection | None = None
    ) -> None:
        """Make sure that `owner` owns a new dataset or model, immediately before it is stored.

        If the name has no owner, because another dataset or model of this name was deleted, `owner`
        becomes its owner, and `shared` is stored (None means no). Otherwise `shared` stays as it
        is. Raises NameOwnedError if the name has another owner. An empty `owner` is a client
        without an API key: nothing is stored. `connection` is in a write transaction, which stores
        the dataset or model too; by default, the change is committed at once.
        """
        with transaction(self._engine) if connection is None else nullcontext(connection) as writer:
            if owner:
                row = Ownership(owner, bool(shared), current_time(writer))
                insert = dialect_insert(writer, resources).values(kind=kind, name=name, **vars(row))
                upsert = insert.on_conflict_do_update(
                    index_elements=["kind", "name"],
                    set_={"created_at": row.created_at},
                    where=resources.c.owner == owner,
                )
                stored = writer.scalar(upsert.returning(resources.c.owner)) == owner
            else:
                query = sa.select(resources.c.owner).where(_is_resource(kind, name))
                stored = writer.scalar(query) is None
            if not stored:
                raise NameOwnedError(f"the {kind} {name} has another owner")
            _count_change(writer)

    def share(self, kind: Kind, name: str, *, shared: bool, owner: str | None = None) -> bool:
        """Set whether every API key may use a dataset or model; return True.

        Returns False, and changes nothing, if it has no owner, or another one than `owner`.
        """
        with transaction(self._engine) as connection:
            resource = _is_resource(kind, name)
            if owner is not None:
                resource &= resources.c.owner == owner
            changed = connection.execute(resources.update().where(resource).values(shared=shared)).rowcount
            _count_change(connection)
            return changed > 0

    def release(self, kind: Kind, name: str, ownership: Ownership | None = None) -> None:
        """Delete the ownership of a deleted dataset or model, if it has an owner.

        Give the `ownership` from before the deletion: if the name was claimed since then, for
        another dataset or model, nothing is deleted.
        """
        with transaction(self._engine) as connection:
            resource = _is_resource(kind, name)
            if ownership is not None:
                resource &= resources.c.owner == ownership.owner
                resource &= resources.c.created_at == ownership.created_at
            if connection.execute(resources.delete().where(resource)).rowcount:
                _count_change(connection)


def _is_resource(kind: Kind, name: str) -> sa.ColumnElement[bool]:
    return (resources.c.kind == kind) & (resources.c.name == name)


def _count_change(connection: sa.Connection) -> None:
    connection.execute(resource_changes.update().values(count=resource_changes.c.count + 1))
