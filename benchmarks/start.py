"""Measure how long the service takes from its start until the README's command is answered.

    python benchmarks/start.py                        # 5 cold and 5 warm starts
    python benchmarks/start.py --rounds 7 --write

A cold start has an empty state folder; a warm one has the folder of a service that ran before and
has measured the batch plan of the command's operation. Each start runs `python -m
workers.devserver`, waits for the line with the address, and then runs the README's `curl` command.
The files of the programs are in the page cache. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from serving import facts

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.stack import free_port  # noqa: E402 - after the path is known

RESULTS = ROOT / "docs" / "results" / "start"
MUST_S = {"cold": 8.0, "warm": 4.0}
TIMEOUT_S, STOP_S = 240.0, 60.0


@dataclass(frozen=True)
class Start:
    """One start: seconds until the address was printed and until the command was answered.

    `cpu_s` is the CPU time that the whole machine had used by then, and `response` the response's
    status and media type.
    """

    kind: str
    ready_s: float
    answered_s: float
    cpu_s: float
    response: str


def readme_command(url: str, output: Path) -> str:
    """Return the README's command for a service at another address, with another output file."""
    blocks = re.findall(r"```sh\n(curl .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(blocks[0]).replace("http://127.0.0.1:8000", url).replace("digits.png", str(output))


class Service:
    """A running service, as `make serve` starts it."""

    def __init__(self, state: Path) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("REVERIE_")},
            "REVERIE_PORT": self.url.rpartition(":")[2],
            "REVERIE_QUEUE_URL": f"redis://127.0.0.1:{free_port()}/0",
            "REVERIE_STATE": str(state),
        }
        self.lines: list[str] = []
        self._state = state
        self._ready = threading.Event()
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers.devserver"],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append(line)
            if line.startswith("Reverie is ready at"):
                self._ready.set()

    def wait_ready(self) -> float:
        """Return the seconds from the start until the address was printed."""
        if not self._ready.wait(TIMEOUT_S):
            raise TimeoutError("".join(self.lines))
        return time.perf_counter() - self.started

    def wait_measured(self) -> None:
        """Wait until a batch plan is stored: that of the requested operation is measured first."""
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until and not list((self._state / "plans").glob("*.json")):
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop the service as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(STOP_S)


def start(kind: str, state: Path, *, measured: bool = False) -> Start:
    """Start the service, run the README's command, and stop; `measured`: wait for a batch plan."""
    output = state.parent / "digits.png"
    busy = facts.busy_cpu_s()
    service = Service(state)
    try:
        ready_s = service.wait_ready()
        command = readme_command(service.url, output)
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        answered_s = time.perf_counter() - service.started
        result = Start(kind, ready_s, answered_s, facts.busy_cpu_s() - busy, done.stdout.strip())
        if measured:
            service.wait_measured()
    finally:
        service.stop()
    print(result, file=sys.stderr)
    return result


def measure(rounds: int) -> list[Start]:
    """Return cold and warm starts, alternately, after a first start that is not counted."""
    starts = []
    with tempfile.TemporaryDirectory() as used:
        start("first", Path(used) / "state", measured=True)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as empty:
                starts.append(start("cold", Path(empty) / "state"))
            starts.append(start("warm", Path(used) / "state"))
    return starts


def _span(values: Iterable[float]) -> str:
    known = list(values)
    return f"{statistics.median(known):.2f} [{min(known):.2f}, {max(known):.2f}]"


def page(starts: list[Start]) -> list[str]:
    """Return the lines of the results' page."""
    machine, code = facts.machine(), f"Python {facts.machine()['python']}, commit `{facts.commit()}`"
    lines = [
        "# Start: until the README's command is answered",
        "",
        f"{facts.now()}, {machine['cpu']}, {machine['cores']} cores, load {facts.load_average():.2f}, {code}.",
        "",
        "| start | n | address printed, s | command answered, s | must, s | CPU-s of the machine | responses |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for kind, must_s in MUST_S.items():
        some = [one for one in starts if one.kind == kind]
        responses = ", ".join(sorted({one.response for one in some}))
        figures = (_span(one.ready_s for one in some), _span(one.answered_s for one in some))
        cpu = _span(one.cpu_s for one in some)
        lines.append(f"| {kind} | {len(some)} | {figures[0]} | {figures[1]} | {must_s:g} | {cpu} | {responses} |")
    return [
        *lines,
        "",
        "Median [least, largest]. From the start of `python -m workers.devserver`; the command runs when",
        "the address is printed. Cold: an empty state folder. Warm: a folder of a service that had measured",
        "the batch plan of the command's operation. The programs' files were in the page cache.",
        "",
        f"Made by `python benchmarks/start.py {' '.join(sys.argv[1:])}`.",
    ]


def main() -> None:
    """Measure and print, or write the results' page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="cold and warm starts")
    parser.add_argument("--write", action="store_true", help="write docs/results/start.md and .json")
    arguments = parser.parse_args()
    starts = measure(arguments.rounds)
    text = "\n".join(page(starts)) + "\n"
    print(text)
    if arguments.write:
        RESULTS.with_suffix(".md").write_text(text)
        RESULTS.with_suffix(".json").write_text(json.dumps([asdict(one) for one in starts], indent=1) + "\n")


if __name__ == "__main__":
    main()
