"""Open the job database: options of SQLite and PostgreSQL, time-outs, and the time that rows use.

Times in the database are those of one clock, so that leases and deadlines do not depend on the
clocks of hosts. For PostgreSQL it is the server's. A SQLite file is used by processes of one host,
so it is the clock of that host.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

# Parameters of a connection to PostgreSQL; those in the URL take precedence.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
    "fallback_application_name": "reverie",
}
# Time-outs of the server. A process that is suspended in a transaction loses its locks after
# `idle_in_transaction_session_timeout`.
_OPTIONS = "-c statement_timeout=60s -c lock_timeout=5s -c idle_in_transaction_session_timeout=10s"
_POOL_TIMEOUT_S = 10.0  # for a free connection
_SQLITE_LOCK_TIMEOUT_S = 15.0


DRIVERS = ("sqlite", "postgresql+psycopg")


def database_url(url: str) -> sa.URL:
    """Return the SQLAlchemy URL of `url`; `postgresql://` means the driver psycopg 3.

    Raises sqlalchemy.exc.ArgumentError if it is not a URL.
    """
    address = sa.make_url(url)
    return address.set(drivername="postgresql+psycopg") if address.drivername in {"postgres", "postgresql"} else address


def open_engine(url: str) -> sa.Engine:
    """Return an engine for the database at a URL; create the folder of a SQLite file.

    Nothing is connected yet.
    """
    address = database_url(url)
    if address.get_backend_name() == "sqlite":
        if address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        # a transaction begins where the code says so
        arguments = {"timeout": _SQLITE_LOCK_TIMEOUT_S, "check_same_thread": False, "isolation_level": None}
        engine = sa.create_engine(address, connect_args=arguments)
        sa.event.listen(engine, "connect", _configure_sqlite)
        return engine
    options = {name: value for name, value in _CONNECTION.items() if name not in address.query}
    # the server takes the last value of an option
    options["options"] = f"{_OPTIONS} {address.query.get('options', '')}".strip()
    # the guards of each write are evaluated again after a wait for a lock, which is so at this
    # level only
    return sa.create_engine(
        address,
        connect_args=options,
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_timeout=_POOL_TIMEOUT_S,
    )


# See docs/decisions.md#sqlite-commits-with-synchronousfull-in-groups
def _configure_sqlite(connection: Any, _record: object) -> None:
    """Make each commit of a new SQLite connection durable."""
    connection.execute("PRAGMA synchronous=FULL")


def dialect_insert(connection: sa.Connection, table: sa.Table) -> Any:
    """Return an INSERT statement with the methods `on_conflict_do_…` of the connection's dialect."""
    # imported here, because the import of PostgreSQL's takes 0.1 s
    return import_module(f"sqlalchemy.dialects.{connection.dialect.name}").insert(table)


@contextmanager
def try_lock(engine: sa.Engine, key: int) -> Iterator[bool]:
    """Yield whether this process has the lock `key` of a PostgreSQL database while the block runs.

    Does not wait for another process that has it. The lock ends with its connection, also if this
    host fails or is cut off. Yields True for SQLite, whose processes are on one host and use locks
    of files.
    """
    if engine.dialect.name != "postgresql":
        yield True
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.detach()  # its session, and with it the lock, ends with the block
        for option in ("idle = 10", "interval = 5", "count = 3"):  # of the server, to notice a lost host
            connection.exec_driver_sql(f"SET tcp_keepalives_{option}")
        yield bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))))


# --- time ---


class _Now(FunctionElement[float]):
    """The SQL expression of the time at which a statement starts, in Unix time."""

    name = "now"
    type = sa.Float()
    inherit_cache = True

    def __init__(self) -> None:
        super().__init__(sa.bindparam("now", callable_=time.time, type_=sa.Float(), unique=True))


@compiles(_Now)
def _host_time(element: _Now, compiler: Any, **options: Any) -> str:
    return str(compiler.process(element.clauses, **options))


@compiles(_Now, "postgresql")
def _server_time(_element: _Now, _compiler: Any, **_options: Any) -> str:
    return "date_part('epoch', statement_timestamp())"


NOW: sa.ColumnElement[float] = _Now()


def current_time(connection: sa.Connection) -> float:
    """Return the time of the database's clock in Unix time, for values that SQL does not compute."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.select(NOW)) or 0.0)


def clock_offset_s(engine: sa.Engine) -> float:
    """Return how many seconds the database's clock is ahead of this host's; 0 for SQLite."""
    if engine.dialect.name == "sqlite":
        return 0.0
    with engine.connect() as connection:
        return current_time(connection) - time.time()
