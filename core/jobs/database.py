"""The database of the job store."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from core.jobs.migrate import migrate


class JobDatabase:
    """An open database with the tables of this release."""

    def __init__(self, url: str) -> None:
        """Open the database; create or migrate its tables.

        Raises NewerDatabaseError if it was made by a newer release.
        """
        address = sa.make_url(url)
        sqlite = address.get_backend_name() == "sqlite"
        if sqlite and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": 15, "check_same_thread": False}} if sqlite else {}
        self.engine = sa.create_engine(url, pool_pre_ping=not sqlite, **options)
        if sqlite:
            sa.event.listen(self.engine, "connect", _configure_sqlite)
        migrate(self.engine)


# See docs/decisions.md#sqlite-commits-with-synchronousfull-in-groups
def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where the code says so
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA busy_timeout=15000")
