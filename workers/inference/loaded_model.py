"""Define a model in memory: its network, its options, and the batch sizes of its operations."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.catalog.registry import ModelVersion
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import from_json
from workers.inference.packed_linear import pack

# Models with more weights than this run on several threads and with packed layers; small ones lose
# by both.
_MANY_WEIGHTS_BYTES = 64 << 20

_MAX_PARSED_OPTIONS = 256


# See docs/decisions.md#a-batch-plan-belongs-to-the-network-and-not-to-its-weights
@dataclass(frozen=True)
class BatchPlan:
    """The batch sizes that a worker uses for one operation of a model.

    `batch_sizes`, in ascending order, are the numbers of rows that a forward pass may have; the
    output of a row is bit-identical in all of them. `slice_rows` is the number of rows that a
    worker processes in about one time slice, the time that it gives to one batch before it receives
    the next message.
    """

    batch_sizes: tuple[int, ...]
    slice_rows: int

    @property
    def largest(self) -> int:
        """The largest of the batch sizes."""
        return self.batch_sizes[-1]

    def padded_size(self, count: int) -> int:
        """Return the smallest batch size that holds `count` rows; `count` if none does."""
        return next((size for size in self.batch_sizes if size >= count), count)


class LoadedModel:
    """One version of a model in memory, with the batch sizes (the batch plan) of each operation."""

    def __init__(
        self, entry: ModelVersion, model: Any, device: torch.device, threads: int, advance: Callable[[], object]
    ) -> None:
        """Wrap `model`, which was loaded from the checkpoint of the version `entry`.

        No batch sizes are chosen yet: `ModelCache` chooses them. `advance` is called after each
        step of an operation. `threads` is the number of CPU threads that a forward pass uses; 0
        means one for a small model and all for a large one. On a CPU, the weights of a large model
        are converted to oneDNN's blocked layout.
        """
        self.entry = entry
        self._advance = advance
        self.model = model
        self.device = device
        self.plans: dict[str, BatchPlan] = {}
        self.long_layer_rows: dict[str, int] = {}
        """By operation, the least number of rows with which the layers took long."""
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
        self,
        method: str,
        options: Any,
        rows: RowStreams,
        items: list[Tensor],
        state: dict[str, Any] | None,
        margins: tuple[int, int] | None = None,
    ) -> Any:
        """Run one step of an operation; return its results, or a Continuation if steps are left.

        The results are a dictionary, keyed by field. `rows` has the random streams of the rows, and
        `items` the input tensors. `state` is None in the first step, and later the state of the
        Continuation that the previous step returned. `margins` are the vertical and horizontal
        margin of tiles in pixels; None means the model's default.
        """
        with torch.inference_mode():
            if torch.get_num_threads() != self.threads:
                torch.set_num_threads(self.threads)
            arguments = [*items, rows.to(self.device), options]
            more: dict[str, Any] = {} if state is None else {"state": state}
            if margins is not None:
                more["margins"] = margins
            result = getattr(self.model, method)(*arguments, **more)
        self._advance()
        return result

    def set_plan(self, method: str, plan: BatchPlan) -> None:
        """Use the batch sizes `plan` for an operation from now on.

        The dictionary `plans` is replaced and not changed, because the heartbeat thread reads it.
        """
        self.plans = {**self.plans, method: plan}
