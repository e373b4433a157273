"""Chooses the queues of the workers that can run a request, from the workers' heartbeats.

Workers with the same device kind (device, processor, torch version, threads) and the same
`REVERIE_MODELS` form a group, which has queues that all of its workers read. A batch is sent to a
group's queue if each worker of the group can run it equally well; the first free worker then runs
it. Otherwise it is sent to the queue of one worker, preferably of one that has the model in memory.
This module does no I/O.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from core.broker.keys import QueueName
from core.catalog.model_names import may_load

IN_FLIGHT_PER_WORKER = 2  # batches in flight per worker and queue: one that runs and one that waits

ANY_KIND = ""
"""The device kind of workers whose release reports none, and of requests that may run on any kind."""


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker's heartbeat says about the versions that the worker can run.

    `group` is the name of the worker's group; it is empty for a worker of a release without groups,
    which has no queue of its own. `models` are the patterns of its `REVERIE_MODELS`, empty without
    restriction. `catalog` has the versions (`name@version`) that the worker knows, or None if the
    catalog was not read yet. `loaded` has the versions in the worker's memory, and `free_bytes` is
    what is left of its memory budget.
    """

    id: str
    group: str = ""
    device_kind: str = ANY_KIND
    models: tuple[str, ...] = ()
    catalog: frozenset[str] | None = None
    loaded: frozenset[str] = frozenset()
    free_bytes: int = 0

    @classmethod
    def of(cls, worker_id: str, heartbeat: Mapping[str, Any], catalogs: Mapping[str, frozenset[str]]) -> "WorkerState":
        """Return the state of the worker `worker_id` that its heartbeat reports.

        `catalogs` has the versions in each catalog that was read, keyed by the digest of the
        catalog.
        """
        return cls(
            worker_id,
            heartbeat.get("group", ""),
            heartbeat.get("device_kind", ANY_KIND),
            tuple(heartbeat.get("models", ())),
            catalogs.get(heartbeat.get("catalog", "")),
            frozenset(heartbeat["capacity"]),
            heartbeat.get("free_bytes", 0),
        )

    def may_load(self, ref: str) -> bool:
        """Return whether the worker's `REVERIE_MODELS` allows the version."""
        return may_load(self.models, ref)

    def lists(self, ref: str) -> bool:
        """Return whether the version is in the worker's catalog; True if the catalog is not known."""
        return self.catalog is None or ref in self.catalog


@dataclass(frozen=True, slots=True)
class Target:
    """The receiver of a batch: a worker group, or a single worker.

    `name` is the group's name or the worker's id, and `group` the name of the group or of the
    worker's group. `workers` is the number of workers that read the queues of the target, and
    `group_workers` the number of workers in the group.
    """

    name: str
    group: str
    workers: int
    group_workers: int


@dataclass(frozen=True, slots=True)
class Route:
    """Where batches of a version can be sent, on one device kind.

    `preferred` are the workers that have loaded the version or, if none has, all that can load it.
    If the preferred workers are busy, batches of the bulk queue are sent to `others`, which can
    load the version. Interactive batches are then sent only to `roomy`: the workers in `others`
    that need not unload another model. `workers` is the number of all workers that can run the
    version.
    """

    preferred: tuple[Target, ...]
    others: tuple[Target, ...]
    roomy: tuple[Target, ...]
    workers: int

    def alternatives(self, queue: QueueName) -> tuple[Target, ...]:
        """Return the targets for batches of a queue if the preferred workers are busy."""
        return self.others if queue == "bulk" else self.roomy


class Fleet:
    """The workers that receive batches, and the routes of versions to them. Immutable."""

    def __init__(
        self, workers: Iterable[WorkerState] = (), rejections: Collection[tuple[str, str]] = frozenset()
    ) -> None:
        """Keep the workers, and count those of each group (`WorkerState.group`).

        `rejections` has pairs (worker id, version): the worker gets no batches of the version.
        """
        self.states = tuple(workers)
        self.rejections = frozenset(rejections)
        self._sizes = Counter(worker.group for worker in self.states)
        self._ids = frozenset(worker.id for worker in self.states)
        self._routes: dict[tuple[str, str, int], Route | None] = {}
        self._kinds: dict[str, tuple[str, ...]] = {}

    def __len__(self) -> int:
        """Return the number of workers."""
        return len(self.states)

    def kinds(self, ref: str) -> tuple[str, ...]:
        """Return the device kinds that can run a version, the preferred ones first.

        Kinds with a worker that has loaded the version come first, then kinds with more workers.
        """
        if (known := self._kinds.get(ref)) is None:
            able = self._able(ref, ANY_KIND)
            loaded = {worker.device_kind for worker in able if ref in worker.loaded}
            numbers = Counter(worker.device_kind for worker in able)
            order = sorted(numbers, key=lambda kind: (kind not in loaded, -numbers[kind], kind))
            # a request on workers of an earlier release could not be kept to one kind
            known = self._kinds[ref] = tuple([kind for kind in order if kind != ANY_KIND] or order)
        return known

    def route(self, ref: str, kind: str, size_bytes: int = 0) -> Route | None:
        """Return the route of a version on a device kind; None if no worker can run it.

        `size_bytes` is the memory that the version needs.
        """
        key = (ref, kind, size_bytes)
        if key not in self._routes:
            self._routes[key] = self._find_route(ref, kind, size_bytes)
        return self._routes[key]

    def workers_by_kind(self, ref: str) -> Counter[str]:
        """Return the number of workers that can run a version, keyed by device kind."""
        return Counter(worker.device_kind for worker in self._able(ref, ANY_KIND))

    def can_run(self, ref: str, kind: str) -> bool:
        """Return whether a worker of a device kind can run a version."""
        kinds = self.kinds(ref)
        return bool(kinds) if kind == ANY_KIND else kind in kinds

    def has_target(self, name: str) -> bool:
        """Return whether a worker still reads the queues of a target, a worker id or a group."""
        return name in self._ids or name in self._sizes

    @property
    def groups(self) -> Mapping[str, int]:
        """The number of workers of each group, keyed by the group's name."""
        return self._sizes

    @property
    def targets(self) -> list[str]:
        """The names of all groups, and the ids of all workers with queues of their own."""
        return [*self._sizes, *(worker.id for worker in self.states if worker.group)]

    def _able(self, ref: str, kind: str) -> list[WorkerState]:
        """Return the workers of a device kind that can run a version.

        If no catalog has the version, it may have been published just now: then returns all workers
        whose `REVERIE_MODELS` allows it.
        """
        allowed = [
            worker
            for worker in self.states
            if kind in (ANY_KIND, worker.device_kind)
            and worker.may_load(ref)
            and (worker.id, ref) not in self.rejections
        ]
        return [worker for worker in allowed if worker.lists(ref)] or allowed

    def _find_route(self, ref: str, kind: str, size_bytes: int) -> Route | None:
        """Return the route of a version on a device kind, not cached; None if no worker can run it."""
        able = self._able(ref, kind)
        if not able:
            return None
        loaded = [worker for worker in able if ref in worker.loaded]
        others = [worker for worker in able if ref not in worker.loaded] if loaded else []
        roomy = [worker for worker in others if worker.free_bytes >= size_bytes]
        return Route(self._targets(loaded or able), self._targets(others), self._targets(roomy), len(able))

    def _targets(self, workers: list[WorkerState]) -> tuple[Target, ...]:
        """Return the targets to which batches for the given workers are sent.

        A worker group is one target if all of its workers are in `workers`; otherwise each of its
        workers in `workers` is a target.
        """
        groups: dict[str, list[WorkerState]] = defaultdict(list)
        for worker in workers:
            groups[worker.group].append(worker)
        targets: list[Target] = []
        for group, members in groups.items():
            size = self._sizes[group]
            if len(members) == size or not group:
                targets.append(Target(group, group, size, size))
            else:
                targets += [Target(worker.id, group, 1, size) for worker in members]
        return tuple(targets)


class InFlightCounts:
    """Counts the batches in flight, and finds targets to which another batch may be sent.

    A worker group may have `IN_FLIGHT_PER_WORKER` batches per worker and queue, no matter whether
    the batches were sent to the group or to one of its workers.
    """

    def __init__(self) -> None:
        self._queues: Counter[QueueName] = Counter()
        self._groups: Counter[tuple[QueueName, str]] = Counter()
        self._targets: Counter[tuple[QueueName, str]] = Counter()

    def add(self, queue: QueueName, target: Target, number: int = 1) -> None:
        """Add `number`, which may be negative, to the number of a target's batches in flight."""
        self._queues[queue] += number
        for counts, key in ((self._groups, (queue, target.group)), (self._targets, (queue, target.name))):
            counts[key] += number
            if not counts[key]:
                del counts[key]

    def total(self, queue: QueueName) -> int:
        """Return the number of batches of a queue that are in flight to all targets together."""
        return self._queues[queue]

    def free_target(self, queue: QueueName, route: Route) -> Target | None:
        """Return the target for the next batch of a route; None if all have enough batches in
        flight.

        Of the preferred targets that have room, returns the one with the fewest batches in flight
        per worker. If no preferred target has room, chooses in the same way among the route's
        alternatives for the queue.
        """
        for targets in (route.preferred, route.alternatives(queue)):
            free = [target for target in targets if self._has_room(queue, target)]
            if len(free) > 1:
                return min(free, key=lambda target: self._targets[queue, target.name] / target.workers)
            if free:
                return free[0]
        return None

    def _has_room(self, queue: QueueName, target: Target) -> bool:
        """Return whether another batch of the queue may be sent to a target, by its and its group's
        limit.
        """
        group_limit = IN_FLIGHT_PER_WORKER * target.group_workers
        own_limit = IN_FLIGHT_PER_WORKER * target.workers
        return self._groups[queue, target.group] < group_limit and self._targets[queue, target.name] < own_limit
