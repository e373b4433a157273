"""Additive schema changes: a database made by an earlier release gets the tables, columns and indexes it lacks."""

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.jobs import claim_order
from core.jobs.records import TERMINAL
from core.jobs.schema import about, jobs, metadata

SCHEMA_VERSION = 1
_POSTGRESQL_LOCK = 0x72657665
"""Key of the advisory lock under which one process at a time changes the schema; SQLite's write lock does the same."""


def upgrade(connection: Connection) -> None:  # noqa: C901
    """Create what the database lacks, in the caller's write transaction. Raises RuntimeError for another version."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
    metadata.create_all(connection)
    inspector = sa.inspect(connection)
    added = False
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
            added = True
        known = {index["name"] for index in inspector.get_indexes(table.name)}
        for index in table.indexes:
            if index.name not in known:
                index.create(connection)
    if added:
        query = sa.select(jobs.c.kind, jobs.c.owner).where(jobs.c.status.not_in(TERMINAL)).distinct()
        owners = [(claim_order.queue_of(kind), owner) for kind, owner in connection.execute(query).all()]
        claim_order.register_owners(connection, owners)
    version = connection.scalar(sa.select(about.c.schema_version))
    if version is None:
        connection.execute(about.insert().values(schema_version=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        raise RuntimeError(f"the job database has schema {version}, this code {SCHEMA_VERSION}")
