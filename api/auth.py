"""API keys: the key file and its lines, and the callers that the keys identify.

The key file has one line per key, `name:sha256[:roles[:attributes]]`, with the key's hash. `roles`
is a comma-separated list; without it a key has every role but `admin`. `attributes` is a
comma-separated list of `expires=20270131T120000Z` (UTC), of limits that differ from the settings,
such as `unfinished_jobs=50`, and of `webhooks=whsec_…`, the secret that signs the owner's webhooks.
"""

import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from core.files import locked, sync_folder, write_durably
from core.webhooks.signature import decode_secret

log = logging.getLogger(__name__)

ROLES = ("read", "run", "train", "admin")
DEFAULT_ROLES = frozenset({"read", "run", "train"})
# Limits that a line may set for its key; the defaults are the settings `REVERIE_KEY_…`.
LIMITS = ("requests_per_second", "waiting_requests", "waiting_rows", "unfinished_jobs", "trainings", "stored_bytes")

KEY_PREFIX = "rv_"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,79}")
_NAME_IN_FILE = re.compile(r"[^\s:,\x00-\x1f\x7f]{1,80}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EXPIRES = "%Y%m%dT%H%M%SZ"
_SHAPE = "name:sha256[:roles[:attributes]]"
_INCLUDED = {"run": {"read"}, "train": {"read"}, "admin": {"read", "run", "train"}}
_CHECK_S = 0.5  # interval at which the key file's modification time is checked


@dataclass(frozen=True)
class KeyRecord:
    """A line of the key file: the owner's name, the key's SHA-256 in hex, roles and limits.

    `expires_at` is in seconds since the epoch. `limits` has only the limits that differ from the
    settings. `webhook_secret` is empty for keys made by a release without webhooks.
    """

    name: str
    digest: str
    roles: frozenset[str] = DEFAULT_ROLES
    expires_at: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    webhook_secret: str = field(default="", repr=False)

    @classmethod
    def parse(cls, line: str) -> "KeyRecord":
        """Parse a line of the key file.

        Raises ValueError if the line is not valid; the message does not quote it, because it may
        contain a secret.
        """
        fields = line.strip().split(":")
        name, digest, roles, attributes = (*fields, "", "", "")[:4]
        if len(fields) > 4 or not _NAME_IN_FILE.fullmatch(name) or not _SHA256.fullmatch(digest):
            raise ValueError(f"is not {_SHAPE}, the hash in lower-case hex")
        granted = frozenset(word.strip() for word in roles.split(",")) if roles.strip() else DEFAULT_ROLES
        if not granted <= set(ROLES):
            raise ValueError(f"names a role that does not exist; roles are {', '.join(ROLES)}")
        return cls(name, digest, granted, *_attributes(attributes))

    def format(self) -> str:
        """Return the line for the key file, `name:sha256:roles[:attributes]`."""
        attributes = [f"{name}={value}" for name, value in sorted(self.limits.items())]
        if self.expires_at is not None:
            attributes.insert(0, f"expires={datetime.fromtimestamp(self.expires_at, UTC).strftime(_EXPIRES)}")
        if self.webhook_secret:
            attributes.append(f"webhooks={self.webhook_secret}")
        roles = ",".join(role for role in ROLES if role in self.roles)
        return ":".join([self.name, self.digest, roles, *([",".join(attributes)] if attributes else [])])

    def expired(self, now: float) -> bool:
        """Return whether the key has expired at `now`, in seconds since the epoch."""
        return self.expires_at is not None and now >= self.expires_at

    @property
    def id(self) -> str:
        """The first 12 hex digits of the hash, which the commands `list` and `revoke` use."""
        return self.digest[:12]


def _attributes(text: str) -> tuple[float | None, dict[str, int], str]:
    """Parse the attributes in a key's line; return the expiry, the limits and the webhook secret.

    The expiry is in seconds since the epoch, or None. `limits` is keyed by name. The secret is
    empty if there is none. Raises ValueError for an unknown or invalid attribute.
    """
    expires_at: float | None = None
    webhook_secret = ""
    limits: dict[str, int] = {}
    for attribute in filter(None, (word.strip() for word in text.split(","))):
        name, _, value = attribute.partition("=")
        if name == "expires":
            try:
                expires_at = datetime.strptime(value, _EXPIRES).replace(tzinfo=UTC).timestamp()
            except ValueError as error:
                raise ValueError("has another `expires` than, for example, 20270131T120000Z") from error
        elif name in LIMITS and re.fullmatch(r"[0-9]{1,18}", value):
            limits[name] = int(value)
        elif name == "webhooks":
            webhook_secret = value
            try:
                decode_secret(value)
            except ValueError as error:
                raise ValueError("has another `webhooks` than whsec_…; `rotate` makes one") from error
        else:
            raise ValueError(
                f"has an unknown attribute; there are expires, webhooks, {', '.join(LIMITS)}, each NAME=VALUE"
            )
    return expires_at, limits, webhook_secret


def parse_keys(text: str) -> list[KeyRecord]:
    """Parse the text of a key file; skip blank lines and comments (#).

    Raises ValueError, which names the number of the invalid line.
    """
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            records.append(KeyRecord.parse(line))
        except ValueError as error:
            raise ValueError(f"line {number} of the key file {error}") from None
    return records


def new_key() -> str:
    """Return a new random key of 256 bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str | bytes) -> str:
    """Return the SHA-256 of an API key in hex, as the key file has it."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).hexdigest()


class KeyFile:
    """Reads and edits a key file. Comments are kept, and the file is replaced atomically."""

    def __init__(self, path: Path) -> None:
        """Set the path; the first change creates the file if it does not exist."""
        self.path = path.resolve()

    def records(self) -> list[KeyRecord]:
        """Return all keys, in the order of the file; an empty list if the file does not exist.

        Raises ValueError if a line is not valid.
        """
        return parse_keys(self.path.read_text()) if self.path.exists() else []

    @contextmanager
    def edit(self) -> Iterator[list[str]]:
        """Yield the lines of the file, to be edited in place; then replace the file with them.

        The file, of mode 0600, is locked during the block. Raises ValueError, and keeps the file
        unchanged, if a line is not valid before or after the block.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock_path = self.path.with_name(f".{self.path.name}.lock")
        with locked(lock_path):
            lock_path.chmod(0o600)
            self.records()  # raises ValueError: a file that is not valid is not replaced
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            yield lines
            parse_keys("\n".join(lines))
            write_durably(self.path, "".join(f"{line}\n" for line in lines), mode=0o600)
            sync_folder(self.path.parent)

    def add(self, record: KeyRecord) -> None:
        """Append the line of a key. Raises ValueError if the file has a line that is not valid."""
        with self.edit() as lines:
            lines.append(record.format())

    def revoke(self, name: str, key_id: str = "") -> int:
        """Remove the keys of a name whose hash begins with `key_id`; return how many were removed.

        An empty `key_id` removes all keys of the name.
        """
        with self.edit() as lines:
            kept = [line for line in lines if not _matches(line, name, key_id)]
            removed = len(lines) - len(kept)
            lines[:] = kept
        return removed

    def rotate(
        self, name: str, digest: str, old_valid_until: float | None, now: float, webhook_secret: str = ""
    ) -> KeyRecord:
        """Add a key with the roles and limits of a name's newest valid key; return the new record.

        `digest` is the SHA-256 of the new key; `webhook_secret` signs its owner's webhooks. Older
        keys expire at `old_valid_until`, in seconds since the epoch; None leaves them valid until
        they are revoked. Keys that have expired at `now` are removed. Raises LookupError if the
        name has no valid key.
        """
        with self.edit() as lines:
            current: KeyRecord | None = None
            kept = []
            for line in lines:
                if not _matches(line, name, ""):
                    kept.append(line)
                    continue
                record = KeyRecord.parse(line)
                if record.expired(now):
                    continue
                current = record
                until = min(filter(None, (record.expires_at, old_valid_until)), default=None)
                if until is None or until > now:
                    kept.append(replace(record, expires_at=until).format())
            if current is None:
                raise LookupError(f"{name} has no valid key; make one with `python -m api keys add {name}`")
            added = KeyRecord(name, digest, current.roles, None, current.limits, webhook_secret)
            lines[:] = [*kept, added.format()]
            return added


def _matches(line: str, name: str, key_id: str) -> bool:
    """Return whether a line of the key file has a key of `name` whose hash begins with `key_id`."""
    if not line.strip() or line.lstrip().startswith("#"):
        return False
    record = KeyRecord.parse(line)
    return record.name == name and record.digest.startswith(key_id)


# --- callers ---


@dataclass(frozen=True)
class Caller:
    """The caller of a request: the name of its API key (empty without keys) and its roles.

    `limits` has the limits of the key that differ from the settings, keyed by name.
    `key_expires_at` is in seconds since the epoch, or None if the key does not expire.
    """

    name: str
    roles: frozenset[str]
    limits: Mapping[str, int] = field(default_factory=dict)
    key_expires_at: float | None = None

    @classmethod
    def of(cls, record: KeyRecord) -> "Caller":
        """Return the caller that a key identifies, with its roles and limits.

        The roles `run` and `train` include `read`; `admin` includes all roles.
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
    """Identifies callers by their API keys. Without a key file, all callers are anonymous."""

    def __init__(self, path: Path | None) -> None:
        """Read the key file.

        Raises ValueError if a line of the file is not valid, and OSError if it cannot be read.
        """
        self._path = path
        self._callers: dict[str, Caller] = {}
        self._records: list[KeyRecord] = []
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

        Returns None if the key is missing, unknown or expired. Without a key file, returns the
        anonymous caller, whatever the header.
        """
        if self._path is None:
            return ANONYMOUS
        self._reload_if_changed(self._path)
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        caller = self._callers.get(digest_of(key.strip()))
        if caller is not None and caller.key_expires_at is not None and time.time() >= caller.key_expires_at:
            return None
        return caller

    def webhook_secrets(self, name: str) -> list[str]:
        """Return the webhook secrets of an owner's keys that have not expired, without duplicates.

        `name` is the owner's name.
        """
        if self._path is None:
            return []
        self._reload_if_changed(self._path)
        now = time.time()
        valid = (record for record in self._records if record.name == name and not record.expired(now))
        return list(dict.fromkeys(record.webhook_secret for record in valid if record.webhook_secret))

    def _reload_if_changed(self, path: Path) -> None:
        """Reload the key file if it has changed; check this at most every `_CHECK_S` seconds."""
        now = time.monotonic()
        if now - self._checked_at > _CHECK_S:
            self._checked_at = now
            self._reload(path)

    def _load(self, path: Path) -> None:
        """Read the key file and replace all known keys."""
        with path.open() as file:
            stamp = _stamp(os.fstat(file.fileno()))
            records = parse_keys(file.read())
        self._records = records
        self._callers = {record.digest: Caller.of(record) for record in records}
        self._stamp = stamp

    def _reload(self, path: Path) -> None:
        """Read the key file again if it has changed since it was last read.

        If it cannot be read or is not valid, the error is logged, and the keys read before stay in
        use.
        """
        try:
            if _stamp(path.stat()) == self._stamp:
                return
            self._load(path)
        except (OSError, ValueError) as error:
            log.error("key file not reloaded", extra={"reason": str(error)})  # noqa: TRY400 - the reason is enough
        else:
            log.info("key file reloaded", extra={"keys": len(self._callers)})


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Return the values by which a changed file is recognized: modification time, inode and size."""
    return status.st_mtime_ns, status.st_ino, status.st_size
