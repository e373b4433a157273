"""A model's operations, derived from the signatures of its methods, and their partial results.

An operation is a public method with the parameters `rows: RowStreams` and `options` (a dataclass).
Its input images are its parameters `images`, or `first` and `second`, and `mask`. A parameter
`state` means that the operation runs in several calls (see `Continuation`). The class constant
`UNIT` of its options is the unit of its numbers.
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

IMAGE_INPUTS = ("images", "first", "second", "mask")


@dataclass(frozen=True)
class Continuation:
    """What an operation with several calls returns until its last call.

    `state` has tensors with the batch as their first axis; pass it unchanged to the next call.
    `done` is the completed fraction of the work, in (0, 1). `preview` shows the images of the
    result so far, in 0 … 1; it is not passed to the next call, and a worker reads it at most twice
    a second.
    """

    state: dict[str, Tensor]
    done: float
    preview: Images | None = None


State = dict[str, Tensor] | None  # None in the first call, later the `state` of the previous `Continuation`
Result = dict[str, Any] | Continuation


def describe(model: nn.Module, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the descriptions of a model's operations, keyed by method, except those in `without`.

    Each has the fields "inputs", "options" (a JSON Schema), "unit" and "sliced" (it may take
    several calls).
    """
    kind: type = type(model)
    return {name: _describe(hints) for name, hints in _operations(kind).items() if name not in without}


def options_of(model: nn.Module, operation: str) -> type:
    """Return the options dataclass of an operation.

    Raises ValueError for an unknown operation.
    """
    kind: type = type(model)
    operations = _operations(kind)
    if operation not in operations:
        raise ValueError(f"no operation {operation!r}; there are {', '.join(operations)}")
    options: type = operations[operation]["options"]
    return options


@cache
def _operations(model: Any) -> dict[str, dict[str, Any]]:
    """Return the operations of the class `model`: each method's type hints, keyed by its name."""
    methods = {name: method for name, method in inspect.getmembers(model, inspect.isfunction) if name[0] != "_"}
    hints = {name: typing.get_type_hints(inspect.unwrap(method)) for name, method in methods.items()}
    return {name: hint for name, hint in hints.items() if hint.get("rows") is RowStreams and "options" in hint}


def _describe(hints: dict[str, Any]) -> dict[str, Any]:
    return {
        "inputs": [name for name in IMAGE_INPUTS if name in hints],
        "options": json_schema(hints["options"]),
        "unit": getattr(hints["options"], "UNIT", None),
        "sliced": "state" in hints,
    }
