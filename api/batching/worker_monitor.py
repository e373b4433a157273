"""Tracks the inference workers by their heartbeats: who lives, and which versions each can run."""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api.batching.fleet import ANY_KIND, Fleet, WorkerState
from api.batching.scheduler import Capacity
from core.broker.codec import unpack

FORGET_S = 60.0  # a heartbeat that has not changed for so many seconds is removed from the queue server

# A worker that lived within so many seconds may come back: requests that only it can run wait.
RETURN_S = 15.0

REJECTION_S = 5.0  # so long a worker that has rejected a version gets no batch of it, at least
_CATALOGS = 1000  # known catalogs of versions that are kept

log = logging.getLogger(__name__)


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
        self._catalogs: dict[str, frozenset[str]] = {}
        self._fleet = Fleet()
        self._rejections: dict[tuple[str, str], float] = {}  # until when, by worker id and version
        # when workers were last alive that receive batches, keyed by what they can run
        self._seen: dict[tuple[str, tuple[str, ...], frozenset[str] | None], float] = {}

    def update(self, packed: Mapping[Any, Any], server_time_s: float) -> None:
        """Replace the known heartbeats by those that were read from the queue server.

        `packed` has the heartbeats, packed by MessagePack, keyed by worker id. `server_time_s` is
        the Unix time of the queue server when they were read. A heartbeat that cannot be read is
        left out.
        """
        now = time.monotonic()
        heartbeats = {}
        for raw, data in packed.items():
            try:
                name, payload = raw.decode(), unpack(data)
                # a worker that is new here may be dead already; the queue server's clock dated its
                # heartbeat
                changed = now - max(0.0, server_time_s - payload["at"])
                if known := self._heartbeats.get(name):
                    changed = now if known.payload["beat"] != payload["beat"] else known.changed
            except (ValueError, KeyError, TypeError):
                log.warning("heartbeat not understood", extra={"worker": repr(raw)[:200]})
                continue
            heartbeats[name] = Heartbeat(payload, changed)
        self._heartbeats = heartbeats

    def excuse(self, seconds: float) -> None:
        """Let workers that are alive now live `seconds` longer without a new heartbeat.

        The queue server did not reply for so long, and workers could not write to it either.
        """
        now = time.monotonic()
        for heartbeat in self._heartbeats.values():
            heartbeat.changed = min(now, heartbeat.changed + seconds)

    def live(self) -> dict[str, dict[str, Any]]:
        """Return the heartbeats of live workers, keyed by worker id."""
        oldest = time.monotonic() - self._timeout_s
        return {name: heartbeat.payload for name, heartbeat in self._heartbeats.items() if heartbeat.changed > oldest}

    def has_exited(self, worker_id: str) -> bool:
        """Return whether a worker has exited cleanly: it has deleted its heartbeat.

        The last heartbeat of a worker that was killed stays, for about `FORGET_S` seconds.
        """
        return worker_id not in self._heartbeats

    def silent(self) -> list[str]:
        """Return the ids of workers whose heartbeat has not changed for `FORGET_S` seconds.

        Their heartbeats can be deleted from the queue server.
        """
        oldest = time.monotonic() - FORGET_S
        return [name for name, heartbeat in self._heartbeats.items() if heartbeat.changed < oldest]

    def capacity(self) -> dict[tuple[str, str, str], Capacity]:
        """Return how many rows a batch may have, keyed by (device kind, `name@version`, method).

        Each value is a pair: the number of rows of the largest forward pass, and the number of rows
        that a worker computes in about one time slice (the time that it gives to one batch before
        it takes the next message). Where live workers report different numbers, the smallest
        counts. The key's device kind `ANY_KIND` stands for all kinds together.
        """
        least: dict[tuple[str, str, str], Capacity] = {}
        for payload in self.live().values():
            kinds = {ANY_KIND, payload.get("device_kind", ANY_KIND)}
            for ref, methods in payload["capacity"].items():
                for method, (largest, slice_rows) in methods.items():
                    for key in ((kind, ref, method) for kind in kinds):
                        known = least.get(key, (largest, slice_rows))
                        least[key] = (min(known[0], largest), min(known[1], slice_rows))
        return least

    # --- which worker can run what ---

    def missing_catalogs(self) -> list[str]:
        """Return the digests of the catalogs that live workers report and that were not added yet."""
        named = {payload.get("catalog", "") for payload in self.live().values()}
        return [digest for digest in named if digest and digest not in self._catalogs]

    def add_catalog(self, digest: str, refs: Iterable[str]) -> None:
        """Remember which model versions (`name@version`) a digest of a catalog stands for.

        Heartbeats name the versions that a worker may load by such a digest.
        """
        while len(self._catalogs) >= _CATALOGS:
            del self._catalogs[next(iter(self._catalogs))]
        self._catalogs[digest] = frozenset(refs)

    def reject(self, worker_id: str, ref: str, for_s: float = REJECTION_S) -> None:
        """Record that a worker has rejected a batch of the version `ref`.

        For `for_s` seconds no batches of this version are sent to the worker.
        """
        self._rejections[worker_id, ref] = time.monotonic() + for_s

    def extend_rejections(self, ref: str, kind: str, for_s: float) -> None:
        """Let the present rejections of a version by workers of a device kind last `for_s` seconds.

        The seconds count from now. So all of these workers reject the version together for so long,
        however much earlier the first of them has rejected it.
        """
        now = time.monotonic()
        for (worker_id, rejected), until in self._rejections.items():
            heartbeat = self._heartbeats.get(worker_id)
            same_kind = heartbeat is not None and heartbeat.payload.get("device_kind", ANY_KIND) == kind
            if rejected == ref and until > now and same_kind:
                self._rejections[worker_id, ref] = now + for_s

    def fleet(self) -> Fleet:
        """Return the live workers that receive batches; the same object while nothing changes.

        Workers that are stopping are left out. If no other worker is left, returns the last fleet
        that had workers, because one of these workers may return.
        """
        now = time.monotonic()
        self._rejections = {key: until for key, until in self._rejections.items() if until > now}
        live = {name: payload for name, payload in self.live().items() if payload["state"] != "draining"}
        states = tuple(WorkerState.of(name, payload, self._catalogs) for name, payload in sorted(live.items()))
        self._seen = {key: seen for key, seen in self._seen.items() if seen > now - RETURN_S}
        for state in states:
            self._seen[state.device_kind, state.models, state.catalog] = now
        if not states:
            return self._fleet
        if states != self._fleet.states or self._rejections.keys() != self._fleet.rejections:
            self._fleet = Fleet(states, self._rejections.keys())
        return self._fleet

    def may_return(self, ref: str, kind: str = ANY_KIND) -> bool:
        """Return whether a worker that can run a version was alive in the last `RETURN_S` seconds.

        With `kind`, only workers of this device kind count.
        """
        oldest = time.monotonic() - RETURN_S
        return any(
            WorkerState("", "", one, models, catalog).may_load(ref)
            for (one, models, catalog), seen in self._seen.items()
            if seen > oldest and kind in (ANY_KIND, one) and (catalog is None or ref in catalog)
        )
