"""Find the batch sizes in which a worker runs an operation of a model.

On a CPU the bits of a matrix product depend on the shape of the batch. All sizes of a plan give a
row the same bits as the *reference size*. This size follows from a count of computed values and
from comparisons of bits, never from a measured time: so the bits of a row do not depend on how busy
the machine is, and are the same before and after the other sizes are known.
"""

import math
import time
from collections.abc import Generator, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from core.catalog.operations import BY_METHOD
from models.kit.operations import Continuation
from models.kit.row_streams import RowStreams
from workers.inference.loaded_model import BatchPlan, LoadedModel

MAX_BATCH_SIZE = 1024

# By type of device: the largest reference size, and how many values a pass of it may compute (60 ms
# on a CPU). Smaller ones than `_MIN_REFERENCE_ROWS` have bits of their own, which no other size
# has; so a slow operation gets this size, or 1 if that is more than `_MUCH` times the limit.
_REFERENCE = {"cpu": (64, 32_000_000), "cuda": (1024, 4_000_000_000)}
_MIN_REFERENCE_ROWS, _MUCH = 16, 16

# Time slices that a forward pass may take if larger batches pay. A size is not tried if it would
# take longer although it took only so many times as long as half of it.
_MAX_TIME_SLICES, _LEAST_GROWTH = 8, 1.5

# Try no larger batches if this many rows together are not this much faster per row than few.
_MIN_SPEEDUP, _MIN_TRIED_ROWS = 1.2, 8

_NEARLY_FASTEST = 1.15

# Try no larger batches after so many sizes whose rows are slower than those of smaller ones.
_SLOWER_SIZES = 2

# Rows on which a small batch size is compared: a single row may have the same bits by chance.
_COMPARED_ROWS = 32

_FINE_FROM = 16  # from this batch size on there are three more sizes between two powers of two

# Codes of probes have values within ± this: pixels of larger ones are all black or white, whatever
# the batch size.
_PROBED_CODES = 2.0

# Identifies how plans are made, in the name of their files: a change of the rules changes this
# text.
RULES = "sizes with the bits of a reference size"

Outputs = list[Tensor]


class _ValueCounter(TorchFunctionMode):
    """A context manager that counts the values in the tensors that functions of torch return.

    torch's counter of floating-point operations would import its compiler, which takes seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.values += result.numel()
        return result


# See docs/decisions.md#the-bits-of-a-row-are-those-of-a-reference-batch-size
class BatchPlanner:
    """Finds the batch sizes (the batch plan) of one operation of a model.

    `first_plan` finds one batch size at once; `measure` compares and times others in steps.
    """

    def __init__(self, model: LoadedModel, method: str, time_slice_s: float) -> None:
        """Prepare to find the batch sizes for the operation `method` of `model`; run nothing yet.

        `time_slice_s` is the time in seconds that a worker gives to one batch before it receives
        the next message.
        """
        self._model, self._method, self._time_slice_s = model, method, time_slice_s
        self._defaults = dict(model.entry.operations[method].defaults)
        self._options = model.options(method, self._defaults)
        # other processes do not disturb the processor time of a thread, but it has no use if others
        # compute
        alone = model.device.type == "cpu" and model.threads == 1
        self._clock = time.thread_time if alone else time.perf_counter
        # a comparison of bits holds for one size of the images: those of any size run alone
        self._any_size = model.entry.card.operations[method].any_size
        self._reference: int | None = None
        self._outputs: Outputs = []  # of a reference size above 1
        # by batch size: the shortest time of a step, and of a whole pass
        self._seconds: dict[int, float] = {}
        self._pass_seconds: dict[int, float] = {}
        self.passes = 0
        """Number of forward passes so far."""

    def first_plan(self) -> BatchPlan:
        """Return the plan with the reference size as its only batch size.

        The outputs of all other batch sizes must be bit-identical to those of the reference size.
        The first call may run the model: once with one row to estimate a size, then twice with each
        size tried, with the rows in order and reversed. The size is halved until the output of a
        row does not depend on its place in the batch.
        """
        if self._reference is None:
            size = 1 if self._any_size else self._affordable_size()
            while size > 1 and not self._ignores_order(size):
                size //= 2
                self._outputs = []
            self._reference = size
        return BatchPlan((self._reference,), self._reference)

    def measure(self) -> Generator[None, None, BatchPlan]:
        """Find and time the batch sizes whose outputs are bit-identical to the reference size's.

        Yields after each forward pass, so that the caller can do other work; the generator's return
        value is the measured plan. Sizes below and above the reference size are tried.
        """
        if self._any_size:
            return self.first_plan()
        reference = self.first_plan().largest
        outputs = self._outputs or self.run(reference)
        yield
        if 1 < reference < _COMPARED_ROWS:
            more = [self.run(reference, first=first) for first in range(reference, _COMPARED_ROWS, reference)]
            outputs = [torch.cat(tensors) for tensors in zip(outputs, *more, strict=True)]
            yield
        accepted = {reference: outputs}
        size = reference
        while size > 1:
            size //= 2
            same = yield from self._compare(size, outputs, max(_COMPARED_ROWS, 2 * size))
            if not same:
                break
            accepted[size] = [tensor[:size] for tensor in outputs]
        yield from self._grow(reference, accepted)
        sizes = sorted(accepted)
        rates = [size / self._seconds[size] for size in sizes]
        within = [index for index, size in enumerate(sizes) if self._seconds[size] <= self._time_slice_s]
        nearly_fastest = [index for index, rate in enumerate(rates) if rate * _NEARLY_FASTEST >= max(rates)]
        # longer than a time slice only if it pays: the first size that is nearly as fast per row as
        # the fastest
        top = max({*nearly_fastest} & {*within}, default=nearly_fastest[0])
        between = []
        for size in _between(sizes[: top + 1]):
            same = yield from self._compare(size, accepted[sizes[top]], size)
            if same:
                between.append(size)
        return BatchPlan(
            tuple(sorted([*sizes[: top + 1], *between])), sizes[max([0, *(index for index in within if index <= top)])]
        )

    def _affordable_size(self) -> int:
        """Return the largest reference batch size with which a pass computes few enough values."""
        with _ValueCounter() as counter:
            self.run(1)
        self._seconds.clear()  # counting takes time
        size, limit = _REFERENCE.get(self._model.device.type, _REFERENCE["cpu"])
        while size > _MIN_REFERENCE_ROWS and size * counter.values > limit:
            size //= 2
        return 1 if size * counter.values > _MUCH * limit else size

    def _ignores_order(self, size: int) -> bool:
        """Return whether each of `size` rows has a bit-identical output in a batch in reverse order."""
        self._outputs = self.run(size)
        return _same(self._outputs, self.run(size, reverse=True), size)

    def _compare(self, size: int, outputs: Outputs, rows: int) -> Generator[None, None, bool]:
        """Run batches of `size` rows; return whether the results have the same bits as `outputs`.

        `outputs` are the results of the same rows in batches of another size. The first `rows` rows
        are compared, or all if `outputs` has fewer. Yields after each pass.
        """
        for first in range(0, min(rows, len(outputs[0])) - size + 1, size):
            output = self.run(size, first=first)
            yield
            if not _same([tensor[first:] for tensor in outputs], output, size):
                return False
        return True

    def _grow(self, size: int, accepted: dict[int, Outputs]) -> Iterator[None]:
        """Double the batch size `size` while rows keep their bits and the time per row falls.

        Each accepted size and its outputs are added to `accepted`. A size is compared with half of
        it, and with itself in reverse order, so that rows are compared in every place of the batch.
        Yields after each pass.
        """
        limit_s, slower = _MAX_TIME_SLICES * self._time_slice_s, 0
        smallest = min(self._seconds)
        while 2 * size <= MAX_BATCH_SIZE and slower < _SLOWER_SIZES:
            took = self._seconds[size]
            if _LEAST_GROWTH * self._pass_seconds[size] > limit_s:
                return
            speedup = size / took * self._seconds[smallest] / smallest
            if took > self._time_slice_s and speedup < _MIN_SPEEDUP and size >= _MIN_TRIED_ROWS:
                return  # a larger batch does not pay
            output = self.run(2 * size)
            yield
            if self._pass_seconds[2 * size] > limit_s:
                return
            reversed_output = self.run(2 * size, reverse=True)
            yield
            if not (_same(output, accepted[size], size) and _same(output, reversed_output, 2 * size)):
                return
            fastest = max(one / self._seconds[one] for one in accepted)
            size *= 2
            accepted[size] = output
            slower = slower + 1 if size / self._seconds[size] * _NEARLY_FASTEST < fastest else 0

    def run(self, size: int, *, first: int = 0, reverse: bool = False) -> Outputs:
        """Run the operation on `size` generated rows from row `first` on; return its outputs.

        The output tensors have the rows in ascending order, even if `reverse` puts them into the
        batch in descending order. A pass is one step or, of an operation with several, two: the
        second is timed, because the first also initialises the state. The shortest times of each
        size are kept.
        """
        model, operation = self._model, BY_METHOD[self._method]
        # a frame or a grid cell must be one of the request's
        own = operation.rows(MAX_BATCH_SIZE, MAX_BATCH_SIZE, self._defaults)
        rows = RowStreams.range(20_140_501, first, size)
        rows = RowStreams(rows.seed, rows.row % own)
        codes = model.entry.operations[self._method].codes
        shape = model.entry.image if codes is None else (codes.size(self._defaults),)
        noise = RowStreams.range(1, first, size).uniform(math.prod(shape)).view(size, *shape)
        if codes is not None:
            low, high = max(codes.minimum, -_PROBED_CODES), min(codes.maximum, _PROBED_CODES)
            noise = low + (high - low) * noise
        if reverse:
            rows, noise = RowStreams(rows.seed, rows.row.flip(0)), noise.flip(0)
        items = [noise.to(model.device) for _ in operation.inputs]
        result, seconds = self._timed(rows, items, None)
        pass_seconds = seconds
        if isinstance(result, Continuation):
            result, seconds = self._timed(rows, items, result.state)
            pass_seconds += seconds
        self.passes += 1
        self._seconds[size] = min(seconds, self._seconds.get(size, seconds))
        self._pass_seconds[size] = min(pass_seconds, self._pass_seconds.get(size, pass_seconds))
        fields = result.state if isinstance(result, Continuation) else result
        tensors = [value for value in fields.values() if isinstance(value, Tensor) and value.ndim]
        return [tensor.flip(0) if reverse else tensor for tensor in tensors]

    def _timed(self, rows: RowStreams, items: list[Tensor], state: dict[str, Any] | None) -> tuple[Any, float]:
        """Run one step of the operation; return its result and the seconds it took."""
        started = self._clock()
        result = self._model.call(self._method, self._options, rows, items, state)
        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return result, self._clock() - started


def _between(batch_sizes: list[int]) -> list[int]:
    """Return three evenly spaced sizes between each power of two in `batch_sizes` and the next one.

    Sizes below `_FINE_FROM` get no sizes in between. With the finer sizes, padding is at most a
    fifth of a large batch instead of half.
    """
    steps = [(low, low // 4) for low in batch_sizes[:-1] if low >= _FINE_FROM]
    return [low + times * step for low, step in steps for times in (1, 2, 3)]


def _same(whole: Outputs, other: Outputs, size: int) -> bool:
    """Return whether the first `size` rows of two lists of outputs have the same bits."""
    return all(torch.equal(a[:size], b[:size]) for a, b in zip(whole, other, strict=True))
