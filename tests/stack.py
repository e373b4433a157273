"""A real service for tests: queue server, workers and API as separate processes on free ports."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import httpx
import redis
import sqlalchemy as sa

from core.blobs import Blobs, open_blobs
from core.broker.codec import unpack
from core.broker.keys import WORKERS
from core.catalog.versions import Versions
from core.datasets.store import Datasets
from core.instance import is_shared
from core.jobs.migrate import migrate
from core.jobs.store import JobStore
from core.settings import Settings
from core.shared import import_state, open_datasets, open_versions
from tests.forked import ForkedProcess
from tests.waiting import wait_until
from workers.devserver import queue_command

ROOT = Path(__file__).parents[1]
FAMILIES = str(ROOT / "tests" / "families")
READY_S = 240.0


def free_port() -> int:
    """Return a port that no process listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


ON_POSTGRESQL = os.environ.get("TEST_DATABASE") == "postgresql"
"""Whether services use PostgreSQL as their job database instead of SQLite."""

create_database: Callable[[str], str] | None = None
"""Returns the URL of the PostgreSQL database with a name, which it creates; `tests/conftest.py`
sets it.
"""

BLOBS = os.environ.get("TEST_BLOBS", "")
"""Where services store blobs: "" for a folder, or the S3 server "moto" or "seaweedfs"."""

create_blobs: Callable[[str], dict[str, str]] | None = None
"""Returns the variables with which a service uses an object store, in a folder of this name;
`tests/conftest.py` sets it.
"""

ON_ONE_HOST = {"database_url": "", "blobs_url": ""}
"""Settings of a service whose data are in its state folder, also where services use PostgreSQL or an
object store: for tests of these folders.
"""

shared_folder: Path | None = None
"""A folder that the services of one test run share; `tests/conftest.py` sets it."""


def checkpoints(folder: Path) -> Path:
    """Fill a folder with the shipped two-dimensional VAE and the models of the tests' families."""
    folder.mkdir(parents=True)
    (folder / "vae-mnist-2d").symlink_to(ROOT / "checkpoints" / "vae-mnist-2d")
    made = _shared("models", folder.parent)
    with (made.parent / "models.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            part = made.with_suffix(".part")
            command = [sys.executable, "-c", _MAKE_MODELS, FAMILIES, str(part)]
            subprocess.run(command, check=True, cwd=ROOT)
            part.rename(made)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


_MAKE_MODELS = """
import importlib, sys, models; models.__path__.append(sys.argv[1])
from models.kit import card
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
for name in ("enlarge", "faulty", "tiny"):
    family = importlib.import_module(f"models.{name}")
    model = family.Model(family.Config())
    stated = dict.fromkeys(card.REQUIRED, "test")
    stated |= {"format": 1, "name": name, "version": "1", "family": name, "config": {}, "figures": [],
               "provenance": {}, "image": getattr(family, "IMAGE", {"channels": 1, "height": 8, "width": 8}),
               "operations": model.operations()}
    card.save(Path(sys.argv[2]) / name / "1" / "model.safetensors", model, stated)
"""


def _shared(name: str, otherwise: Path) -> Path:
    """Return a path that the services of this test run share, or one in `otherwise` outside a
    run.
    """
    folder = shared_folder or otherwise / "shared"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def share_plans(state: Path, otherwise: Path) -> None:
    """Share the batch plans of the services of this test run, which are the same for all workers of
    a machine.
    """
    plans = _shared("plans", otherwise)
    plans.mkdir(exist_ok=True)
    state.mkdir(parents=True, exist_ok=True)
    (state / "plans").symlink_to(plans)


class Stack:
    """The processes of one service, each of which a test may kill, stop and start again.

    As a context manager it starts all of them, waits until the service is ready, and stops them.
    Inference workers have the families of the tests; `extra_models=FAMILIES` gives them to all
    processes. Processes are forked from one that has imported their packages; `forked = False`
    starts new interpreters.
    """

    forked = True

    def __init__(self, state: Path, workers: Sequence[str] = ("inference", "training"), **settings: str) -> None:
        """Write the folders of a service; `workers` are the kinds that `up` starts, one of each."""
        self.state = state
        self.workers = workers
        self.port = free_port()
        self.queue_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.queue_url = f"redis://127.0.0.1:{self.queue_port}/0"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "OMP_NUM_THREADS": "1",
            "REVERIE_PORT": str(self.port),
            "REVERIE_QUEUE_URL": self.queue_url,
            "REVERIE_STATE": str(state / "state"),
            "REVERIE_CHECKPOINTS": str(checkpoints(state / "checkpoints")),
            "REVERIE_TRAINING_NICE": "0",
            **{f"REVERIE_{name.upper()}": value for name, value in settings.items()},
        }
        name = f"stack_{hashlib.sha256(str(state).encode()).hexdigest()[:20]}"
        if create_database is not None:
            self.environment.setdefault("REVERIE_DATABASE_URL", create_database(name))
        if create_blobs is not None:
            self.environment = {**create_blobs(name), **self.environment}
        self.parts: dict[str, subprocess.Popen[bytes] | ForkedProcess] = {}
        share_plans(state / "state", state)

    @property
    def settings(self) -> Settings:
        """The settings of the service's processes."""
        prefix = "REVERIE_"
        names = [name for name in self.environment if name.startswith(prefix)]
        return Settings(**{name.removeprefix(prefix).lower(): self.environment[name] for name in names})  # type: ignore[arg-type]

    @property
    def is_shared(self) -> bool:
        """Whether several hosts can share the service's data: its blobs are in an object store."""
        return is_shared(self.settings)

    def blobs(self) -> Blobs:
        """Return the service's blob store."""
        return open_blobs(self.settings.blobs)

    def datasets(self) -> Datasets:
        """Return the service's store of datasets."""
        return open_datasets(self.settings, self._engine, self.blobs())

    def versions(self) -> Versions:
        """Return the service's store of versions."""
        return open_versions(self.settings, self._engine, self.blobs())

    def share_state(self) -> None:
        """Let all hosts have the versions, datasets and runs that a test has written to the state
        folder, if the service has an object store and does not use the folder.
        """
        if self.is_shared:
            migrate(self._engine)
            import_state(self.settings)

    @cached_property
    def _engine(self) -> sa.Engine:
        """The job database, whose connections `down` closes."""
        return JobStore(self.settings.database).engine

    @property
    def database(self) -> str:
        """The URL of the job database."""
        file = self.state / "state" / "jobs.sqlite3"
        return self.environment.get("REVERIE_DATABASE_URL") or f"sqlite:///{file}"

    def start(self, part: str, name: str | None = None, **settings: str) -> None:
        """Start a part: `queue`, `inference`, `training` or `api`; `name` distinguishes several
        workers, and `settings` are those of this process alone.
        """
        # not by `workers.devserver`, whose processes die with the thread that started them
        modules = {"inference": "workers.inference", "training": "workers.training", "api": "api"}
        if part == "queue":
            command = queue_command(Settings(state=self.state / "state", queue_url=self.queue_url))
        else:
            command = [sys.executable, "-m", modules[part]]
        environment = self.environment | {f"REVERIE_{key.upper()}": value for key, value in settings.items()}
        if part == "inference":  # a training worker would need torch to describe them
            environment.setdefault("REVERIE_EXTRA_MODELS", FAMILIES)
        log_file = self.state / f"{name or part}.log"
        if part != "queue" and self.forked:
            self.parts[name or part] = ForkedProcess(modules[part], ROOT, environment, log_file)
            return
        with log_file.open("ab") as log:
            self.parts[name or part] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a part a signal; wait for its exit after SIGKILL or SIGTERM."""
        process = self.parts[name]
        process.send_signal(how)
        if how in {signal.SIGKILL, signal.SIGTERM}:
            process.wait(30)

    def freeze(self, name: str) -> None:
        """Stop a part with SIGSTOP, but not within a transaction, because it would keep SQLite's
        write lock.

        PostgreSQL ends a transaction whose process is frozen.
        """
        process = self.parts[name]
        if not self.database.startswith("sqlite"):
            process.send_signal(signal.SIGSTOP)
            return
        database = sqlite3.connect(self.state / "state" / "jobs.sqlite3", timeout=30, isolation_level=None)
        with contextlib.closing(database):
            database.execute("BEGIN IMMEDIATE")
            process.send_signal(signal.SIGSTOP)
            status = Path(f"/proc/{process.pid}/stat")
            wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "T", f"{name} is frozen")
            database.execute("ROLLBACK")

    def up(self) -> Self:
        """Start all parts and wait until the service is ready."""
        self.start("queue")
        self.wait_queue()
        for part in (*self.workers, "api"):
            self.start(part)
        self.wait_ready()
        return self

    def wait_queue(self) -> None:
        """Wait until the queue server replies."""
        with redis.Redis(port=self.queue_port) as client:
            wait_until(lambda: succeeds(client.ping), "the queue server is up", READY_S)

    def wait_ready(self) -> None:
        """Wait until the service is ready and its workers have loaded all models."""

        def ready() -> bool:
            answer = httpx.get(f"{self.url}/readyz", timeout=5)
            return answer.status_code == 200 and not answer.json()["loading"]

        wait_until(lambda: succeeds(ready), "the service is ready", READY_S)

    def serves(self, name: str) -> bool:
        """Return whether this worker's process reports that it is ready.

        The heartbeat of a worker that was killed remains for some seconds; it does not count.
        """
        try:
            return bool(self.heartbeat(name)[1]["state"] == "ready")
        except LookupError:
            return False

    def heartbeat(self, name: str) -> tuple[str, dict[str, Any]]:
        """Return the id and the heartbeat of a worker; raise LookupError if it has sent none."""
        with redis.Redis(port=self.queue_port) as queue:
            for worker_id, packed in queue.hgetall(WORKERS).items():
                if f"-{self.parts[name].pid}-" in worker_id.decode():
                    return worker_id.decode(), unpack(packed)
        raise LookupError(name)

    @contextlib.contextmanager
    def restarting(self, name: str) -> Iterator[None]:
        """Start a part again whenever it exits, as a supervisor does."""
        stop = threading.Event()

        def supervise() -> None:
            while not stop.wait(0.1):
                if self.parts[name].poll() is not None:
                    self.start(name)

        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            yield
        finally:
            stop.set()
            supervisor.join()

    def __enter__(self) -> Self:
        try:
            return self.up()
        except BaseException:
            self.down()
            raise

    def __exit__(self, *_: object) -> None:
        self.down()

    def down(self) -> None:
        """Stop all parts."""
        if "_engine" in vars(self):
            self._engine.dispose()
        for name in reversed(list(self.parts)):
            process = self.parts.pop(name)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)

    def log(self, name: str) -> list[dict[str, object]]:
        """Return the JSON lines that a part has logged, also those after what another process wrote."""
        lines = (self.state / f"{name}.log").read_text().split("\n")  # JSON strings may contain other line separators
        return [json.loads(line[line.index('{"event"') :]) for line in lines if '{"event"' in line]


def succeeds(act: Callable[[], object]) -> bool:
    """Return whether `act` returns a true value; False if it cannot connect or is refused."""
    with contextlib.suppress(httpx.HTTPError, redis.RedisError, OSError):
        return bool(act())
    return False
