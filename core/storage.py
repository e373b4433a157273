"""Recognise storage errors such as a full disk, and describe them to clients as problems."""

import errno
import sqlite3
from typing import Any

from sqlalchemy import exc

# Error numbers of a full disk, a full quota and a file at its size limit.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# HTTP status (RFC 4918) of a result or upload that does not fit on the disk.
INSUFFICIENT_STORAGE = 507

# Errors of a database that cannot be used now: it is unreachable, full, locked for too long, a
# read-only standby, or all connections are in use. The same call may succeed later.
DATABASE_UNAVAILABLE = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError)

_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)
_POSTGRESQL_DISK_FULL = "53100"


class ObjectStoreError(OSError):
    """Raised for an error of an object store; its message names neither the address nor the bucket."""


# Errors of a database or an object store that cannot be used now. The same call may succeed later.
STORES_UNAVAILABLE = (ObjectStoreError, *DATABASE_UNAVAILABLE)


def lacks_space(error: BaseException) -> bool:
    """Return whether an error of a file, blob store or database means that no space is left."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    if isinstance(error, exc.DBAPIError):
        cause = error.orig
        if isinstance(cause, sqlite3.Error):
            return getattr(cause, "sqlite_errorcode", None) in _SQLITE_FULL
        return _POSTGRESQL_DISK_FULL in {getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)}
    return False


def reason_of(error: BaseException) -> str:
    """Return the operating system's or database's message of an error, without local paths."""
    if isinstance(error, exc.DBAPIError):
        return _database_reason(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _database_reason(error: exc.DBAPIError) -> str:
    """Return the message of a database; of PostgreSQL without details, such as the address."""
    if isinstance(error.orig, sqlite3.Error):
        return str(error.orig)
    message = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    return str(message or "the database cannot be reached")


def storage_problem(error: BaseException, what: str = "the result was computed, but") -> dict[str, Any]:
    """Return the problem (RFC 9457) of a storage error: status 507 if no space is left, else 503.

    `what` begins the sentence in `detail`, which continues with the cause: "… the store has no room
    for it" or "… could not be stored".
    """
    if lacks_space(error):
        detail = f"{what} the store has no room for it ({reason_of(error)}); delete ended jobs, or try again later"
        return {"type": "about:blank", "title": "Disk full", "status": INSUFFICIENT_STORAGE, "detail": detail}
    detail = f"{what} could not be stored: {reason_of(error)}; try again later"
    return {"type": "about:blank", "title": "Result not stored", "status": 503, "detail": detail}
