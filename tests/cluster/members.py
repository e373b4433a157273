"""A service of several hosts: two API processes, three inference and two training workers, two
servers.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import psycopg
import redis

from core.settings import Settings
from tests.cluster.network import SUBNET, Network
from tests.postgresql import programs
from tests.stack import FAMILIES, ROOT, checkpoints, share_plans, succeeds
from tests.waiting import wait_until
from workers.devserver import queue_command

APIS = ("api-1", "api-2")
INFERENCE = ("inference-1", "inference-2", "inference-3")
TRAINING = ("training-1", "training-2")
MEMBERS = (*APIS, *INFERENCE, *TRAINING)
MODULES = {"api": "api", "inference": "workers.inference", "training": "workers.training"}
POSTGRES = ("fsync=off", "shared_buffers=32MB", "max_connections=200", "log_min_messages=fatal")


class Cluster:
    """The members of one service, each on a host of its own; a context manager that starts all of
    them.

    Each has its own folder for temporary files, and sees the others by the network only. There is
    one exception: `state`, the state folder, is shared, as a volume of several hosts would be.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.network = Network("postgresql", "queue", *MEMBERS)
        self.hosts = self.network.hosts
        self.urls = {name: f"http://{self.hosts[name].address}:8000" for name in APIS}
        self.queue_url = f"redis://{self.hosts['queue'].address}:6379/0"
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        # What hosts share. Datasets, versions and runs are in the state folder, whose id marks the
        # queue server.
        self.state = folder / "state"
        self._checkpoints = checkpoints(folder / "checkpoints")
        share_plans(self.state, folder)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "OMP_NUM_THREADS": "1",
            "REVERIE_STATE": str(self.state),
            "REVERIE_CHECKPOINTS": str(self._checkpoints),
            "REVERIE_QUEUE_URL": self.queue_url,
            "REVERIE_DATABASE_URL": f"postgresql://reverie@{self.hosts['postgresql'].address}/postgres",
            "REVERIE_ALLOW_ANONYMOUS": "true",
            "REVERIE_ALLOWED_HOSTS": ",".join(["127.0.0.1", *(self.hosts[name].address for name in APIS)]),
            "REVERIE_TRAINING_NICE": "0",
            "REVERIE_LOG_LEVEL": "warning",
            **{f"REVERIE_{name.upper()}": value for name, value in settings.items()},
        }

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        try:
            self._stack.enter_context(self.network)
            self._make_database()
            self._stack.callback(self._stop_all)
            self.start("postgresql")
            self.start("queue")
            for name in MEMBERS:
                self.start(name)
            self.wait_ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str) -> None:
        """Start a member, PostgreSQL or the queue server on its host; wait for servers only."""
        host = self.hosts[name]
        temporary = self.folder / name
        temporary.mkdir(exist_ok=True)
        environment = {**self._environment, "TMPDIR": str(temporary)}
        if name == "postgresql":
            command = self._postgresql()
        elif name == "queue":
            command = [
                *queue_command(Settings(state=self.folder / "queue", queue_url=self.queue_url)),
                "--protected-mode",
                "no",
            ]
        else:
            command = [sys.executable, "-m", MODULES[name.partition("-")[0]]]
            if name in APIS:
                environment |= {"REVERIE_HOST": host.address, "REVERIE_PORT": "8000"}
            if name in INFERENCE:
                environment["REVERIE_EXTRA_MODELS"] = FAMILIES
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(host.command(*command), cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.parts[name] = process
        if name == "postgresql":
            wait_until(lambda: self._query("SELECT 1"), "PostgreSQL accepts connections", 60)
        if name == "queue":
            with redis.Redis.from_url(self.queue_url) as client:
                wait_until(lambda: succeeds(client.ping), "the queue server replies", 60)

    def stop(self, name: str, how: signal.Signals = signal.SIGKILL, timeout_s: float = 60) -> None:
        """End a member by a signal; return when it has exited."""
        process = self.parts.pop(name)
        process.send_signal(how)
        process.wait(timeout_s)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a member not run while the block does."""
        self.parts[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.parts[name].send_signal(signal.SIGCONT)

    def ready(self, api: str) -> bool:
        """Return whether an API process is ready and sees all inference workers."""

        def check() -> bool:
            response = httpx.get(f"{self.urls[api]}/readyz", timeout=5)
            return response.status_code == 200 and response.json()["workers"] == len(INFERENCE)

        return succeeds(check)

    def wait_ready(self) -> None:
        """Wait until all members run and have reported themselves."""
        for api in APIS:
            wait_until(lambda api=api: self.ready(api), f"{api} is ready and sees all workers", 240)  # type: ignore[misc]

    def _make_database(self) -> None:
        # not below pytest's folder, which only its user may enter
        folder, account = Path(tempfile.mkdtemp(prefix="reverie-cluster-")), pwd.getpwnam("postgres")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._database_folder = folder
        os.chown(folder, account.pw_uid, account.pw_gid)
        options = ["--auth=trust", "--username=reverie", "--encoding=UTF8", "--locale=C", "--no-sync"]
        command = [*_as_postgres(), str(_bin() / "initdb"), f"--pgdata={folder / 'data'}", *options]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=120)
        with (folder / "data" / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {SUBNET}.0/24 trust\n")

    def _postgresql(self) -> list[str]:
        folder = self._database_folder
        options = [word for setting in POSTGRES for word in ("-c", setting)]
        command = [*_as_postgres(), str(_bin() / "postgres"), "-D", str(folder / "data"), *options]
        return [*command, "-h", self.hosts["postgresql"].address, "-k", ""]

    def _query(self, text: str) -> object:
        with contextlib.suppress(psycopg.OperationalError), self.database() as connection:
            return connection.execute(text.encode()).fetchone()
        return None

    def database(self) -> psycopg.Connection:
        """Return a connection to the job database."""
        return psycopg.connect(self._environment["REVERIE_DATABASE_URL"], autocommit=True, connect_timeout=3)

    def _stop_all(self) -> None:
        for name in [*MEMBERS, "queue", "postgresql"]:
            if name in self.parts:
                self.parts[name].send_signal(signal.SIGCONT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.stop(name, signal.SIGINT if name == "postgresql" else signal.SIGKILL)


def _bin() -> Path:
    found = programs()
    assert found is not None
    return found


def _as_postgres() -> list[str]:
    account = pwd.getpwnam("postgres")
    return ["setpriv", "--pdeathsig", "INT", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
