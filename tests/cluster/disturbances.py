"""Members and servers of a cluster are killed, paused, cut off, slowed down and restarted."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait

from tests.cluster.members import MEMBERS, SERVERS, Cluster

INTERVAL_S = 5.0
"""A disturbance begins every so many seconds."""

SHORTEST_S, LONGEST_S = 3.0, 9.0
"""How long a member is paused or cut off. Its leases last three seconds, and are taken from it one
and a half seconds later.
"""

MEMBER_KINDS = ("kill", "kill", "pause", "pause", "cut", "cut", "slow link", "lost packets")
SERVER_KINDS = {
    "postgresql": ("restart", "restart", "cut", "slow link"),
    "queue": ("restart", "restart", "cut", "pause"),
    "s3": ("restart", "restart", "cut", "pause"),
}
"""PostgreSQL is not paused: its sessions are processes of their own."""

RESTARTS = 2
"""Each server is restarted so often at first."""


class Disturber:
    """Disturbs one member or server every `INTERVAL_S` seconds; at most two at the same time.

    Each round has every member and server once, in a random order; what is done to it is random,
    too. The same seed gives the same sequence.
    """

    def __init__(self, cluster: Cluster, seed: int = 0) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        """The number of disturbances, keyed by kind and by kind and name."""
        self.log: list[str] = []
        self._disturbed: set[str] = set()

    def run(self, finished: Callable[[], bool], longest_s: float) -> None:
        """Disturb the cluster until `finished` returns true and all that is required was done.

        Raises TimeoutError after `longest_s` seconds. Afterwards all members and servers run, and
        all links are good.
        """
        began = time.monotonic()
        acts: list[Future[None]] = []
        try:
            for number, (name, kind) in enumerate(self._sequence()):
                if any(act.done() and act.exception() for act in acts) or (finished() and self._enough()):
                    break
                if time.monotonic() - began > longest_s:
                    raise TimeoutError(f"not finished after {longest_s:.0f} s and {number} disturbances")
                acts.append(self._cluster.threads.submit(self._disturb, name, kind))
                time.sleep(max(0.0, began + (number + 1) * INTERVAL_S - time.monotonic()))
        finally:
            wait(acts)
        for act in acts:
            act.result()

    def _enough(self) -> bool:
        return all(self.counts[f"restart {name}"] >= RESTARTS for name in SERVERS)

    def _sequence(self) -> Iterator[tuple[str, str]]:
        """Yield what is disturbed and how, without end."""
        for number in itertools.count():
            names = [*MEMBERS, *SERVERS]
            self._random.shuffle(names)
            for name in names:
                restart = name in SERVERS and number < RESTARTS
                yield name, "restart" if restart else self._random.choice(SERVER_KINDS.get(name, MEMBER_KINDS))

    def _disturb(self, name: str, kind: str) -> None:
        if name in self._disturbed:  # the last of one round may be the first of the next
            return
        duration_s = self._random.uniform(SHORTEST_S, LONGEST_S)
        self._disturbed.add(name)
        self.counts[kind] += 1
        self.counts[f"{kind} {name}"] += 1
        self.log.append(f"{kind} {name}")
        try:
            self._act(name, kind, duration_s)
        finally:
            self._disturbed.discard(name)

    def _act(self, name: str, kind: str, duration_s: float) -> None:
        cluster, host = self._cluster, self._cluster.hosts[name]
        if kind == "kill":
            cluster.restart(name)
        elif kind == "restart":
            # as in a crash; after SIGKILL, PostgreSQL's sessions would go on for some time
            cluster.restart(name, signal.SIGQUIT if name == "postgresql" else signal.SIGKILL, after_s=1)
        elif kind == "pause":
            with cluster.frozen(name):
                time.sleep(duration_s)
        else:
            {"cut": host.cut, "slow link": host.slow_down, "lost packets": host.lose}[kind]()
            try:
                time.sleep(duration_s)
            finally:
                host.mend()
