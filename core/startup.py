"""Check settings, state folder, job database, blob store and queue server before a program starts.

A failed check raises StartupError, whose message is one sentence for the operator. An instance of
the service is a state folder with its job database and queue server, or several state folders that
share a database. An instance stores its id and the name of its job database under the key `MARK` of
its queue server; the id is also in the state folder or database. A program of another instance is
rejected, because it would receive jobs of the first instance from the queue and lose them.

This file has more than 400 lines because all its checks raise the same error, in the order in which
a program starts.
"""

import contextlib
import errno
import os
import platform
import select
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pydantic
import redis
import sqlalchemy as sa
from redis.exceptions import AuthorizationError
from redis.sentinel import MasterNotFoundError

from core import tracing
from core.blobs import BlobsUrlError, is_remote, open_blobs
from core.broker.address import QueueAddress
from core.broker.connection import training_queue
from core.instance import instance_id, is_shared, share_webhook_secret
from core.jobs.database import DRIVERS, database_url
from core.jobs.migrate import NewerDatabaseError
from core.jobs.store import JobStore
from core.settings import PREFIX, Settings, settings

MARK = "reverie:instance"  # key in a queue server's database that names the instance it belongs to

# Names of the default job database in a mark, now and in earlier releases.
_DATABASE, _OLD_DATABASE = "sqlite:jobs.sqlite3", "sqlite:ledger.sqlite3"

PROBE_KEY = "start/probe"  # a blob that is written and read at each start

GUARD_S = 2.0
_CONNECT_S, _REPLY_S, _GREETING_S = 2.0, 5.0, 0.2


class StartupError(Exception):
    """Raised if a program cannot start; the message is one sentence, which says what would work."""


@contextlib.contextmanager
def errors_end_the_program() -> Iterator[None]:
    """If the block raises StartupError, write it to standard error and exit with status 1.

    The message is written as one line.
    """
    try:
        yield
    except StartupError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def load_settings() -> Settings:
    """Return the settings of this process, read from the environment.

    Raises StartupError if a value is not valid or a name is unknown.
    """
    try:
        return settings()
    except pydantic.ValidationError as error:
        wrong = [
            f"{PREFIX}{str(one['loc'][0]).upper()}: {one['msg']}"
            if one["loc"]
            else one["msg"].removeprefix("Value error, ")
            for one in error.errors(include_url=False)
        ]
        raise StartupError(f"the settings cannot be used: {'; '.join(wrong)}") from error


def check(settings: Settings) -> bool:
    """Check the state folder, the job database and the queue server before a program starts.

    With tracing, also check that the packages for tracing are installed. Returns whether the queue
    server is reachable. Raises StartupError if a check fails.
    """
    if settings.tracing and not tracing.installed():
        raise StartupError(f"REVERIE_TRACING needs packages that are not installed: {tracing.REMEDY}")
    check_state(settings)
    check_database(settings)
    check_blobs(settings)
    if is_shared(settings):
        share_webhook_secret(settings)
    return check_queue(settings)


# --- state folder and database ---


def check_state(settings: Settings) -> None:
    """Create the state folder if it is missing, and try to write to it.

    Raises StartupError if that is not possible. A full disk is no error if an instance has used the
    folder before.
    """
    folder = settings.state.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        _instance_id(folder)
        with contextlib.suppress(OSError):
            (folder / "desk").rename(folder / "scratch")  # its name in earlier releases
        if not settings.blobs_url:
            (folder / "blobs").mkdir(exist_ok=True)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT} and (folder / "instance-id").exists():
            return  # a full disk is no reason not to serve
        raise StartupError(
            f"the state folder {folder} cannot be used ({_error_text(error)}); set REVERIE_STATE to a folder that this "
            "user may make and write"
        ) from error


def _instance_id(folder: Path) -> str:
    """Return the id of the instance to which a state folder belongs.

    If the folder has none, a new id is stored in it.
    """
    file = folder / "instance-id"
    with contextlib.suppress(FileNotFoundError):
        return file.read_text().strip()
    part = folder / f".instance-id.{uuid4().hex}"
    try:
        part.write_text(uuid4().hex + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink(missing_ok=True)
    return file.read_text().strip()


def check_database(settings: Settings) -> None:
    """Open the job database, which creates or migrates its tables.

    Raises StartupError if it cannot be used, or was made by a newer release.
    """
    try:
        url = database_url(settings.database)
    except sa.exc.ArgumentError as error:
        detail = (
            "REVERIE_DATABASE_URL is no database URL; for example sqlite:////state/jobs.sqlite3 or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        )
        raise StartupError(detail) from error
    if url.drivername not in DRIVERS:
        detail = f"REVERIE_DATABASE_URL begins with {url.drivername}://, which is not supported; use sqlite:// or postgresql://"
        raise StartupError(detail)
    name = url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)
    try:
        JobStore(settings.database).engine.dispose()
    except NewerDatabaseError as error:
        raise StartupError(f"the job database {name} {error}") from error
    except ImportError as error:
        detail = (
            f"the job database {name} needs the package psycopg ({error}): pip install -r requirements/postgresql.lock "
            "(or the packages of the extra `postgresql`)"
        )
        raise StartupError(detail) from error
    except (sa.exc.SQLAlchemyError, OSError, RuntimeError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        detail = f"the job database {name} cannot be used ({reason}); check REVERIE_DATABASE_URL and REVERIE_STATE"
        raise StartupError(detail) from error


# --- blob store ---


def check_blobs(settings: Settings) -> None:
    """Open the blob store, and write and read a blob if it is an object store.

    Raises StartupError if it cannot be used.
    """
    url = settings.blobs
    try:
        blobs = open_blobs(url, retries=1)
        if is_remote(url):
            blobs.put(PROBE_KEY, b"written at each start")
            blobs.get(PROBE_KEY)
    except BlobsUrlError as error:
        raise StartupError(f"REVERIE_BLOBS_URL is no URL of a blob store: {error}") from error
    except ImportError as error:
        detail = (
            f"REVERIE_BLOBS_URL needs the package obstore ({error}): pip install -r requirements/s3.lock (or the "
            "packages of the extra `s3`)"
        )
        raise StartupError(detail) from error
    except OSError as error:
        cause = f": {_first_line(error.__cause__)}" if error.__cause__ else ""
        detail = f"the blob store {url.partition('?')[0]} cannot be used ({_error_text(error)}{cause})"
        detail += "; check REVERIE_BLOBS_URL"
        more = ", the bucket, and the keys and endpoint in the variables AWS_..." if is_remote(url) else ""
        raise StartupError(detail + more) from error
    if settings.presigned_url_s and not is_remote(url):
        raise StartupError("REVERIE_PRESIGNED_URL_S needs an object store: set REVERIE_BLOBS_URL to s3://BUCKET/PREFIX")


# --- ports ---


def bound_socket(host: str, port: int, setting: str) -> socket.socket:
    """Return a TCP socket that is bound to an address and not listening yet.

    Raises StartupError if the address cannot be used. The message ends with advice to set
    `setting`, such as "REVERIE_PORT to another one".
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        detail = f"cannot listen on {host}:{port} ({_error_text(error)}); stop what listens there, or set {setting}"
        raise StartupError(detail) from error
    return listener


# --- queue server ---


# See docs/decisions.md#an-instance-marks-its-queue-server
def check_queue(settings: Settings) -> bool:
    """Record on the queue server that this instance uses it; return whether it is reachable.

    The same is recorded in the Redis database that wakes training workers. Raises StartupError if
    another instance of the service uses either database, or if either cannot be used.
    """
    own_mark = _own_mark(settings)
    # the training workers' database too: it may be what another instance has as its queue
    queue_address(settings.queue_url, "REVERIE_QUEUE_URL")
    addresses = {"REVERIE_QUEUE_URL": settings.queue_url, "REVERIE_TRAINING_QUEUE_URL": training_queue(settings)}
    return all(_claim_queue(url, setting, own_mark) for setting, url in addresses.items())


def queue_address(url: str, setting: str) -> QueueAddress:
    """Parse the URL of a queue server.

    Raises StartupError if the URL is not valid; the message names `setting`, the environment
    variable with the URL.
    """
    try:
        return QueueAddress.parse(url)
    except ValueError as error:
        raise StartupError(f"{setting} is no address of a queue server ({error})") from error


def mark_of(url: str) -> dict[str, Any]:
    """Return the value of the key `MARK` of a queue server: which instance of the service uses it.

    It has the instance's id, job database, state folder and host; it is empty if the key is not
    set. Raises RedisError or OSError if the server cannot be reached.
    """
    with _client(url) as client:
        return _parse_mark(client.get(MARK))


def _own_mark(settings: Settings) -> dict[str, Any]:
    """Return the value that this instance stores under the key `MARK` of its queue server.

    It has the instance's id, the name of its job database, its state folder and this host's name.
    """
    folder = settings.state.absolute()
    own_id, database = _instance_id(folder), _database_name(settings)
    if is_shared(settings) or not database.startswith("sqlite:"):
        own_id = instance_id(settings.database, own_id)  # of all hosts, which have state folders of their own
    return {"id": own_id, "database": database, "state": str(folder), "host": platform.node()}


def _database_name(settings: Settings) -> str:
    """Return a name of the job database that is the same on all hosts and has no password.

    The name of a SQLite database in the state folder is its path relative to this folder.
    """
    url = database_url(settings.database)
    if url.get_backend_name() != "sqlite":
        return f"{url.get_backend_name()}://{url.host or ''}:{url.port or ''}/{url.database or ''}"
    path, folder = Path(url.database or "").resolve(), settings.state.resolve()
    return f"sqlite:{path.relative_to(folder) if path.is_relative_to(folder) else path}"


def _claim_queue(url: str, setting: str, own_mark: dict[str, Any]) -> bool:
    """Store `own_mark` under the key `MARK` of a Redis database; return whether it is ready.

    False means that nothing listens there, that the server is still loading its data, or that no
    Sentinel knows the master. `setting` is the name of the environment variable with the URL.
    Raises StartupError if the key shows that another instance of the service uses the database, or
    if the database cannot be used.
    """
    address = queue_address(url, setting)
    place = address.name
    host_port = None if "path" in address.options or address.sentinels else address.host_port
    if host_port and _read_greeting(*host_port, timeout_s=0) is None:
        return False
    try:
        mark = _set_mark(url, own_mark)
    except (redis.BusyLoadingError, MasterNotFoundError):
        return False
    except (redis.RedisError, OSError) as error:
        # only now, because a server that accepts this program sends nothing: each start would wait
        greeting = _read_greeting(*host_port, timeout_s=_GREETING_S) if host_port else ""
        if greeting is None:
            return False
        if greeting:
            detail = f"the queue server at {place} refuses this program ({greeting}); {_permission_hint(setting)}"
            raise StartupError(detail) from error
        raise StartupError(_describe_error(error, place, setting, address.options.get("password"))) from error
    if _is_same_instance(mark, own_mark):
        return True
    whose = f"state folder {mark.get('state', 'unknown')} on {mark.get('host', 'an unknown host')}"
    raise StartupError(
        f"the queue server at {place}, database {address.options.get('db', 0)}, belongs to another instance of Reverie "
        f"({whose}, job database {mark.get('database', 'unknown')}); set {setting} to a server or database number of "
        f"your own, or, if that instance is gone for good, delete the key {MARK} there"
    )


def _describe_error(error: Exception, place: str, setting: str, password: str | None) -> str:
    """Return the error message about a queue server that responds but cannot be used.

    `place` is the server's address without credentials, `setting` the environment variable with its
    URL, and `password` the password in the URL.
    """
    reason = _first_line(error)
    if isinstance(error, redis.AuthenticationError | AuthorizationError):
        what = "refuses the user name or password it is given" if password else "wants a password"
        return f"the queue server at {place} {what}; put the right one into {setting}: redis://:PASSWORD@HOST:PORT/0"
    if isinstance(error, redis.TimeoutError):
        return f"what listens at {place} does not reply; set {setting} to a Redis-compatible server"
    if isinstance(error, redis.InvalidResponse | redis.ConnectionError | OSError):
        return f"what listens at {place} is no Redis-compatible server ({reason}); set {setting} to one"
    return f"the queue server at {place} refuses this program ({reason}); {_permission_hint(setting)}"


def _read_greeting(host: str, port: int, *, timeout_s: float) -> str | None:
    """Connect to a server and return the error that it sends before it receives a command.

    Returns "" if it sends no error within `timeout_s` seconds; None if the connection fails.
    """
    try:
        with socket.create_connection((host, port), _CONNECT_S) as connection:
            if not select.select([connection], [], [], timeout_s)[0]:
                return ""
            text = connection.recv(1000).decode(errors="replace")
    except OSError:
        return None
    return _first_line(text) if text.startswith("-") else ""


def _set_mark(url: str, own_mark: dict[str, Any]) -> dict[str, Any]:
    """Store `own_mark` under the key `MARK` of a queue server, unless the key exists.

    Returns the stored value, which shows whether another instance of the service uses the server;
    see `_own_mark`. A value that this instance stored before its database file was renamed is
    replaced.
    """
    with _client(url) as client:
        client.set(MARK, orjson.dumps(own_mark), nx=True)
        mark = _parse_mark(client.get(MARK))
        if _is_same_instance(mark, {**own_mark, "database": _OLD_DATABASE}) and own_mark["database"] == _DATABASE:
            client.set(MARK, orjson.dumps(own_mark))  # the file has been renamed
            return own_mark
        return mark


def _is_same_instance(mark: dict[str, Any], own_mark: dict[str, Any]) -> bool:
    return all(mark.get(name) == own_mark[name] for name in ("id", "database"))


def _client(url: str) -> redis.Redis:
    return QueueAddress.parse(url).client(socket_timeout=_REPLY_S, socket_connect_timeout=_CONNECT_S)


def _parse_mark(mark: Any) -> dict[str, Any]:
    try:
        found = orjson.loads(mark) if mark else {}
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _permission_hint(setting: str) -> str:
    return f"have it allow reading and writing from this host, or set {setting} to another server"


def _first_line(text: object) -> str:
    return str(text).strip().partition("\n")[0].strip().removeprefix("-")[:300]


def _error_text(error: OSError) -> str:
    return error.strerror or str(error)


class QueueGuard(threading.Thread):
    """A thread that checks periodically that no other instance uses the queue server.

    The server may start later than this process, or be replaced by another one. If another instance
    has stored its id there, the error is written to standard error, `exit_status` becomes 1 and
    `stop` is called. The program should then exit with `exit_status`.
    """

    def __init__(self, settings: Settings, stop: Callable[[], object]) -> None:
        super().__init__(name="queue-guard", daemon=True)
        self._settings = settings
        self._stop = stop
        self.exit_status = 0

    def run(self) -> None:
        """Every `GUARD_S` seconds, check which instance of the service the queue server belongs to.

        If the server has no instance's id, this instance's id is stored there. Ends when the server
        has the id of another instance.
        """
        pause = threading.Event()
        while not pause.wait(GUARD_S):
            try:
                if not _is_same_instance(mark_of(self._settings.queue_url), _own_mark(self._settings)):
                    check_queue(self._settings)
            except StartupError as error:
                self.exit_status = 1
                sys.stderr.write(f"error: {error}\n")
                self._stop()
                return
            except (redis.RedisError, OSError):
                continue  # away, or busy: its clients say so
