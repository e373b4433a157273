"""From parts to outcomes: stack, pad to a bucket, run, split, encode; a part that fails, fails alone."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.broker.codec import BatchSlice, Fields, Outcome, joined
from core.catalog.operations import BY_METHOD
from core.imaging.pictures import png
from models.kit.continuation import Continuation
from models.kit.row_streams import RowStreams
from workers.inference.model_cache import LoadedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceResult:
    """A run that used up its slice: what to carry on with, for all rows, and how far it got (0 to 1).

    `preview`: what the pictures look like so far, uint8 (B, C, H, W), where the model shows it.
    """

    state: dict[str, Any]
    done: float
    preview: np.ndarray[Any, Any] | None = None

    def of(self, parts: list[BatchSlice], index: int) -> dict[str, Any]:
        """The share of one part in the state."""
        begin = sum(part.rows for part in parts[:index])
        return {name: value[begin : begin + parts[index].rows] for name, value in self.state.items()}

    def preview_of(self, parts: list[BatchSlice], index: int) -> np.ndarray[Any, Any] | None:
        """The share of one part in the preview."""
        begin = sum(part.rows for part in parts[:index])
        return None if self.preview is None else self.preview[begin : begin + parts[index].rows]


def run(
    loaded_model: LoadedModel,
    method: str,
    options: dict[str, Any],
    parts: list[BatchSlice],
    state: dict[str, Any] | None,
    slice_s: float,
) -> list[Outcome] | SliceResult:
    """Run an operation over all rows of `parts`; answers one outcome a part, or Unfinished after `slice_s` seconds.

    Where a pass raises, the parts are halved until the bad one fails alone.
    """
    try:
        answer = _run_all(loaded_model, method, options, parts, state, slice_s)
    except Exception as error:  # noqa: BLE001 - a model may raise anything; the rows beside it must not suffer
        if loaded_model.device.type == "cuda" and isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(parts) == 1:
            return [Outcome(problem=_problem(error, method, parts[0]))]
        half = len(parts) // 2
        # each half starts afresh and runs to its end: rare, and a state cannot be trusted after an error
        halves = [run(loaded_model, method, options, side, None, float("inf")) for side in (parts[:half], parts[half:])]
        return [outcome for side in halves if isinstance(side, list) for outcome in side]
    return answer


def _problem(error: Exception, method: str, part: BatchSlice) -> dict[str, Any]:
    if isinstance(error, ValueError):
        return {"type": "about:blank", "title": "Not possible for this model", "status": 422, "detail": str(error)}
    log.error("model raised", exc_info=error, extra={"method": method, "request_id": part.request_id})
    detail = f"the model raised {type(error).__name__} on this request: {error}"
    return {"type": "about:blank", "title": "Model failed", "status": 500, "detail": detail}


@dataclass(frozen=True)
class _Stack:
    """Rows of all parts on top of each other: seeds, row numbers, and the images they read."""

    seeds: np.ndarray[Any, Any]
    row: np.ndarray[Any, Any]
    items: list[np.ndarray[Any, Any]]

    @classmethod
    def of(cls, parts: list[BatchSlice], inputs: tuple[str, ...]) -> "_Stack":
        """Stack the parts in order."""
        return cls(
            np.concatenate([np.full(part.rows, part.seed, np.int64) for part in parts]),
            np.concatenate([np.arange(part.first, part.first + part.rows, dtype=np.int64) for part in parts]),
            [np.concatenate([_per_row(part.items[name], part.rows) for part in parts]) for name in inputs],
        )

    def cut(self, first: int, last: int) -> "_Stack":
        """Rows `first` to `last`, the latter left out."""
        return _Stack(self.seeds[first:last], self.row[first:last], [item[first:last] for item in self.items])

    def padded(self, size: int) -> "_Stack":
        """The rows filled up to a bucket of so many."""
        return _Stack(_pad(self.seeds, size), _pad(self.row, size), [_pad(item, size) for item in self.items])


def _per_row(items: np.ndarray[Any, Any], rows: int) -> np.ndarray[Any, Any]:
    return items if len(items) == rows else np.repeat(items, rows, axis=0)


def _pad(array: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Repeat the last row: made-up ones might be what a model refuses."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def _run_all(
    loaded_model: LoadedModel,
    method: str,
    options: dict[str, Any],
    parts: list[BatchSlice],
    state: dict[str, Any] | None,
    slice_s: float,
) -> list[Outcome] | SliceResult:
    plan = loaded_model.plans[method]
    chosen = loaded_model.options(method, options)
    stack = _Stack.of(parts, BY_METHOD[method].inputs)
    count = len(stack.seeds)
    # a state spans all rows, so an operation that has one is never cut; whoever sends it keeps to its capacity
    sliced = loaded_model.entry.card.operations[method].sliced
    step = count if sliced else min(plan.largest, count)
    until = time.perf_counter() + slice_s
    pieces = []
    for first in range(0, count, step):
        piece = stack.cut(first, min(first + step, count))
        answer = _steps(loaded_model, method, chosen, piece.padded(plan.bucket(len(piece.seeds))), state, until)
        if isinstance(answer, Continuation):
            state = {name: _host(value[:count]) for name, value in answer.state.items()}
            preview = None if answer.preview is None else _fields({"images": answer.preview}, count)["images"]
            return SliceResult(state, float(answer.done), preview)
        pieces.append(_fields(answer, len(piece.seeds)))
    return _split(joined(pieces), parts)


def _steps(
    loaded_model: LoadedModel, method: str, options: Any, stack: _Stack, state: dict[str, Any] | None, until: float
) -> Any:
    """Call the model until it is finished or the time is up."""
    rows = RowStreams(torch.from_numpy(stack.seeds), torch.from_numpy(stack.row))
    images = [torch.from_numpy(item).to(loaded_model.device).float().div_(255) for item in stack.items]
    carried = None
    if state is not None:
        padded = {name: _pad(value, len(stack.seeds)) for name, value in state.items()}
        carried = {name: torch.tensor(value, device=loaded_model.device) for name, value in padded.items()}
    answer = loaded_model.call(method, options, rows, images, carried)
    while isinstance(answer, Continuation) and time.perf_counter() < until:
        answer = loaded_model.call(method, options, rows, images, answer.state)
    return answer


def _host(value: Tensor) -> np.ndarray[Any, Any]:
    return value.cpu().numpy()


def _fields(answer: dict[str, Any], count: int) -> Fields:
    """Host arrays of the first `count` rows; pictures become uint8 by rounding."""
    fields: Fields = {}
    for name, value in answer.items():
        if not isinstance(value, Tensor) or not value.ndim:
            fields[name] = value.item() if isinstance(value, Tensor) else value
            continue
        if value.shape[0] < count:
            raise RuntimeError(f"the model gave {value.shape[0]} rows of {name!r} for {count}")
        kept = value[:count]
        if name == "images":
            kept = kept.mul(255).round_().clamp_(0, 255).to(torch.uint8)
        fields[name] = _host(kept)
    return fields


def _split(fields: Fields, parts: list[BatchSlice]) -> list[Outcome]:
    outcomes = []
    begin = 0
    for part in parts:
        end = begin + part.rows
        mine: Fields = {
            name: value[begin:end] if isinstance(value, np.ndarray) else value for name, value in fields.items()
        }
        if part.png and "images" in mine:
            mine["images"] = [png(pixels) for pixels in mine["images"]]
        outcomes.append(Outcome(fields=mine))
        begin = end
    return outcomes
