"""Load models, keep them in memory, and measure the batch sizes in which each operation runs."""

import hashlib
import importlib
import json
import logging
import math
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
from core.files import write_durably
from core.settings import Settings
from models.kit import card as cards
from models.kit.operations import Continuation, options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json
from workers.inference.packed_linear import pack

log = logging.getLogger(__name__)

MAX_BATCH_SIZE = 1024
_MAX_TIME_SLICES = 8  # time slices that a forward pass may take, if larger batches pay

# Try no larger batches if this many rows together are not this much faster per row than one.
_MIN_SPEEDUP, _MIN_TRIED_ROWS = 1.2, 8

_NEARLY_FASTEST = 1.15
# Runs per batch size, of which the fastest counts: another process may have slowed one down.
_TIMED_RUNS = 2

# Rows on which a small batch size is compared: a single row may have the same bits by chance.
_COMPARED_ROWS = 32

_FINE_FROM = 16  # from this batch size on there are three more sizes between two powers of two

# Models with more weights than this run on several threads and with packed layers; small ones lose
# by both.
_MANY_WEIGHTS_BYTES = 64 << 20

# Codes of probes have values within ± this: pixels of larger ones are all black or white, whatever
# the batch size.
_PROBED_CODES = 2.0

# Identifies how plans are made, in the name of their files: a change of the rules changes this
# text.
_RULES = "buckets tried on several rows, wide layers packed"

_MAX_PARSED_OPTIONS = 256


# See docs/decisions.md#a-batch-plan-belongs-to-the-network-and-not-to-its-weights
@dataclass(frozen=True)
class BatchPlan:
    """The batch sizes that a worker uses for one operation of a model.

    `batch_sizes`, in ascending order, are the numbers of rows that a forward pass may have; the
    output of a row is bit-identical in all of them. `slice_rows` is the number of rows that a
    worker runs in about one time slice.
    """

    batch_sizes: tuple[int, ...]
    slice_rows: int

    @property
    def largest(self) -> int:
        """The largest of the batch sizes."""
        return self.batch_sizes[-1]

    def padded_size(self, count: int) -> int:
        """Return the smallest batch size with room for `count` rows; `count` if none has room."""
        return next((size for size in self.batch_sizes if size >= count), count)


class LoadedModel:
    """One version of a model in memory, with the batch plan of each of its operations."""

    def __init__(
        self, entry: ModelVersion, model: Any, device: torch.device, threads: int, advance: Callable[[], object]
    ) -> None:
        """Wrap `model`, which was loaded from the checkpoint of the version `entry`.

        The batch plans are still missing: `warm` makes them. `advance` is called after each step of
        an operation. `threads` is the number of CPU threads that a forward pass uses; 0 means one
        for a small model and all for a large one. On a CPU, the weights of a large model are
        converted to oneDNN's blocked layout.
        """
        self.entry = entry
        self._advance = advance
        self.model = model
        self.device = device
        self.plans: dict[str, BatchPlan] = {}
        self.size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        # by a rule and not by a measurement: bits may depend on it, and must be the same after a
        # restart
        large = self.size_bytes > _MANY_WEIGHTS_BYTES
        self.threads = threads or (len(os.sched_getaffinity(0)) if large else 1)
        if large and device.type == "cpu":
            pack(model)
        self._parsed_options: dict[tuple[str, str], Any] = {}
        self._options = {method: options_of(model, method) for method in entry.operations}

    def options(self, method: str, values: dict[str, Any]) -> Any:
        """Return the options in `values` as an instance of the options class of the model's method.

        Results are cached. Raises ValueError if a value is not valid.
        """
        key = (method, repr(sorted(values.items())))
        if key not in self._parsed_options:
            if len(self._parsed_options) >= _MAX_PARSED_OPTIONS:
                self._parsed_options.clear()
            self._parsed_options[key] = from_json(self._options[method], values)
        return self._parsed_options[key]

    def call(
        self, method: str, options: Any, rows: RowStreams, items: list[Tensor], state: dict[str, Any] | None
    ) -> Any:
        """Run one step of an operation; return the result of the last step, or else a Continuation.

        The result is a dictionary of the fields. `rows` has the random streams of the rows, and
        `items` the input tensors. `state` is None in the first step, and later the state of the
        Continuation that the previous step returned.
        """
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

    def warm(self, slice_s: float, folder: Path) -> Iterator[None]:
        """Find a batch plan for each operation and store it in `plans`; yield after each operation.

        For each operation, batches of growing size are timed, and the outputs of the same rows are
        compared between the sizes: they must be bit-identical. `slice_s` is the length of a time
        slice in seconds. The plans are also stored in `folder`, under a hash of everything they
        depend on. If they are already there, each operation only runs once. The caller may do other
        work at each yield.
        """
        card, machine = self.entry.card, [platform.node(), platform.processor(), str(self.device), torch.__version__]
        depends = [_RULES, card.family, card.config, slice_s, self.threads, machine, sorted(self.entry.operations)]
        file = folder / f"{hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:32]}.json"
        if file.is_file():
            stored = json.loads(file.read_text())
            self.plans = {method: BatchPlan(tuple(sizes), slice_rows) for method, (sizes, slice_rows) in stored.items()}
            for method, plan in self.plans.items():
                self._probe(method, self.options(method, self._defaults(method)), plan.batch_sizes[0])
                yield
            return
        for method in self.entry.operations:
            self.plans[method] = self._plan(method, self.options(method, self._defaults(method)), slice_s)
            yield
        try:
            folder.mkdir(parents=True, exist_ok=True)
            plans = {method: list(vars(plan).values()) for method, plan in self.plans.items()}
            write_durably(file, json.dumps(plans))
        except OSError as error:  # a full disk: the next start measures again
            log.warning("batch plans not stored", extra={"model": self.entry.ref, "reason": str(error)})

    def _probe(
        self, method: str, options: Any, size: int, runs: int = 0, *, first: int = 0, reverse: bool = False
    ) -> tuple[list[Tensor], float]:
        """Run an operation on `size` generated rows, from row `first` on; return outputs and time.

        The output tensors have the rows in ascending order, even if `reverse` puts them into the
        batch in descending order. The time is that of the fastest of `runs` timed runs in seconds,
        or infinity if there is none. For an operation with several steps the second step is timed,
        because the first also initialises the state.
        """
        operation = BY_METHOD[method]
        # a frame or a grid cell must be one of the request's
        own = operation.rows(MAX_BATCH_SIZE, MAX_BATCH_SIZE, self._defaults(method))
        rows = RowStreams.range(20_140_501, first, size)
        rows = RowStreams(rows.seed, rows.row % own)
        codes = self.entry.operations[method].codes
        shape = self.entry.image if codes is None else (codes.size(self._defaults(method)),)
        noise = RowStreams.range(1, first, size).uniform(math.prod(shape)).view(size, *shape)
        if codes is not None:
            low, high = max(codes.minimum, -_PROBED_CODES), min(codes.maximum, _PROBED_CODES)
            noise = low + (high - low) * noise
        if reverse:
            rows, noise = RowStreams(rows.seed, rows.row.flip(0)), noise.flip(0)
        items = [noise.to(self.device) for _ in operation.inputs]
        result = self.call(method, options, rows, items, None)
        state = result.state if isinstance(result, Continuation) else None
        seconds = float("inf")
        for _ in range(runs or int(state is not None)):
            started = time.perf_counter()
            result = self.call(method, options, rows, items, state)
            self._wait()
            seconds = min(seconds, time.perf_counter() - started)
        fields = result.state if isinstance(result, Continuation) else result
        tensors = [value for value in fields.values() if isinstance(value, Tensor) and value.ndim]
        return [tensor.flip(0) if reverse else tensor for tensor in tensors], seconds

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _plan(self, method: str, options: Any, slice_s: float) -> BatchPlan:
        sizes: list[int] = []
        outputs: list[list[Tensor]] = []
        seconds: list[float] = []
        for size in (2**power for power in range(MAX_BATCH_SIZE.bit_length())):
            output, took = self._probe(method, options, size, _TIMED_RUNS)
            if size > 1 and took > _MAX_TIME_SLICES * slice_s:
                break
            sizes.append(size)
            outputs.append(output)
            seconds.append(took)
            if took > slice_s and size / took < _MIN_SPEEDUP * sizes[0] / seconds[0] and size >= _MIN_TRIED_ROWS:
                break  # a larger batch does not pay
        within = [index for index, took in enumerate(seconds) if took <= slice_s]
        rates = [size / took for size, took in zip(sizes, seconds, strict=True)]
        # longer than a time slice only if it pays: the first size that is nearly as fast per row as
        # the fastest
        cheapest = next(index for index, rate in enumerate(rates) if rate * _NEARLY_FASTEST >= max(rates))
        top = max(cheapest, *within) if within else cheapest
        reversed_output, _ = self._probe(method, options, sizes[top], reverse=True)
        smallest = top
        if _same(outputs[top], reversed_output, sizes[top]):
            while smallest and self._has_same_bits(method, options, sizes[smallest - 1], outputs[top]):
                smallest -= 1
        batch_sizes = sizes[smallest : top + 1]
        between = [size for size in _between(batch_sizes) if self._has_same_bits(method, options, size, outputs[top])]
        return BatchPlan(tuple(sorted([*batch_sizes, *between])), sizes[max([smallest, *within])])

    def _has_same_bits(self, method: str, options: Any, size: int, whole: list[Tensor]) -> bool:
        """Return whether batches of `size` rows have outputs bit-identical to a larger batch's.

        `whole` has the output tensors of the larger batch. At least `_COMPARED_ROWS` of its rows
        are compared, if it has so many.
        """
        for first in range(0, min(max(_COMPARED_ROWS, size), len(whole[0]) - size + 1), size):
            output, _ = self._probe(method, options, size, first=first)
            if not _same([tensor[first:] for tensor in whole], output, size):
                return False
        return True


def _between(batch_sizes: list[int]) -> list[int]:
    """Return three evenly spaced sizes between each power of two in `batch_sizes` and the next one.

    There are none after sizes below `_FINE_FROM`. With them at most a fifth of a large batch is
    padding, instead of half.
    """
    steps = [(low, low // 4) for low in batch_sizes[:-1] if low >= _FINE_FROM]
    return [low + times * step for low, step in steps for times in (1, 2, 3)]


def _same(whole: list[Tensor], other: list[Tensor], size: int) -> bool:
    return all(torch.equal(a[:size], b[:size]) for a, b in zip(whole, other, strict=True))


class ModelCache:
    """The models that a worker has in memory, within a budget of bytes.

    If there is no room for another model, the least recently used ones are unloaded.
    """

    def __init__(self, settings: Settings, advance: Callable[[], object] = lambda: None) -> None:
        """Choose the device and make the folder of extra models importable; load nothing yet.

        `advance` is called after each step of an operation.
        """
        self._advance = advance
        self.device = device_of(settings.device)
        self._settings = settings
        self._held: OrderedDict[str, LoadedModel] = OrderedDict()
        if settings.extra_models is not None:
            models.__path__.append(str(Path(settings.extra_models).resolve()))
            importlib.invalidate_caches()

    def get(self, entry: ModelVersion) -> LoadedModel:
        """Return the model of a version from memory, or load it first.

        Other models are unloaded if there is no room for it. Raises any exception that loading
        raises.
        """
        held = self._held.get(entry.ref)
        if held is not None:
            self._held.move_to_end(entry.ref)
            return held
        for _ in self.loading(entry):
            pass
        return self._held[entry.ref]

    def loading(self, entry: ModelVersion) -> Iterator[None]:
        """Load the model of a version in steps, and yield after each of them.

        The steps are reading the checkpoint, for which other models are unloaded if there is no
        room, and finding the batch plan of each operation. The model can be used when the iterator
        is exhausted. The caller may do other work at each yield.
        """
        started = time.perf_counter()
        model, _ = cards.load(entry.path, self.device)
        loaded_model = LoadedModel(entry, model.eval(), self.device, self._settings.threads, self._advance)
        self._make_room(loaded_model.size_bytes)
        yield
        yield from loaded_model.warm(self._settings.time_slice_s, self._settings.state / "plans")
        self._held[entry.ref] = loaded_model
        log.info("model loaded", extra={"model": entry.ref, "seconds": round(time.perf_counter() - started, 3)})

    def holds(self, ref: str) -> bool:
        """Return whether a model is ready to run; `ref` is its `name@version`."""
        return ref in self._held

    def _make_room(self, size_bytes: int) -> None:
        budget = self._settings.memory_budget_bytes
        while self._held and sum(held.size_bytes for held in self._held.values()) + size_bytes > budget:
            ref, _ = self._held.popitem(last=False)
            log.info("model unloaded", extra={"model": ref})

    def load_all(self, entries: list[ModelVersion]) -> Iterator[None]:
        """Load the models of these versions, smallest file first, and yield after each step.

        Loading ends before the file sizes add up to more than the memory budget. A model that
        cannot be loaded is logged and skipped. The caller may do other work at each yield, or stop.
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
        """Return the largest batch size of a model's method; 1 if the model is not loaded.

        `ref` is the model's `name@version`.
        """
        held = self._held.get(ref)
        return held.plans[method].largest if held and method in held.plans else 1

    def capacity(self) -> dict[str, dict[str, list[int]]]:
        """Return [largest batch size, rows of a time slice] of each operation of the loaded models.

        The outer keys are `name@version`, the inner ones the names of methods.
        """
        return {
            ref: {method: [plan.largest, plan.slice_rows] for method, plan in held.plans.items()}
            for ref, held in list(self._held.items())
        }


def device_of(name: str) -> torch.device:
    """Return the torch device of a name; "auto" is the first GPU, or the CPU if there is none."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
