"""Tracks the live inference workers, and how many rows they can process, by their heartbeats."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.batching.scheduler import Capacity
from core.broker.codec import unpack

FORGET_S = 60.0  # a heartbeat that has not changed for so many seconds is removed from the queue server


@dataclass
class Heartbeat:
    """A worker's last heartbeat, and when its content last changed (monotonic, seconds)."""

    payload: dict[str, Any]
    changed: float


class WorkerMonitor:
    """Tracks the heartbeats of workers.

    A worker is alive if its heartbeat has changed within the last `timeout_s` seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        """Start without heartbeats.

        A worker counts as dead when its heartbeat has not changed for `timeout_s` seconds.
        """
        self._timeout_s = timeout_s
        self._heartbeats: dict[str, Heartbeat] = {}

    def update(self, packed: Mapping[Any, Any]) -> None:
        """Replace the known heartbeats by those that were read from the queue server.

        `packed` has them, packed by MessagePack, keyed by worker id.
        """
        now = time.monotonic()
        heartbeats = {}
        for raw, data in packed.items():
            name, payload = raw.decode(), unpack(data)
            # a worker that is new here may be dead already: its own clock dates the first heartbeat
            changed = now - max(0.0, time.time() - payload["at"])
            if known := self._heartbeats.get(name):
                changed = now if known.payload["beat"] != payload["beat"] else known.changed
            heartbeats[name] = Heartbeat(payload, changed)
        self._heartbeats = heartbeats

    def live(self) -> dict[str, dict[str, Any]]:
        """Return the heartbeats of live workers, keyed by worker id."""
        oldest = time.monotonic() - self._timeout_s
        return {name: heartbeat.payload for name, heartbeat in self._heartbeats.items() if heartbeat.changed > oldest}

    def silent(self) -> list[str]:
        """Return the ids of workers whose heartbeat has not changed for `FORGET_S` seconds.

        Their heartbeats can be deleted from the queue server.
        """
        oldest = time.monotonic() - FORGET_S
        return [name for name, heartbeat in self._heartbeats.items() if heartbeat.changed < oldest]

    def capacity(self) -> dict[tuple[str, str], Capacity]:
        """Return how many rows a batch may have, keyed by (`name@version`, method).

        Each value is a pair: the number of rows of the largest forward pass, and the number of rows
        that take about one time slice. Where live workers report different numbers, the smallest
        counts.
        """
        least: dict[tuple[str, str], Capacity] = {}
        for payload in self.live().values():
            for ref, methods in payload["capacity"].items():
                for method, (largest, slice_rows) in methods.items():
                    known = least.get((ref, method), (largest, slice_rows))
                    least[ref, method] = (min(known[0], largest), min(known[1], slice_rows))
        return least
