"""Load models, keep them within a memory budget, and choose the batch sizes of their operations."""

import importlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from core.catalog.model_names import matches, parse_patterns
from core.catalog.registry import ModelVersion
from core.settings import Settings
from models.kit import card as cards
from workers.inference.batch_planner import BatchPlanner
from workers.inference.loaded_model import LoadedModel
from workers.inference.plan_store import PlanStore

log = logging.getLogger(__name__)


@dataclass
class _Measurement:
    """The forward passes that are left to measure the batch sizes of an operation.

    `steps` runs one pass at each iteration. `requested`: a request has used the operation.
    """

    steps: Iterator[None]
    requested: bool = False


class NoRoomError(Exception):
    """Raised if the memory budget minus the pinned models is too small for a model."""


class ModelCache:
    """The models that a worker has in memory, within a budget of bytes.

    To free memory for another model, the least recently used models are unloaded, except the pinned
    ones: the active version and the candidate of each model that the setting `pinned_models` names.
    """

    def __init__(
        self,
        settings: Settings,
        advance: Callable[[], object] = lambda: None,
        is_current: Callable[[ModelVersion], bool] = lambda _: True,
    ) -> None:
        """Choose the device and make the folder of extra models importable; load nothing yet.

        `advance` is called after each step of an operation, that is, each call of a model's method.
        `is_current` returns whether a version is its model's active version or candidate.
        """
        self._advance = advance
        self._is_current = is_current
        self.device = device_of(settings.device)
        self._settings = settings
        self._pinned = parse_patterns(settings.pinned_models)
        self._held: OrderedDict[str, LoadedModel] = OrderedDict()
        self.crowded = False
        """Whether a model had to be unloaded to make room for another one."""
        self._store = PlanStore(settings.state / "plans", settings.time_slice_s)
        # by `name@version` and method: operations with a first plan; the last requested one is last
        self._measurements: OrderedDict[tuple[str, str], _Measurement] = OrderedDict()
        if settings.extra_models is not None:
            models.__path__.append(str(Path(settings.extra_models).resolve()))
            importlib.invalidate_caches()

    def get(self, entry: ModelVersion, method: str) -> LoadedModel:
        """Return the model of a version, with the batch sizes for the operation `method` chosen.

        If necessary, the model is loaded, other models are unloaded to free memory, and the batch
        sizes (the batch plan) are chosen. Raises NoRoomError if that would need to unload pinned
        models, and any exception that loading or the operation raises.
        """
        model = self._held.get(entry.ref)
        if model is None:
            model = self._load(entry)
            self._held[entry.ref] = model
        self._held.move_to_end(entry.ref)
        if method not in model.plans:
            self._plan(model, method)
        if (measurement := self._measurements.get((entry.ref, method))) is not None:
            measurement.requested = True
            self._measurements.move_to_end((entry.ref, method))
        return model

    def loading(self, entry: ModelVersion, *, candidate: bool = False) -> Iterator[None]:
        """Load the model of a version in steps, and yield after each of them.

        The first step reads the checkpoint, after unloading other models if memory is needed. Each
        further step runs one operation once, to choose its batch sizes. The model can be used after
        the first step or, if the version is a `candidate` (it is to become active), after the last
        one: then all operations have run without an error. The caller may do other work at each
        yield.
        """
        model = self._held.get(entry.ref) or self._load(entry)
        if not candidate:
            self._held.setdefault(entry.ref, model)
        yield
        for method in entry.operations:
            model = self._held.get(entry.ref, model)  # a request may have loaded it meanwhile
            if method not in model.plans:
                self._plan(model, method, run=True)
                yield
        self._held.setdefault(entry.ref, model)

    def measure_step(self, *, requested_only: bool = False) -> bool:
        """Run a forward pass that measures batch sizes; return whether any were left to measure.

        The measured batch plan of an operation is used and stored after the operation's last pass.
        Operations that were requested come first; with `requested_only`, the others are left for
        later.
        """
        requested = (key for key in reversed(self._measurements) if self._measurements[key].requested)
        key = next(requested, None) or (None if requested_only else next(iter(self._measurements), None))
        if key is None:
            return False
        try:
            next(self._measurements[key].steps)
        except StopIteration:
            del self._measurements[key]
        except Exception:  # the first plan stays
            log.exception("batch plan cannot be measured", extra={"model": key[0], "method": key[1]})
            del self._measurements[key]
        return True

    def holds(self, version: ModelVersion) -> bool:
        """Return whether a version is loaded and all its operations have batch sizes."""
        held = self._held.get(version.ref)
        return held is not None and held.plans.keys() >= version.operations.keys()

    def fits(self, size_bytes: int) -> bool:
        """Return whether a model of this size fits in the budget beside the loaded models."""
        return self._used_bytes() + size_bytes <= self._settings.memory_budget_bytes

    @property
    def free_bytes(self) -> int:
        """The memory budget minus the size of the loaded models, in bytes, at least 0."""
        return max(0, self._settings.memory_budget_bytes - self._used_bytes())

    def is_pinned(self, version: ModelVersion) -> bool:
        """Return whether a version must stay in memory once it is loaded.

        That is so if the setting `pinned_models` names its model and it is the model's active
        version or candidate. Versions that were replaced or deleted can be unloaded.
        """
        return matches(self._pinned, version.name) and self._is_current(version)

    def largest(self, ref: str, method: str) -> int:
        """Return the largest batch size of the method of a loaded model, in rows.

        `ref` is the model's `name@version`. Returns 1 if the batch sizes have not been chosen yet.
        """
        held = self._held.get(ref)
        return held.plans[method].largest if held and method in held.plans else 1

    def capacity(self) -> dict[str, dict[str, list[int]]]:
        """Return [largest batch size, rows of a time slice] of each operation of the loaded models.

        The second number is how many rows the worker processes in about one time slice, the time
        that it gives to one batch before it receives the next message. The result is keyed by
        `name@version`, then by the name of the method. Operations whose batch sizes have not been
        chosen yet are left out.
        """
        return {
            ref: {method: [plan.largest, plan.slice_rows] for method, plan in held.plans.items()}
            for ref, held in list(self._held.items())
        }

    def _load(self, entry: ModelVersion) -> LoadedModel:
        """Read a model from its checkpoint, and unload other models until it fits; return it."""
        started = time.perf_counter()
        model, _ = cards.load(entry.file(), self.device)
        loaded_model = LoadedModel(entry, model.eval(), self.device, self._settings.threads, self._advance)
        self._make_room(entry.ref, loaded_model.size_bytes)
        log.info("model loaded", extra={"model": entry.ref, "seconds": round(time.perf_counter() - started, 3)})
        return loaded_model

    def _used_bytes(self) -> int:
        return sum(held.size_bytes for held in list(self._held.values()))

    def _make_room(self, ref: str, size_bytes: int) -> None:
        """Unload the least recently used models until `size_bytes` fit in the memory budget.

        Pinned versions stay. Raises NoRoomError if they leave too little memory for the model `ref`.
        """
        unpinned = [one for one, held in self._held.items() if not self.is_pinned(held.entry)]
        pinned_bytes = self._used_bytes() - sum(self._held[one].size_bytes for one in unpinned)
        if pinned_bytes and pinned_bytes + size_bytes > self._settings.memory_budget_bytes:
            raise NoRoomError(f"{ref} has no room in the memory budget of this worker beside its pinned models")
        for one in unpinned:
            if self.fits(size_bytes):
                return
            self.crowded = True
            del self._held[one]
            for key in [key for key in self._measurements if key[0] == one]:
                del self._measurements[key]
            log.info("model unloaded", extra={"model": one})

    def _plan(self, model: LoadedModel, method: str, *, run: bool = False) -> None:
        """Set the batch sizes (batch plan) of an operation: the stored plan, or else a first plan.

        A first plan is replaced when the batch sizes have been measured. With `run`, the operation
        runs once even if its plan is stored.
        """
        planner = BatchPlanner(model, method, self._settings.time_slice_s)
        plan = self._store.load(model, method)
        if plan is None:
            model.set_plan(method, planner.first_plan())
            self._measurements[model.entry.ref, method] = _Measurement(self._measure(model, method, planner))
            _log_plan("first batch plan", model, method, planner)
            return
        if run:
            planner.run(plan.batch_sizes[0])
        model.set_plan(method, plan)

    def _measure(self, model: LoadedModel, method: str, planner: BatchPlanner) -> Generator[None, None, None]:
        """Measure an operation's batch sizes, then use and store them; yield after each pass."""
        if self._held.get(model.entry.ref) is not model:
            return  # a candidate that was refused
        plan = self._store.load(model, method)  # another worker may have measured it
        if plan is None:
            plan = yield from planner.measure()
            self._store.save(model, method, plan)
        model.set_plan(method, plan)
        _log_plan("batch plan measured", model, method, planner)


def _log_plan(event: str, model: LoadedModel, method: str, planner: BatchPlanner) -> None:
    sizes = list(model.plans[method].batch_sizes)
    log.info(event, extra={"model": model.entry.ref, "method": method, "sizes": sizes, "passes": planner.passes})


def device_of(name: str) -> torch.device:
    """Return the torch device that the setting's value `name` means, such as "cpu" or "cuda:0".

    "auto" means the first GPU, or the CPU if there is none.
    """
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
