"""Derive a model's operations from the signatures of its methods.

An operation is a public method with the parameters `rows: RowStreams` and `options` (a dataclass).
Its input images are its parameters `images`, or `first` and `second`, and `mask`. A parameter
`state` means that the operation runs in several calls (see `Continuation`). The class constant
`UNIT` of its options is the unit of its numbers.
"""

import inspect
import typing
from collections.abc import Collection
from typing import Any

from torch import nn

from models.kit.row_streams import RowStreams
from models.kit.schema import json_schema

IMAGE_INPUTS = ("images", "first", "second", "mask")


def describe(model: nn.Module, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the descriptions of a model's operations, keyed by method, except those in `without`.

    Each has the fields "inputs", "options" (a JSON Schema), "unit" and "sliced" (it may take
    several calls).
    """
    return {name: _describe(hints) for name, hints in _operations(type(model)).items() if name not in without}


def options_of(model: nn.Module, operation: str) -> type:
    """Return the options dataclass of an operation.

    Raises ValueError for an unknown operation.
    """
    operations = _operations(type(model))
    if operation not in operations:
        raise ValueError(f"no operation {operation!r}; there are {', '.join(operations)}")
    options: type = operations[operation]["options"]
    return options


def _operations(model: type) -> dict[str, dict[str, Any]]:
    """Return the type hints of the methods of a class that are operations, keyed by method."""
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
