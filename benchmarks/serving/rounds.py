"""Measure the servers in rounds; in a round each server runs alone, one after another."""

import http.client
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.client import NO_SAMPLES, Load, Samples, drive, drive_and_check, settle
from serving.facts import busy_cpu_s, load_average
from serving.processes import Tree, Weight
from serving.servers import Checkpoint, Dials, Server, running
from serving.sweep import ModelOperation

WEIGHED_AT = 64

Bodies = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Lengths:
    """Length of each part of a turn, in seconds."""

    warm_s: float
    cell_s: float
    idle_s: float


@dataclass
class Turn:
    """The measurements of one server in one round.

    They are loads by connections, checked responses, idle cost and the machine's state.
    """

    server: str
    number: int
    loads: dict[int, Load] = field(default_factory=dict)
    samples: Samples = NO_SAMPLES
    weight: Weight | None = None
    start_s: float = 0.0
    load_average: float = 0.0
    others_cpu: float = 0.0
    fault: str = ""


def turn(
    server: Server,
    checkpoint: Checkpoint,
    choice: ModelOperation,
    number: int,
    lengths: Lengths,
    expected: Bodies,
    scratch: Path,
) -> Turn:
    """Run one server: start, warm up, load at each number of connections, measure idle, stop.

    A server that does not start, or dies, is recorded with its error and does not affect the
    others.
    """
    found = Turn(server.name, number, load_average=load_average())
    try:
        for dials, counts in choice.settings():
            _measure(found, server, checkpoint, dials, counts, lengths, expected, scratch)
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        found.fault = str(error)
    return found


def _measure(
    found: Turn,
    server: Server,
    checkpoint: Checkpoint,
    dials: Dials,
    counts: Sequence[int],
    lengths: Lengths,
    expected: Bodies,
    scratch: Path,
) -> None:
    with running(server, checkpoint, dials, scratch) as up:
        found.start_s = max(found.start_s, up.start_s)
        drive(up.target, max(counts), lengths.warm_s)
        watch = _Others(up.tree)
        for connections in counts:
            settle(up.target)
            load, samples = drive_and_check(up.target, connections, lengths.cell_s, expected)
            found.loads[connections] = load
            found.samples += samples
        found.others_cpu = max(found.others_cpu, watch.share())
        if found.number == 0 and WEIGHED_AT in counts:
            settle(up.target)
            time.sleep(1)
            found.weight = up.tree.weigh(lengths.idle_s)


class _Others:
    """The CPU time of all processes except the server and the client."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._before = self._now()

    def _now(self) -> tuple[float, float]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = self._tree.cpu_s() + own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
        return time.monotonic(), busy_cpu_s() - ours

    def share(self) -> float:
        """Return CPU-seconds per second since the start, never below zero."""
        (start, before), (end, after) = self._before, self._now()
        return max(0.0, after - before) / (end - start)


def rounds(
    servers: Sequence[Server],
    checkpoint: Checkpoint,
    choices: Mapping[str, ModelOperation],
    count: int,
    lengths: Lengths,
    expected: Bodies,
    scratch: Path,
) -> list[Turn]:
    """Run all servers `count` times in the same order: A B C D E A B C D E …"""
    turns = []
    for number in range(count):
        for server in servers:
            done = turn(server, checkpoint, choices[server.name], number, lengths, expected, scratch)
            turns.append(done)
            print(f"  round {number + 1} {_told(done)}", flush=True)
    return turns


def _told(done: Turn) -> str:
    served = "  ".join(
        f"{count}: {load.requests_per_s:.0f}/s p50 {load.p50_ms:.1f} p99 {load.p99_ms:.1f} ms"
        for count, load in sorted(done.loads.items())
    )
    return (
        f"{done.server:9} {served}  bad {done.samples.bad}/{done.samples.taken}  others {done.others_cpu:.2f} CPU  "
        f"{done.samples.first_fault} {done.fault.splitlines()[0] if done.fault else ''}"
    ).rstrip()
