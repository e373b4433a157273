"""The five servers: how each is installed, started with its settings, and requested."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.client import Target, wait_until_answering
from serving.processes import Tree, process_tree

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "benchmarks" / "peers"
ENVIRONMENTS = ROOT / ".venv-peers"
START_TIMEOUT_S = 120

TORCH = "torch==2.13.0"
SHARED = ("uvicorn[standard]==0.54.0", "orjson==3.13.0", "numpy==2.4.6", "pillow==13.0.0", "safetensors==0.8.0")

TOLD = ("torch", "numpy", "pillow", "uvicorn", "uvloop", "fastapi", "litserve", "bentoml", "ray", "celery", "redis")

Dials = Mapping[str, str]
Steps = Sequence[Sequence[Dials]]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, `folder`/NAME/VERSION/model.safetensors."""

    folder: Path
    name: str
    version: str

    @property
    def path(self) -> Path:
        """The version's folder."""
        return self.folder / self.name / self.version


@dataclass(frozen=True)
class Server:
    """One way to serve the generator.

    `start` are the first settings of the sweep, `sweep` its steps: each tries some changes of the
    best settings so far and keeps the best. `heavy` are steps for the heavy model only. An empty
    `package` is Reverie itself.
    """

    name: str
    package: str
    command: Callable[[str, int, Dials], Sequence[str]]
    path: str
    port: int
    shape: str = "fields"
    ready: str = ""
    folder: Path = PEERS
    start: Dials = field(default_factory=dict)
    sweep: Steps = ()
    heavy: Steps = ()
    variables: Dials = field(default_factory=dict)
    grace_s: float = 1

    @property
    def python(self) -> str:
        """The interpreter of the server's environment."""
        return str(ENVIRONMENTS / self.name / "bin" / "python") if self.package else sys.executable

    @property
    def url(self) -> str:
        """The URL of a sample."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def target(self, checkpoint: Checkpoint) -> Target:
        """The server's address and request format, for the client."""
        return Target(self.url, self.shape, checkpoint.name)

    def environment(self, checkpoint: Checkpoint, dials: Dials, scratch: Path) -> dict[str, str]:
        """Return the environment variables of one start: a peer's settings, or Reverie's."""
        names = ("PATH", "HOME", "LANG", "TMPDIR")
        base = {name: os.environ[name] for name in names if name in os.environ} | dict(self.variables)
        if not self.package:
            return base | {
                "REVERIE_PORT": str(self.port),
                "REVERIE_STATE": str(scratch / "state"),
                "REVERIE_CHECKPOINTS": str(checkpoint.folder),
                "REVERIE_QUEUE_URL": f"redis://127.0.0.1:{self.port + 1}/0",
                "REVERIE_LOG_LEVEL": "warning",
            }
        threads = dials.get("threads", "1")
        return (
            base
            | {f"PEER_{name.upper()}": value for name, value in dials.items()}
            | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": dials.get("optimized", "0")}
            | {
                "PEER_SCRATCH": str(scratch),
                "PEER_THREADS": threads,
                "OMP_NUM_THREADS": threads,
                "PEER_PORT": str(self.port),
                "PEER_CHECKPOINT": str(checkpoint.path),
                "PYTHONPATH": os.pathsep.join([str(PEERS), *_extra_paths(), str(ROOT)]),
            }
        )


def _extra_paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _bare(python: str, port: int, dials: Dials) -> Sequence[str]:
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--workers", dials["workers"]]
    return [python, "-m", "uvicorn", "bare:app", "--host", "127.0.0.1", "--port", str(port), *options]


def _litserve(python: str, _port: int, _dials: Dials) -> Sequence[str]:
    return [python, str(PEERS / "lit.py")]


def _bentoml(python: str, port: int, _dials: Dials) -> Sequence[str]:
    return [python, "-m", "bentoml", "serve", "bento:Draw", "--host", "127.0.0.1", "--port", str(port)]


def _ray(python: str, _port: int, _dials: Dials) -> Sequence[str]:
    return [python, str(PEERS / "ray_app.py")]


def _reverie(python: str, _port: int, _dials: Dials) -> Sequence[str]:
    return [python, "-m", "workers.devserver"]


FASTAPI = Server(
    "fastapi",
    "fastapi==0.165.0",
    _bare,
    "/predict",
    8811,
    start={"workers": "1"},
    sweep=[[{"workers": "2"}]],
    heavy=[[{"threads": "2"}]],
)
LITSERVE = Server(
    "litserve",
    "litserve==0.2.19",
    _litserve,
    "/predict",
    8821,
    start={"batch": "16", "wait_s": "0.002", "workers": "1", "fronts": "1", "fast_queue": "0"},
    sweep=[
        [{"fast_queue": "1"}],
        [{"batch": "1"}, {"batch": "64"}],
        [{"wait_s": "0"}, {"wait_s": "0.01"}],
        [{"workers": "2"}, {"workers": "2", "fronts": "2"}, {"fronts": "2"}],
        [{"fast_queue": "0"}],
    ],
    heavy=[[{"threads": "2"}]],
)
BENTOML = Server(
    "bentoml",
    "bentoml==1.4.39",
    _bentoml,
    "/predict",
    8831,
    shape="list",
    start={"batch": "64", "latency_ms": "10000", "workers": "1"},
    sweep=[[{"batch": "16"}], [{"latency_ms": "1000"}], [{"workers": "2"}]],
    heavy=[[{"threads": "2"}]],
    variables={"BENTOML_DO_NOT_TRACK": "True"},
)
RAY = Server(
    "ray",
    "ray[serve]==2.60.0",
    _ray,
    "/predict",
    8841,
    start={"batch": "64", "wait_s": "0.002", "workers": "1", "optimized": "1"},
    sweep=[[{"wait_s": "0"}], [{"batch": "16"}], [{"workers": "2"}]],
    heavy=[[{"threads": "2"}]],
    variables={"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0"},
)
REVERIE = Server("reverie", "", _reverie, "/v1/samples", 8851, ready="/readyz", folder=ROOT, grace_s=20)

ALL = (REVERIE, LITSERVE, BENTOML, RAY, FASTAPI)


def install(server: Server) -> None:
    """Create the server's environment with its pinned versions.

    torch is installed first, to get its CPU build.
    """
    if not server.package:
        return
    folder = ENVIRONMENTS / server.name
    pins = "\n".join([TORCH, server.package, *SHARED])
    mark = folder / "pins.txt"
    if mark.exists() and mark.read_text() == pins:
        return
    print(f"installing {server.package} into {folder.relative_to(ROOT)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for wanted in ([TORCH], [server.package, *SHARED]):
        subprocess.run([server.python, "-m", "pip", "install", "-qq", *wanted], check=True, timeout=1800)
    mark.write_text(pins)


def versions(server: Server) -> dict[str, str]:
    """Return the installed versions that matter for the measurement."""
    code = (
        "import importlib.metadata as m, json, sys; names = sys.argv[1:];"
        "print(json.dumps({n: m.version(n) for n in names if n in {d.name.lower() for d in m.distributions()}}))"
    )
    out = subprocess.run([server.python, "-c", code, *TOLD], check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out))


@dataclass(frozen=True)
class Running:
    """A running server: its processes, its target, and its start-up time."""

    tree: Tree
    target: Target
    start_s: float


@contextlib.contextmanager
def running(server: Server, checkpoint: Checkpoint, dials: Dials, scratch: Path) -> Iterator[Running]:
    """Run the server while the block runs. State and log are under `scratch`.

    Raises RuntimeError with the end of its log if it does not start.
    """
    if _taken(server.port):
        raise RuntimeError(f"port {server.port}, which {server.name} is measured on, is taken")
    log = scratch / f"{server.name}.log"
    environment = server.environment(checkpoint, dials, scratch)
    command = server.command(server.python, server.port, dials)
    with process_tree(command, environment, server.folder, log, server.grace_s) as tree:
        target = server.target(checkpoint)
        try:
            start_s = wait_until_answering(target, server.ready, lambda: tree.process.poll() is None, START_TIMEOUT_S)
        except RuntimeError as error:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
            raise RuntimeError(f"{server.name} with {dict(dials)}: {error}\n{tail}") from error
        yield Running(tree, target, start_s)


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
