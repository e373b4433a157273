"""Write transactions on the database of jobs and owners."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Yield a connection in a write transaction: committed at the end, rolled back if anything is raised.

    SQLite takes its write lock at the beginning, so that what is read cannot change before it is written.
    """
    with engine.connect() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.begin()
        try:
            yield connection
        except BaseException:
            connection.rollback()
            raise
        connection.commit()
