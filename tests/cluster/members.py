"""A service of several hosts: two API processes, three inference and two training workers, three
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
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import httpx
import psycopg
import redis

from core.settings import Settings
from tests.cluster.network import SUBNET, Network
from tests.object_store import CREDENTIALS, new_store
from tests.postgresql import programs
from tests.seaweedfs import SeaweedFS
from tests.stack import ROOT, checkpoints, succeeds
from tests.waiting import wait_until
from workers.devserver import queue_command

APIS = ("api-1", "api-2")
INFERENCE = ("inference-1", "inference-2", "inference-3")
TRAINING = ("training-1", "training-2")
MEMBERS = (*APIS, *INFERENCE, *TRAINING)
SERVERS = ("postgresql", "queue", "s3")
MODULES = {"api": "api", "inference": "workers.inference", "training": "workers.training"}
POSTGRES = ("fsync=off", "shared_buffers=32MB", "max_connections=200", "log_min_messages=fatal")
SETTINGS = {"shutdown_delay_s": "3", "max_sync_timeout_s": "100", "max_count": "300000", "max_attempts": "10"}
"""Settings of all clusters. With the default of three attempts a training may fail by chance, because
members die so often.
"""


class Cluster:
    """The members of one service, each on a host of its own; a context manager that starts all of
    them.

    Each has its own folder, with its state, checkpoints and temporary files, and sees neither the
    folders of the others nor anything of them but the network. They share PostgreSQL, an object
    store and the queue server. A member that exits is started again, as by a supervisor.
    """

    def __init__(self, folder: Path, code: Path = ROOT) -> None:
        """Prepare the hosts; `code` is the source tree from which members are started."""
        self.folder = folder
        self.code = code
        self.network = Network(*SERVERS, *MEMBERS)
        self.hosts = self.network.hosts
        self.urls = {name: f"http://{self.hosts[name].address}:8000" for name in APIS}
        self.queue_url = f"redis://{self.hosts['queue'].address}:6379/0"
        prefix = self.hosts["s3"].command(own=folder / "s3", hidden=folder)
        self.s3 = SeaweedFS(folder / "s3", self.hosts["s3"].address, prefix)
        self.parts: dict[str, subprocess.Popen[bytes]] = {}
        self.exits: list[str] = []
        """What exited by itself and was started again: the name of the member and its status."""
        # a process is killed when the thread ends that has started it: these threads end with the cluster
        self.threads = ThreadPoolExecutor(4)
        self._locks = {name: threading.Lock() for name in MEMBERS + SERVERS}
        self._stopping = threading.Event()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            **CREDENTIALS,
            "OMP_NUM_THREADS": "1",
            "REVERIE_QUEUE_URL": self.queue_url,
            "REVERIE_DATABASE_URL": f"postgresql://reverie@{self.hosts['postgresql'].address}/postgres",
            "REVERIE_ALLOW_ANONYMOUS": "true",
            "REVERIE_ALLOWED_HOSTS": ",".join(["127.0.0.1", *(self.hosts[name].address for name in APIS)]),
            "REVERIE_ALLOWED_NETWORKS": f"{SUBNET}.0/24",
            "REVERIE_TRAINING_NICE": "0",
            "REVERIE_LOG_LEVEL": "warning",
            **{f"REVERIE_{name.upper()}": value for name, value in SETTINGS.items()},
        }
        for name in MEMBERS:
            (folder / name / "tmp").mkdir(parents=True)
            checkpoints(folder / name / "checkpoints")
        for name in SERVERS:
            (folder / name).mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        try:
            self._stack.enter_context(self.network)
            self._make_database()
            self._stack.callback(self.threads.shutdown)
            self._stack.callback(self._stop_all)
            for name in SERVERS:
                self.start(name)
            self._environment["REVERIE_BLOBS_URL"] = new_store(self.s3.endpoint)
            for name in MEMBERS:
                self.start(name)
            supervisor = threading.Thread(target=self._supervise)
            supervisor.start()
            self._stack.callback(supervisor.join)
            self._stack.callback(self._stopping.set)
            self.wait_ready()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, name: str) -> None:
        """Start a member or a server on its host; wait for servers only."""
        if name == "s3":
            self.s3.start()
            return
        command, environment, folder = self._command(name), self._environment_of(name), self.folder / name
        command = self.hosts[name].command(*command, own=folder, hidden=self.folder)
        with (self.folder / f"{name}.log").open("ab") as log:
            root = self.code if name in MEMBERS else ROOT
            self.parts[name] = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        if name == "postgresql":
            wait_until(lambda: self._query("SELECT 1"), "PostgreSQL accepts connections", 60)
        elif name == "queue":
            with redis.Redis.from_url(self.queue_url) as client:
                wait_until(lambda: succeeds(client.ping), "the queue server replies", 60)

    def _command(self, name: str) -> list[str]:
        """Return the command of a member or a server."""
        if name == "postgresql":
            return self._postgresql()
        if name == "queue":
            command = queue_command(Settings(state=self.folder / name, queue_url=self.queue_url))
            return [*command, "--protected-mode", "no"]
        return [sys.executable, "-m", MODULES[name.partition("-")[0]]]

    def _environment_of(self, name: str) -> dict[str, str]:
        """Return the environment variables of a member or a server."""
        own = self.folder / name
        if name in SERVERS:
            return self._environment
        environment = self._environment | {
            "TMPDIR": str(own / "tmp"),
            "REVERIE_STATE": str(own / "state"),
            "REVERIE_CHECKPOINTS": str(own / "checkpoints"),
        }
        if name in APIS:
            environment |= {"REVERIE_HOST": self.hosts[name].address, "REVERIE_PORT": "8000"}
        if name in INFERENCE:
            environment["REVERIE_EXTRA_MODELS"] = str(self.code / "tests" / "families")
        return environment

    def stop(self, name: str, how: signal.Signals = signal.SIGKILL, timeout_s: float = 60) -> None:
        """End a member or a server by a signal; return when it has exited."""
        if name == "s3":
            self.s3.stop(how)
            return
        process = self.parts.pop(name)
        process.send_signal(how)
        process.wait(timeout_s)

    def restart(self, name: str, how: signal.Signals = signal.SIGKILL, after_s: float = 0) -> None:
        """End a member or a server by a signal, and start it again after some seconds."""
        with self._locks[name]:
            self.stop(name, how)
            time.sleep(after_s)
            self.start(name)

    def _supervise(self) -> None:
        """Start members again that have exited, until all of them are to stop."""
        while not self._stopping.wait(1.0):
            for name in MEMBERS:
                with self._locks[name]:
                    process = self.parts.get(name)
                    if process is not None and process.poll() is not None:
                        self.exits.append(f"{name} with status {process.returncode}")
                        self.start(name)

    @contextlib.contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Let a member not run while the block does."""
        pid = self.s3.pid if name == "s3" else self.parts[name].pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

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
        self.s3.stop()
        for name in (*MEMBERS, *reversed(SERVERS)):
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
