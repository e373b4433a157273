"""Find the best settings of each server, step by step.

The setting with the most requests per second at 64 connections is kept.
"""

import dataclasses
import http.client
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.client import drive, settle
from serving.servers import Checkpoint, Dials, Server, running

CONNECTIONS = (64, 16, 1)
SLACK = 1.05


@dataclass(frozen=True)
class Trial:
    """The throughput of one setting at each number of connections, or the reason of its failure."""

    dials: Dials
    requests_per_s: dict[int, float] = field(default_factory=dict)
    p50_ms: dict[int, float] = field(default_factory=dict)
    fault: str = ""

    def served(self, connections: int) -> float:
        """Return requests per second; 0 for a setting that failed or rejected requests."""
        return 0.0 if self.fault else self.requests_per_s.get(connections, 0.0)


@dataclass(frozen=True)
class ModelOperation:
    """The settings of a server for each number of connections, and the trials behind them."""

    dials: dict[int, Dials]
    trials: Sequence[Trial] = ()

    def settings(self) -> Iterator[tuple[Dials, list[int]]]:
        """Return each distinct setting with its numbers of connections."""
        for dials in {tuple(sorted(dials.items())): dials for dials in self.dials.values()}.values():
            yield dials, sorted(count for count, chosen in self.dials.items() if chosen == dials)


def attempt(server: Server, checkpoint: Checkpoint, dials: Dials, scratch: Path, seconds: float) -> Trial:
    """Start the server with these settings and load it briefly. A failure is a result."""
    trial = Trial(dials)
    try:
        with running(server, checkpoint, dials, scratch) as up:
            drive(up.target, CONNECTIONS[0], seconds)
            for connections in CONNECTIONS:
                settle(up.target)
                load = drive(up.target, connections, seconds)
                trial.requests_per_s[connections] = load.requests_per_s
                trial.p50_ms[connections] = load.p50_ms
                if load.non_2xx or load.socket_errors:
                    fault = f"{load.non_2xx} answers not 2xx, {load.socket_errors} socket errors at {connections}"
                    return dataclasses.replace(trial, fault=fault)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        return dataclasses.replace(trial, fault=str(error))
    return trial


def sweep(server: Server, checkpoint: Checkpoint, heavy: bool, scratch: Path, seconds: float) -> ModelOperation:
    """Try the server's settings step by step; choose the best for each number of connections."""
    trials: dict[tuple[tuple[str, str], ...], Trial] = {}

    def tried(dials: Dials) -> Trial:
        key = tuple(sorted(dials.items()))
        if key not in trials:
            trials[key] = attempt(server, checkpoint, dials, scratch, seconds)
            print(f"  {server.name} {_told(trials[key])}", flush=True)
        return trials[key]

    best = tried(server.start)
    for step in [*server.sweep, *(server.heavy if heavy else ())]:
        alone = best.dials.get("batch") == "1"  # a batching window has no effect then
        settings = [tried({**best.dials, **change}) for change in step if not (alone and "wait_s" in change)]
        best = max([best, *settings], key=lambda trial: trial.served(64))
    return choose(list(trials.values()))


def choose(trials: Sequence[Trial]) -> ModelOperation:
    """Choose the setting with the most requests per second, or at one connection the lowest
    latency.

    A setting within 5 % of the best is replaced by the one for 64 connections, which saves a start.
    """
    best = max(trials, key=lambda trial: trial.served(64))
    at_16 = max(trials, key=lambda trial: trial.served(16))
    alone = min((trial for trial in trials if trial.served(1)), key=lambda trial: trial.p50_ms[1], default=best)
    if at_16.served(16) < SLACK * best.served(16):
        at_16 = best
    if not best.served(1) or SLACK * alone.p50_ms[1] > best.p50_ms[1]:
        alone = best
    return ModelOperation({1: alone.dials, 16: at_16.dials, 64: best.dials}, trials)


def _told(trial: Trial) -> str:
    dials = " ".join(f"{name}={value}" for name, value in trial.dials.items()) or "as it comes"
    served = "  ".join(f"{count}: {value:.0f}/s" for count, value in sorted(trial.requests_per_s.items()))
    return f"{dials}  {served}  {trial.fault.splitlines()[0] if trial.fault else ''}".rstrip()
