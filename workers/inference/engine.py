"""Run a model on a batch: stack and pad the rows of its requests, and split the results again.

A slice (`BatchSlice`) has the rows of one request in the batch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core import tracing
from core.broker.codec import MARGINS, BatchSlice, Fields, Outcome, joined
from core.catalog.operations import BY_METHOD
from core.imaging.pictures import png
from models.kit.operations import Continuation
from models.kit.row_streams import RowStreams
from workers.inference.loaded_model import LoadedModel

log = logging.getLogger(__name__)

Options = dict[str, Any]
Slices = list[BatchSlice]
State = dict[str, Any]  # arrays with one entry per row, by name


@dataclass(frozen=True)
class SliceResult:
    """The intermediate result of an operation that did not finish within its time slice.

    A time slice is the time that a worker gives to one batch before it receives the next message.
    `state` has arrays with one entry per row, keyed by name; the operation continues from them.
    `done` is the share of the operation that is finished, 0 to 1. `preview` has the unfinished
    images, uint8 (B, C, H, W), or is None if the operation has none.
    """

    state: State
    done: float
    preview: np.ndarray[Any, Any] | None = None

    def of(self, slices: Slices, index: int) -> State:
        """Return the state of the rows of `slices[index]`, which continues one request.

        `slices` has the rows of each request in the batch, in order.
        """
        rows = _rows_of(slices, index)
        return {name: value[rows] for name, value in self.state.items()}

    def preview_of(self, slices: Slices, index: int) -> np.ndarray[Any, Any] | None:
        """Return the unfinished images of the request `slices[index]`; None without a preview.

        `slices` has the rows of each request in the batch, in order.
        """
        return None if self.preview is None else self.preview[_rows_of(slices, index)]


def _rows_of(slices: Slices, index: int) -> slice:
    """Return which rows of the whole batch are those of the request `slices[index]`, as a range."""
    first = sum(one.rows for one in slices[:index])
    return slice(first, first + slices[index].rows)


def run(
    model: LoadedModel, method: str, options: Options, slices: Slices, state: State | None, has_time: Callable[[], bool]
) -> list[Outcome] | SliceResult:
    """Run an operation on the rows of all slices, until it is finished or its time is up.

    Returns one outcome per slice (the rows of one request in the batch), or a SliceResult if the
    time is up. `method` names the model's method. `state` is that of the SliceResult which the
    previous call returned; None at the beginning. `has_time` is called after each call of the model
    that leaves work unfinished, and returns whether to call the model again. If the model raises,
    the batch is bisected until the failing request is alone: its outcome is a problem, and the
    other requests get their results.
    """
    try:
        return _run_all(model, method, options, slices, state, has_time)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; other requests must not suffer
        if model.device.type == "cuda" and isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(slices) == 1:
            return [Outcome(problem=_problem(error, method, slices[0]))]
        middle = len(slices) // 2
        # each half starts from the beginning and runs to its end: this is rare, and a state cannot
        # be trusted after an error
        halves = [run(model, method, options, half, None, lambda: True) for half in (slices[:middle], slices[middle:])]
        return [outcome for half in halves if isinstance(half, list) for outcome in half]


def _problem(error: Exception, method: str, failed: BatchSlice) -> dict[str, Any]:
    """Return the problem (RFC 9457) of a request for which the model raised `error`."""
    if isinstance(error, ValueError):
        return {"type": "about:blank", "title": "Not possible for this model", "status": 422, "detail": str(error)}
    log.error("model raised", exc_info=error, extra={"method": method, "request_id": failed.request_id})
    detail = f"the model raised {type(error).__name__} on this request: {error}"
    return {"type": "about:blank", "title": "Model failed", "status": 500, "detail": detail}


@dataclass(frozen=True)
class _Rows:
    """The rows of all requests in a batch, stacked in the order of the requests.

    `seeds` (B,) has the seed of each row's request, and `numbers` (B,) the index of the row in its
    request. `items` has an array for each input of the operation: images, uint8 (B, C, H, W), or
    latent codes, float32 (B, n).
    """

    seeds: np.ndarray[Any, Any]
    numbers: np.ndarray[Any, Any]
    items: list[np.ndarray[Any, Any]]

    @classmethod
    def stack(cls, slices: Slices, inputs: tuple[str, ...]) -> "_Rows":
        """Stack the rows of all slices (one per request) in order.

        `inputs` are the names of the operation's input images. A slice with a single image uses
        this image for each of its rows.
        """
        return cls(
            np.concatenate([np.full(one.rows, one.seed, np.int64) for one in slices]),
            np.concatenate([np.arange(one.first, one.first + one.rows, dtype=np.int64) for one in slices]),
            [np.concatenate([_one_per_row(one.items[name], one.rows) for one in slices]) for name in inputs],
        )

    def batch(self, first: int, count: int, size: int) -> "_Rows":
        """Return the `count` rows from index `first` on, padded to `size` rows.

        The padding repeats the last row.
        """
        arrays = (self.seeds, self.numbers, *self.items)
        seeds, numbers, *items = [_pad(array[first : first + count], size) for array in arrays]
        return _Rows(seeds, numbers, items)


def _one_per_row(items: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    """Return one image or latent code per row; if `items` has only one, it is repeated."""
    return items if len(items) == rows else np.repeat(items, rows, axis=0)


def _pad(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Return `array` padded to `size` rows by repeating its last row.

    Rows of zeros would not do, because a model may reject them as input.
    """
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _run_all(
    model: LoadedModel, method: str, options: Options, slices: Slices, state: State | None, has_time: Callable[[], bool]
) -> list[Outcome] | SliceResult:
    """Run an operation on the rows of all slices, in passes of at most the largest batch size.

    Returns one outcome per slice (the rows of one request in the batch). If the model returns a
    `Continuation` (unfinished work) and `has_time()` returns False, returns a SliceResult instead,
    with the state from which a later call continues. `state` is this state; None at the beginning.
    Exceptions that the model raises are passed on.
    """
    plan, model_options = model.plans[method], model.options(method, options)
    rows, spec = _Rows.stack(slices, BY_METHOD[method].inputs), model.entry.card.operations[method]
    margins = _margins(slices) if spec.any_size else None
    count = len(rows.seeds)
    # a state spans all rows, so an operation with a state is not cut: its sender keeps to the
    # worker's capacity
    step = count if spec.sliced else min(plan.largest, count)
    chunks = []
    for first in range(0, count, step):
        size = min(step, count - first)
        padded = rows.batch(first, size, plan.padded_size(size))
        streams = RowStreams(torch.from_numpy(padded.seeds), torch.from_numpy(padded.numbers))
        inputs = [_input_tensor(item, model.device) for item in padded.items]
        tensors = None if state is None else _state_tensors(state, len(padded.seeds), model.device)
        result = model.call(method, model_options, streams, inputs, tensors, margins)
        while isinstance(result, Continuation) and has_time():
            result = model.call(method, model_options, streams, inputs, result.state, margins)
        if isinstance(result, Continuation):
            host_state = {name: value[:count].cpu().numpy() for name, value in result.state.items()}
            preview = None if result.preview is None else _fields({"images": result.preview}, count)["images"]
            return SliceResult(host_state, float(result.done), preview)
        chunks.append(_fields(result, size))
    with tracing.span("encode"):
        return _split(joined(chunks), slices)


def _margins(slices: Slices) -> tuple[int, int] | None:
    """Return the vertical and the horizontal margin of the tiles in a batch; None without tiles.

    Raises RuntimeError if the slices of two requests have different margins; the slices are then
    run one by one.
    """
    margins = {tuple(one.items[MARGINS][0].tolist()) if MARGINS in one.items else None for one in slices}
    if len(margins) > 1:
        raise RuntimeError("tiles with different margins are in one batch")
    return margins.pop()


def _input_tensor(item: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an input of the model in float32: images in 0 … 1, or latent codes unchanged."""
    tensor = torch.from_numpy(item).to(device).float()
    return tensor.div_(255) if item.dtype == np.uint8 else tensor


def _state_tensors(state: State, size: int, device: torch.device) -> dict[str, Tensor]:
    """Return the arrays of a state as tensors on the device, padded to `size` rows."""
    return {name: torch.tensor(_pad(value, size), device=device) for name, value in state.items()}


def _fields(result: dict[str, Any], count: int) -> Fields:
    """Return the first `count` rows of each tensor in the dictionary `result`, as NumPy arrays.

    Images become uint8, and a scalar tensor a number; other values stay. Raises RuntimeError if a
    tensor has fewer rows than `count`.
    """
    fields: Fields = {}
    for name, value in result.items():
        if not isinstance(value, Tensor) or not value.ndim:
            fields[name] = value.item() if isinstance(value, Tensor) else value
            continue
        if value.shape[0] < count:
            raise RuntimeError(f"the model returned {value.shape[0]} rows of {name!r} for {count}")
        rows = value[:count]
        if name == "images":
            rows = rows.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        fields[name] = rows.cpu().numpy()
    return fields


def _split(fields: Fields, slices: Slices) -> list[Outcome]:
    """Return one outcome per slice (the rows of one request): its rows of each array in `fields`.

    Images are encoded as PNG for a slice that asks for PNG. Fields that are no arrays are the same
    for each slice.
    """
    outcomes, first = [], 0
    for one in slices:
        rows = slice(first, first + one.rows)
        own: Fields = {name: value[rows] if isinstance(value, np.ndarray) else value for name, value in fields.items()}
        if one.png and "images" in own:
            own["images"] = [png(pixels) for pixels in own["images"]]
        outcomes.append(Outcome(fields=own))
        first += one.rows
    return outcomes
