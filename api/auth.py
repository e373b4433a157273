"""API keys, which are looked up by their SHA-256 and reloaded at run time, and callers' roles."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from api.key_file import ROLES, KeyRecord, digest_of, parse_keys

log = logging.getLogger(__name__)

_INCLUDED = {"run": {"read"}, "train": {"read"}, "admin": {"read", "run", "train"}}
_CHECK_S = 0.5  # the key file's modification time is checked at most so often


@dataclass(frozen=True)
class Caller:
    """The caller of a request: the name of its key, empty without keys, and its roles.

    `limits` holds the limits of this key that differ from the settings.
    """

    name: str
    roles: frozenset[str]
    limits: Mapping[str, int] = field(default_factory=dict)
    key_expires_at: float | None = None

    @classmethod
    def of(cls, record: KeyRecord) -> "Caller":
        """Return the caller of a key.

        `run` and `train` include `read`; `admin` includes all roles.
        """
        roles = record.roles.union(*(_INCLUDED.get(role, ()) for role in record.roles))
        return cls(record.name, roles, record.limits, record.expires_at)

    @property
    def key_expiry(self) -> str | None:
        """When the key expires, as ISO 8601, or None."""
        if self.key_expires_at is None:
            return None
        return datetime.fromtimestamp(self.key_expires_at, UTC).isoformat(timespec="seconds")

    @property
    def is_admin(self) -> bool:
        """Whether the caller may change what others own."""
        return "admin" in self.roles


ANONYMOUS = Caller("", frozenset(ROLES))  # every caller, if the service has no keys
VISITOR = Caller("", frozenset({"read"}))  # a caller without a key, if the service has keys


class Keys:
    """Callers by the SHA-256 of their key; without a key file, every request is anonymous."""

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises ValueError for a line of another shape, OSError for a file that cannot be read.
        """
        self._path = path
        self._callers: dict[str, Caller] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._checked_at = time.monotonic()
        if path is not None:
            self._load(path)

    @property
    def used(self) -> bool:
        """Whether a key is needed."""
        return self._path is not None

    def caller(self, authorization: bytes) -> Caller | None:
        """Check the API key in an Authorization header and return its caller.

        Return None if the key is missing, unknown or expired.
        """
        if self._path is None:
            return ANONYMOUS
        now = time.monotonic()
        if now - self._checked_at > _CHECK_S:
            self._checked_at = now
            self._reload(self._path)
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        caller = self._callers.get(digest_of(key.strip()))
        if caller is not None and caller.key_expires_at is not None and time.time() >= caller.key_expires_at:
            return None
        return caller

    def _load(self, path: Path) -> None:
        with path.open() as file:
            stamp = _stamp(os.fstat(file.fileno()))
            records = parse_keys(file.read())
        self._callers = {record.digest: Caller.of(record) for record in records}
        self._stamp = stamp

    def _reload(self, path: Path) -> None:
        """Read the file again if it has changed. If it cannot be read, keep the keys."""
        try:
            if _stamp(path.stat()) == self._stamp:
                return
            self._load(path)
        except (OSError, ValueError) as error:
            log.error("key file not reloaded", extra={"reason": str(error)})  # noqa: TRY400 - the reason is enough
        else:
            log.info("key file reloaded", extra={"keys": len(self._callers)})


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_mtime_ns, status.st_ino, status.st_size
