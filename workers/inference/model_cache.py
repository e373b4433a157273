"""Models kept in memory, warmed up: which batch sizes they run in, and for how long."""

import hashlib
import importlib
import json
import logging
import os
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import models
from core.catalog.operations import BY_METHOD
from core.catalog.registry import ModelVersion
from core.settings import Settings
from models.kit import card as cards
from models.kit.continuation import Continuation
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json
from workers.inference.packed_linear import pack

log = logging.getLogger(__name__)

LARGEST_BUCKET = 1024
_PATIENCE = 8
"""Slices that a batch may take where it pays."""

_GAIN, _ENOUGH = 1.2, 8
"""Stop growing if this many rows together are not this much faster than alone."""

_NEARLY = 1.15
_TRIES = 2
"""Runs of which the fastest counts: one that something else slowed down must not decide how a model is run."""

_TRIED = 32
"""Rows that a small bucket is tried on: one may have the right bits by chance."""

_FINE = 16
"""Buckets from here on come in quarters of a power of two."""

_MANY_WEIGHTS_BYTES = 64 << 20
"""Models with more weights than this are worth several threads, and packing; small ones lose by both."""

_RULES = "buckets tried on several rows, wide layers packed"
"""What besides the settings decides on a plan: another name makes the remembered ones void."""

_KNOWN_OPTIONS = 256


# See docs/decisions.md#a-batch-plan-belongs-to-the-network-and-not-to-its-weights
@dataclass(frozen=True)
class Plan:
    """How an operation of a model is run.

    `buckets` are the sizes of a forward pass, rising: a row's bits are the same in each of them. `slice_rows` is how
    many rows take about one slice of time.
    """

    buckets: tuple[int, ...]
    slice_rows: int

    @property
    def largest(self) -> int:
        """Rows of the largest pass."""
        return self.buckets[-1]

    def bucket(self, count: int) -> int:
        """The smallest bucket that holds `count` rows; where none does, `count` itself."""
        return next((size for size in self.buckets if size >= count), count)


class LoadedModel:
    """One version of a model, loaded and ready to run."""

    def __init__(
        self,
        entry: ModelVersion,
        model: Any,
        device: torch.device,
        threads: int = 0,
        advance: Callable[[], object] = lambda: None,
    ) -> None:
        """Hold a loaded model; `warm` it before it serves. `threads` 0: one for a small model, all for a large one.

        `advance` is called after each step of an operation.
        """
        self.entry = entry
        self._advance = advance
        self.model = model
        self.device = device
        self.plans: dict[str, Plan] = {}
        self.size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        # by a rule and not by a clock: a row's bits may depend on it, and must survive a restart
        large = self.size_bytes > _MANY_WEIGHTS_BYTES
        self.threads = threads or (len(os.sched_getaffinity(0)) if large else 1)
        if large and device.type == "cpu":
            pack(model)
        self._known: dict[tuple[str, str], Any] = {}
        self._options = {method: options_of(model, method) for method in entry.operations}

    def options(self, method: str, given: dict[str, Any]) -> Any:
        """The operation's options as its model takes them. Raises ValueError."""
        key = (method, repr(sorted(given.items())))
        if key not in self._known:
            if len(self._known) >= _KNOWN_OPTIONS:
                self._known.clear()
            self._known[key] = from_json(self._options[method], given)
        return self._known[key]

    def call(
        self, method: str, options: Any, rows: RowStreams, items: list[Tensor], state: dict[str, Any] | None
    ) -> Any:
        """Run one step of an operation: a dict of fields, or a Continuation to be called again with its state."""
        with torch.inference_mode():
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            arguments = [*items, rows.to(self.device), options]
            more = {} if state is None else {"state": state}
            result = getattr(self.model, method)(*arguments, **more)
        self._advance()
        return result

    def _defaults(self, method: str) -> dict[str, Any]:
        return dict(self.entry.operations[method].defaults)

    def warm(self, slice_s: float, known: Path) -> Iterator[None]:
        """Time every operation in growing batches and find the buckets that give a row the same bits.

        What was found is kept in the folder `known`, under everything it depends on: a worker that was restarted,
        or meets another version of the same networks, need only run each operation once. Between the operations the
        caller may do something else.
        """
        depends = [
            _RULES,
            self.entry.card.family,
            self.entry.card.config,
            slice_s,
            self.threads,
            str(self.device),
            torch.__version__,
        ]
        depends += [platform.node(), platform.processor(), sorted(self.entry.operations)]
        file = known / f"{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]}.json"
        if file.is_file():
            found = json.loads(file.read_text())
            self.plans = {method: Plan(tuple(buckets), slice_rows) for method, (buckets, slice_rows) in found.items()}
            for method, plan in self.plans.items():
                self._probe(method, self.options(method, self._defaults(method)), plan.buckets[0])
                yield
            return
        for method in self.entry.operations:
            self.plans[method] = self._plan(method, self.options(method, self._defaults(method)), slice_s)
            yield
        part = file.with_suffix(f".{os.getpid()}")
        try:
            known.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({method: list(vars(plan).values()) for method, plan in self.plans.items()}))
            part.replace(file)
        except OSError as error:  # a full disk: the next start finds them out again
            log.warning("plans not kept", extra={"model": self.entry.ref, "reason": str(error)})
            part.unlink(missing_ok=True)

    def _probe(
        self, method: str, options: Any, size: int, tries: int = 0, *, first: int = 0, reverse: bool = False
    ) -> tuple[list[Tensor], float]:
        """Outputs, in row order, of made-up rows from `first` on, and the seconds of the fastest of `tries`.

        Of work in slices the second slice is tried: the first only begins.
        """
        operation = BY_METHOD[method]
        # a frame or a grid cell must be one of the request's
        own = operation.rows(LARGEST_BUCKET, LARGEST_BUCKET, self._defaults(method))
        rows = RowStreams.range(20_140_501, first, size)
        rows = RowStreams(rows.seed, rows.row % own)
        shape = (size, *self.entry.image)
        noise = RowStreams.range(1, first, size).uniform(shape[1] * shape[2] * shape[3]).view(shape)
        if reverse:
            rows, noise = RowStreams(rows.seed, rows.row.flip(0)), noise.flip(0)
        items = [noise.to(self.device) for _ in operation.inputs]
        result = self.call(method, options, rows, items, None)
        state = result.state if isinstance(result, Continuation) else None
        seconds = float("inf")
        for _ in range(tries or int(state is not None)):
            begun = time.perf_counter()
            result = self.call(method, options, rows, items, state)
            self._wait()
            seconds = min(seconds, time.perf_counter() - begun)
        fields = result.state if isinstance(result, Continuation) else result
        tensors = [value for value in fields.values() if isinstance(value, Tensor) and value.ndim]
        return [tensor.flip(0) if reverse else tensor for tensor in tensors], seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _plan(self, method: str, options: Any, slice_s: float) -> Plan:
        sizes: list[int] = []
        outputs: list[list[Tensor]] = []
        seconds: list[float] = []
        for size in (2**power for power in range(LARGEST_BUCKET.bit_length())):
            output, took = self._probe(method, options, size, _TRIES)
            if size > 1 and took > _PATIENCE * slice_s:
                break
            sizes.append(size)
            outputs.append(output)
            seconds.append(took)
            if took > slice_s and size / took < _GAIN * sizes[0] / seconds[0] and size >= _ENOUGH:
                break  # a larger batch does not pay
        within = [index for index, took in enumerate(seconds) if took <= slice_s]
        rates = [size / took for size, took in zip(sizes, seconds, strict=True)]
        # beyond a slice only where it pays: the first size that is nearly as fast as the fastest
        paying = next(index for index, rate in enumerate(rates) if rate * _NEARLY >= max(rates))
        top = max(paying, *within) if within else paying
        turned, _ = self._probe(method, options, sizes[top], reverse=True)
        smallest = top
        if _same(outputs[top], turned, sizes[top]):
            while smallest and self._alike(method, options, sizes[smallest - 1], outputs[top]):
                smallest -= 1
        buckets = sizes[smallest : top + 1]
        between = [size for size in _between(buckets) if self._alike(method, options, size, outputs[top])]
        return Plan(tuple(sorted([*buckets, *between])), sizes[max([smallest, *within])])

    def _alike(self, method: str, options: Any, size: int, whole: list[Tensor]) -> bool:
        """Whether a pass of this size gives rows the bits of a larger one, tried on several rows."""
        for first in range(0, min(max(_TRIED, size), len(whole[0]) - size + 1), size):
            output, _ = self._probe(method, options, size, first=first)
            if not _same([tensor[first:] for tensor in whole], output, size):
                return False
        return True


def _between(buckets: list[int]) -> list[int]:
    """Quarters of the way from each power of two to the next: padding costs a fifth at most and not half."""
    steps = [(low, low // 4) for low in buckets[:-1] if low >= _FINE]
    return [low + times * step for low, step in steps for times in (1, 2, 3)]


def _same(whole: list[Tensor], other: list[Tensor], size: int) -> bool:
    return all(torch.equal(a[:size], b[:size]) for a, b in zip(whole, other, strict=True))


class ModelCache:
    """The models of one worker, least recently used first, within a budget of memory."""

    def __init__(self, settings: Settings, advance: Callable[[], object] = lambda: None) -> None:
        """Choose the device; nothing is loaded yet. `advance` is called after each step of an operation."""
        self._advance = advance
        self.device = device_of(settings.device)
        self._settings = settings
        self._held: OrderedDict[str, LoadedModel] = OrderedDict()
        if settings.extra_models is not None:
            models.__path__.append(str(Path(settings.extra_models).resolve()))
            importlib.invalidate_caches()

    def get(self, entry: ModelVersion) -> LoadedModel:
        """The model, loaded and warmed where it was not; others make room. Raises what loading raises."""
        held = self._held.get(entry.ref)
        if held is not None:
            self._held.move_to_end(entry.ref)
            return held
        for _ in self.loading(entry):
            pass
        return self._held[entry.ref]

    def loading(self, entry: ModelVersion) -> Iterator[None]:
        """Load and warm a model in steps, between which the caller may serve others; held when they are done."""
        begun = time.perf_counter()
        model, _ = cards.load(entry.path, self.device)
        loaded_model = LoadedModel(entry, model.eval(), self.device, self._settings.threads, self._advance)
        self._make_room(loaded_model.size_bytes)
        yield
        yield from loaded_model.warm(self._settings.time_slice_s, self._settings.state / "plans")
        self._held[entry.ref] = loaded_model
        log.info("model loaded", extra={"model": entry.ref, "seconds": round(time.perf_counter() - begun, 3)})

    def holds(self, ref: str) -> bool:
        """Whether a model is loaded and warm."""
        return ref in self._held

    def _make_room(self, size_bytes: int) -> None:
        budget = self._settings.memory_budget_bytes
        while self._held and sum(held.size_bytes for held in self._held.values()) + size_bytes > budget:
            ref, _ = self._held.popitem(last=False)
            log.info("model unloaded", extra={"model": ref})

    def load_all(self, entries: list[ModelVersion]) -> Iterator[None]:
        """Load what fits the memory budget, smallest file first; a model that cannot be loaded is logged and skipped.

        A generator: between its steps the caller may do something else, or stop.
        """
        used = 0
        for entry in sorted(entries, key=lambda entry: entry.path.stat().st_size):
            used += entry.path.stat().st_size
            if used > self._settings.memory_budget_bytes:
                break
            try:
                for _ in self.loading(entry):
                    yield
            except Exception:
                log.exception("model cannot be loaded", extra={"model": entry.ref})

    def largest(self, ref: str, method: str) -> int:
        """Rows of the largest pass; 1 while the model is not held."""
        held = self._held.get(ref)
        return held.plans[method].largest if held and method in held.plans else 1

    def capacity(self) -> dict[str, dict[str, list[int]]]:
        """For each model held and each operation: rows of the largest pass, and rows of one slice."""
        return {
            ref: {method: [plan.largest, plan.slice_rows] for method, plan in held.plans.items()}
            for ref, held in list(self._held.items())
        }


def device_of(name: str) -> torch.device:
    """The device a setting means; `auto` is the first GPU, or the CPU where there is none."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
