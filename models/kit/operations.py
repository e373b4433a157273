"""Derive a model's operations from the signatures of its methods.

An operation is a public method with the parameters `rows: RowStreams` and `options` (a dataclass).
Its input images are its parameters `images`, `first`, `second` and `mask`, if it has them; or its
input is `codes`, whose format the method `code_format` returns. A parameter `state` means that it
runs in several calls, and returns a `Continuation` between them. A parameter `margins` means that
its images are tiles of any size. The class constant `UNIT` of its
options is the unit of the numbers that it returns.
"""

import inspect
import typing
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from models.kit.row_streams import RowStreams
from models.kit.schema import json_schema
from models.kit.shapes import Images, Tensor

INPUTS = ("images", "first", "second", "mask", "codes")


@dataclass(frozen=True)
class Continuation:
    """What an operation that runs in several calls returns from every call but the last.

    `state` has tensors with the batch as first axis; pass it unchanged to the next call. `done` is
    the finished share of the work, above 0 and below 1. `preview` shows the unfinished images, in 0
    … 1, or is None. It is not needed for the next call, and a worker reads it at most a few times a
    second.
    """

    state: dict[str, Tensor]
    done: float
    preview: Images | None = None


State = dict[str, Tensor] | None  # None in the first call, later the `state` of the previous `Continuation`
Result = dict[str, Any] | Continuation

_DRAWS_PER_CALL = 1000  # on a CPU: more take longer each, and a layer of them would delay small batches


def samples_per_call(images: Images, most: int) -> int:
    """Return how many Monte Carlo samples of each of `images` one call of an operation should draw.

    They are at most `most`; on a CPU fewer for more than 1000 / `most` images, but at least 10.
    """
    if images.device.type != "cpu":
        return most
    return max(10, min(most, _DRAWS_PER_CALL // max(len(images), 1)))


def describe(model: nn.Module, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the descriptions of a model's operations, keyed by method, except those in `without`.

    Each has the fields "inputs" (names of parameters), "options" (a JSON Schema), "unit", and
    "sliced" (whether the operation runs in several calls). An operation that reads latent codes
    also has "codes", their `CodeFormat`, and an operation whose images may have any size has
    "any_size": true.
    """
    kind: type = type(model)
    described = {name: _describe(hints) for name, hints in _operations(kind).items() if name not in without}
    for entry in described.values():
        if "codes" in entry["inputs"]:
            code_format: Any = model.code_format
            entry["codes"] = code_format().to_json()
    return described


def options_of(model: nn.Module, operation: str) -> type:
    """Return the dataclass of the options of a model's operation.

    Raises ValueError if the model has no such operation.
    """
    kind: type = type(model)
    operations = _operations(kind)
    if operation not in operations:
        raise ValueError(f"no operation {operation!r}; there are {', '.join(operations)}")
    options: type = operations[operation]["options"]
    return options


@cache
def _operations(model: Any) -> dict[str, dict[str, Any]]:
    """Return the type hints of each operation of the class `model`, keyed by the method's name."""
    methods = {name: method for name, method in inspect.getmembers(model, inspect.isfunction) if name[0] != "_"}
    hints = {name: typing.get_type_hints(inspect.unwrap(method)) for name, method in methods.items()}
    return {name: hint for name, hint in hints.items() if hint.get("rows") is RowStreams and "options" in hint}


def _describe(hints: dict[str, Any]) -> dict[str, Any]:
    """Return the description of an operation with the type hints `hints`, without its `codes`."""
    return {
        "inputs": [name for name in INPUTS if name in hints],
        "options": json_schema(hints["options"]),
        "unit": getattr(hints["options"], "UNIT", None),
        "sliced": "state" in hints,
        **({"any_size": True} if "margins" in hints else {}),
    }
