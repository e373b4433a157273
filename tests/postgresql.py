"""A PostgreSQL server for tests, of the binaries in Debian's package `postgresql`."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest

from tests.stack import free_port
from tests.waiting import wait_until

MISSING = "PostgreSQL is not installed: apt-get install --no-install-recommends postgresql"

_SETTINGS = (
    "fsync=off",  # the machine does not lose power
    "shared_buffers=32MB",
    "max_connections=200",
    "log_min_messages=fatal",
)


def programs() -> Path | None:
    """The folder of the newest installed server's programs; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


class PostgreSQL:
    """A server with data in a folder of its own, on a free port of loopback and a Unix socket."""

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self.port, self._bin = folder, free_port(), bin_folder
        self._server: subprocess.Popen[bytes] | None = None
        # neither program runs as root; the server ends with this process
        self._prefix = ["setpriv", "--pdeathsig", "INT"]
        if os.geteuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(folder, account.pw_uid, account.pw_gid)
            self._prefix += [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
        options = ["--auth=trust", "--username=reverie", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run("initdb", f"--pgdata={folder / 'data'}", *options)

    @property
    def pid(self) -> int:
        """The process id of the server, which must run."""
        assert self._server is not None
        return self._server.pid

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self._bin / program), *arguments]
        subprocess.run(command, check=True, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=120)

    def start(self) -> None:
        """Start the server; return when it accepts connections."""
        options = [part for setting in _SETTINGS for part in ("-c", setting)]
        command = [*self._prefix, str(self._bin / "postgres"), "-D", str(self.folder / "data"), *options]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        wait_until(self._accepts, "PostgreSQL accepts connections", 60)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends all sessions at once, SIGQUIT is like a crash."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(60)
            self._server = None

    def _accepts(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _connect(self) -> psycopg.Connection:
        address = {"host": "127.0.0.1", "port": self.port, "user": "reverie", "dbname": "postgres"}
        return psycopg.connect(**address, autocommit=True, connect_timeout=10)  # type: ignore[arg-type]

    def create(self, name: str | None = None, **settings: str) -> str:
        """Create an empty schema, unless it exists, and return a URL of which it is the job
        database.

        A database of its own would take a hundred times as long. `settings` are those of its
        sessions.
        """
        name = name or f"test_{uuid4().hex}"
        with closing(self._connect()) as connection:
            connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{name}"'.encode())
        options = " ".join(f"-c {key}={value}" for key, value in {"search_path": name, **settings}.items())
        return f"postgresql://reverie@127.0.0.1:{self.port}/postgres?options={quote(options)}"


@contextmanager
def running_server() -> Iterator[PostgreSQL]:
    """A server that runs while the block does. Skips the test, loudly, if none is installed."""
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip(MISSING)
    # not below pytest's folder, which only its user may enter
    folder = Path(tempfile.mkdtemp(prefix="reverie-postgresql-"))
    try:
        server = PostgreSQL(folder, bin_folder)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)  # its data are deleted
    finally:
        shutil.rmtree(folder, ignore_errors=True)
