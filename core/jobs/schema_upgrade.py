"""Additive schema changes: a database made by an earlier release gets the tables, columns and indexes it lacks.

There is one kind of change: something is added that earlier code does not need. So releases can run side by side on
one database while it is upgraded, and going back needs nothing. Columns that are added must be nullable.
"""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

_POSTGRESQL_LOCK = 0x72657665
"""Key of the advisory lock under which one process at a time changes the schema; SQLite's write lock does the same."""


def upgrade(connection: Connection, metadata: sa.MetaData) -> list[str]:
    """Create what the database lacks, in the caller's write transaction; return the names of the added columns."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
    metadata.create_all(connection)
    inspector = sa.inspect(connection)
    added = []
    for table in metadata.sorted_tables:
        present = {column["name"] for column in inspector.get_columns(table.name)}
        for column in table.columns:
            if column.name in present:
                continue
            if not column.nullable:
                raise RuntimeError(f"{table.name}.{column.name} cannot be added: only nullable columns can")
            quote = connection.dialect.identifier_preparer.quote
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {quote(table.name)} ADD COLUMN {quote(column.name)} {kind}")
            added.append(f"{table.name}.{column.name}")
        known = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in known:
                index.create(connection)
    return added
