"""Compare the throughput of two revisions, measured alternately in one run.

The requests are `POST /v1/samples` for one image.

    python benchmarks/compare.py 42bacb8
        that revision and this checkout, small decoder
    python benchmarks/compare.py 42bacb8 --model vae-heavy --connections 16 --write
        the same for a decoder of five layers of 4096 with random weights

Each revision runs a service of its own, both with this environment's packages. In every round wrk
loads one service and then the other. Ratios are of the same round, so that a slower machine slows
both. The CPU time is that of the API process. Linux only: it reads /proc. Needs `wrk` (`apt-get
install -y wrk`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from serving.client import Target, drive, settle, wrk_path
from serving.facts import commit, machine, now

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
SMALL, HEAVY, HEAVY_WIDTHS = "vae-mnist-2d", "vae-heavy", [4096] * 5

PLANNING_S = 45
"""Time in which the idle workers of both services measure the batch sizes of the heavy model."""

_SERVE = """
import json, sys, tempfile
from pathlib import Path
tree, checkpoints = Path(sys.argv[1]), sys.argv[2]
sys.path.insert(0, str(tree))
from tests.stack import Stack
Stack.forked = False  # as a service is started
settings = {"checkpoints": checkpoints} if checkpoints else {}
service = Stack(Path(tempfile.mkdtemp(prefix="compare-")), log_level="warning", **settings)
service.start("queue"); service.wait_queue(); service.start("inference"); service.start("api"); service.wait_ready()
print(json.dumps({"url": service.url, "pid": service.parts["api"].pid}), flush=True)
sys.stdin.read(); service.down()
"""
"""Run the service of a checkout until the standard input closes."""


@dataclass(frozen=True)
class Service:
    """A running service of one revision."""

    target: Target
    api_pid: int

    def api_cpu_s(self) -> float:
        """Return the CPU-seconds that the API process has used."""
        fields = Path(f"/proc/{self.api_pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Round:
    """The measurements of both services under one load.

    They are requests per second, median latency, and the API's CPU time per request.
    """

    connections: int
    before_per_s: float
    after_per_s: float
    before_p50_ms: float
    after_p50_ms: float
    before_cpu_us: float
    after_cpu_us: float


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Yield a temporary folder with a revision checked out."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(tree), revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def checkpoints_of(model: str, tree: Path, scratch: Path) -> str:
    """Return the folder of checkpoints that a service needs for a model; "" for the tests' folder."""
    if model == SMALL:
        return ""
    if model != HEAVY:
        return str(tree / "checkpoints")
    command = [sys.executable, str(ROOT / "benchmarks" / "peers" / "checkpoint.py"), str(scratch), model]
    subprocess.run([*command, *map(str, HEAVY_WIDTHS)], check=True, env={"PYTHONPATH": str(ROOT)})
    return str(scratch)


@contextlib.contextmanager
def service(tree: Path, model: str, scratch: Path) -> Iterator[Service]:
    """Run the service of a checkout; a heavy model's checkpoint is made in the folder `scratch`."""
    command = [sys.executable, "-c", _SERVE, str(tree), checkpoints_of(model, tree, scratch)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tree, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            started = json.loads(process.stdout.readline())
            yield Service(Target(f"{started['url']}/v1/samples", "fields", model), started["pid"])
        finally:
            process.stdin.close()


def load(running: Service, connections: int, seconds: float) -> tuple[float, float, float]:
    """Load a service and measure it.

    Return requests per second, the median latency in ms, and the API's CPU time per request in µs.
    """
    settle(running.target)
    cpu_s = running.api_cpu_s()
    result = drive(running.target, connections, seconds)
    if result.non_2xx or result.socket_errors:
        raise SystemExit(f"{result.non_2xx} error responses and {result.socket_errors} broken connections")
    cpu_us = 1e6 * (running.api_cpu_s() - cpu_s) / (result.requests_per_s * seconds)
    return result.requests_per_s, result.p50_ms, cpu_us


def measure(before: Service, after: Service, connections: list[int], rounds: int, seconds: float) -> list[Round]:
    """Load both services alternately."""
    measured = []
    for number in range(rounds):
        for count in connections:
            order = (before, after) if number % 2 == 0 else (after, before)
            results = {id(running): load(running, count, seconds) for running in order}
            pairs = zip(results[id(before)], results[id(after)], strict=True)
            measured.append(Round(count, *(value for pair in pairs for value in pair)))
            print(measured[-1], file=sys.stderr)
    return measured


def table(measured: list[Round]) -> list[str]:
    """Return the lines of a Markdown table.

    It has medians, and the median, smallest and largest ratio of a round.
    """
    lines = ["| connections | requests/s | ratio | p50 | ratio | API CPU per request | ratio |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for count in sorted({one.connections for one in measured}):
        rounds = [one for one in measured if one.connections == count]
        cells = [str(count)]
        for name, unit in (("per_s", ""), ("p50_ms", " ms"), ("cpu_us", " µs")):
            pairs = [(getattr(one, f"before_{name}"), getattr(one, f"after_{name}")) for one in rounds]
            first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratios = [after / before for before, after in pairs]
            digits = 2 if name == "p50_ms" else 0
            cells.append(f"{first:.{digits}f} → {second:.{digits}f}{unit}")
            cells.append(f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure and print, or write the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="the revision to compare this checkout with")
    parser.add_argument("--model", default=SMALL, help="model to sample from")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64], help="open connections")
    parser.add_argument("--rounds", type=int, default=6, help="rounds")
    parser.add_argument("--seconds", type=float, default=3, help="length of each load")
    parser.add_argument("--write", action="store_true", help="write docs/results/compare*.md and .json")
    arguments = parser.parse_args()
    wrk_path()
    with (
        tempfile.TemporaryDirectory(prefix="compare-") as scratch,
        checkout(arguments.before) as tree,
        service(tree, arguments.model, Path(scratch) / "before") as before,
        service(ROOT, arguments.model, Path(scratch) / "after") as after,
    ):
        if arguments.model == HEAVY:
            for running in (before, after):
                settle(running.target)
            time.sleep(PLANNING_S)
        measured = measure(before, after, arguments.connections, arguments.rounds, arguments.seconds)
    facts = {"before": arguments.before, "after": commit(), "model": arguments.model, "date": now(), **machine()}
    rounds = f"{arguments.rounds} rounds of {arguments.seconds:g} s for each number of connections"
    page = [f"# {arguments.model}: {facts['before']} → {facts['after']}", ""]
    page += [f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores; {rounds}, alternately in one run.", ""]
    page += [*table(measured), "", "Medians; ratios are after/before of the same round: median [least, largest].", ""]
    page += [f"Made by `python benchmarks/compare.py {' '.join(sys.argv[1:])}`."]
    print("\n".join(page))
    if arguments.write:
        name = "compare" if arguments.model == SMALL else f"compare-{arguments.model}"
        (RESULTS / f"{name}.md").write_text("\n".join(page) + "\n")
        kept = {"facts": facts, "rounds": [asdict(one) for one in measured]}
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
