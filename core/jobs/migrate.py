"""Create or migrate the tables of the job database when a process starts.

Several processes may start at the same time; a lock lets only one of them at a time create or
migrate tables. In a new database the tables of `core.jobs.schema` are created directly. An older
one is migrated by Alembic in one transaction, so a migration that fails or is killed changes
nothing. Alembic is imported only for a migration: normally a process reads one row, which says that
the database has the newest revision.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from core.files import locked
from core.jobs.schema import instance, metadata, resource_changes, transaction

HEAD = "0008"  # the newest revision in `migrations/versions`

OLDEST = "0008"
"""The oldest revision whose release can use the tables of revision `HEAD`.

Later migrations keep it if they only add tables, indexes, and columns that may be NULL. Then programs
of both releases can run side by side during an upgrade.
"""

_POSTGRESQL_LOCK = 0x72657665
_MIGRATIONS = Path(__file__).parent / "migrations"
_alembic_version = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


class NewerDatabaseError(RuntimeError):
    """Raised if a newer release changed the tables in a way that this release cannot use."""


# See docs/decisions.md#alembic-migrates-the-job-database-at-start
def migrate(engine: sa.Engine) -> None:
    """Create the tables of a new database, or migrate an older one to this release's schema.

    Waits while another process does so. A database of a newer release is left as it is. Raises
    NewerDatabaseError if this release cannot use it.
    """
    with _lock(engine):
        if engine.dialect.name == "sqlite" and engine.url.database:
            _rename_old_file(Path(engine.url.database))
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # The mode is stored in the file. SQLite does not wait for other processes when it
                # changes it, which is one reason for the lock.
                connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            revision = _revision(connection)
            new = not sa.inspect(connection).has_table("jobs")
        if revision is not None and revision >= HEAD:
            return
        with transaction(engine) as connection:
            _lift_time_outs(connection, "LOCAL")
            if new:
                metadata.create_all(connection)
                connection.execute(resource_changes.insert().values(count=0))
                connection.execute(instance.insert().values(id="", version_changes=0))
                _alembic_version.create(connection)
                connection.execute(_alembic_version.insert().values(version_num=HEAD))
            else:
                upgrade(connection)
            connection.execute(instance.update().values(oldest_schema=OLDEST))


def _lift_time_outs(connection: sa.Connection, scope: Literal["LOCAL", "SESSION"]) -> None:
    """Lift the time-outs of statements and locks until the transaction or the session ends."""
    if connection.dialect.name == "postgresql":
        for name in ("statement_timeout", "lock_timeout"):
            connection.exec_driver_sql(f"SET {scope} {name} = 0")


def upgrade(connection: sa.Connection) -> None:
    """Run the migrations that the database lacks, in the transaction of `connection`."""
    from alembic import command  # noqa: PLC0415 - it takes a good part of a second to import
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def existing_file(database: Path) -> Path:
    """Return `database`, or the path that earlier releases used if only that file exists.

    The earlier path of `jobs.sqlite3` is `ledger.sqlite3` in the same folder.
    """
    old = database.with_name("ledger.sqlite3")
    return old if database.name == "jobs.sqlite3" and not database.exists() and old.exists() else database


def _rename_old_file(database: Path) -> None:
    """Rename the database file of earlier releases, `ledger.sqlite3`, to `database`.

    Does nothing if there is no such file or `database` exists. Raises RuntimeError if another
    process has the old file open.
    """
    old = existing_file(database)
    if old == database:
        return
    try:
        with closing(sqlite3.connect(old, timeout=5)) as connection:
            # moves the content of the WAL file into the database
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        raise RuntimeError(f"another process uses {old}, its file until now: {error}; stop it first") from error
    old.rename(database)


def _revision(connection: sa.Connection) -> str | None:
    """Return the Alembic revision that the database records; None if it records none.

    Raises NewerDatabaseError if it is newer than `HEAD`, and this release is older than the oldest
    one that can use it.
    """
    if not sa.inspect(connection).has_table(_alembic_version.name):
        return None
    revision: str | None = connection.scalar(sa.select(_alembic_version.c.version_num))
    if revision is not None and revision > HEAD:
        oldest: str | None = connection.scalar(sa.select(instance.c.oldest_schema))
        if oldest is not None and oldest <= HEAD:
            return revision
        raise NewerDatabaseError(
            f"was made by a newer release (schema {revision}, this release has {HEAD}); start that release, or restore "
            "a backup that this one has made"
        )
    return revision


@contextmanager
def _lock(engine: sa.Engine) -> Iterator[None]:
    """Keep other processes from creating or migrating the tables while the block runs."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.detach()  # its session, and with it the lock, ends with the block
            _lift_time_outs(connection, "SESSION")
            connection.execute(sa.select(sa.func.pg_advisory_lock(_POSTGRESQL_LOCK)))
            yield
    elif engine.url.database:
        database = Path(engine.url.database)
        with locked(database.with_name(f".{database.name}.lock")):
            yield
    else:
        yield
