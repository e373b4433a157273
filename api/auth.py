"""Callers and their API keys. The key file is read again when it changes."""

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
    """The caller of a request: the name of its API key (empty without keys) and its roles.

    `limits` has those limits of the key that differ from the settings. `key_expires_at` is in
    seconds since the epoch.
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
        """When the key expires, as ISO 8601; None if it does not expire."""
        if self.key_expires_at is None:
            return None
        return datetime.fromtimestamp(self.key_expires_at, UTC).isoformat(timespec="seconds")

    @property
    def is_admin(self) -> bool:
        """Whether the caller may change the resources of all owners."""
        return "admin" in self.roles


ANONYMOUS = Caller("", frozenset(ROLES))  # every caller, if the service has no keys
VISITOR = Caller("", frozenset({"read"}))  # a caller without a key, if the service has keys


class Keys:
    """Finds the callers of API keys. Without a key file, all callers are anonymous."""

    def __init__(self, path: Path | None) -> None:
        """Read the key file. Raises ValueError if a line is not valid, and OSError."""
        self._path = path
        self._callers: dict[str, Caller] = {}
        self._stamp: tuple[int, int, int] | None = None
        self._checked_at = time.monotonic()
        if path is not None:
            self._load(path)

    @property
    def used(self) -> bool:
        """Whether requests need an API key."""
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
