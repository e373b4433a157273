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
    operations = {}
    for name, method in inspect.getmembers(type(model), inspect.isfunction):
        if not name.startswith("_") and name not in without and _is_operation(method):
            operations[name] = _describe_method(method)
    return operations


def options_of(model: nn.Module, operation: str) -> type:
    """Return the options dataclass of an operation.

    Raises ValueError for an unknown operation.
    """
    method = getattr(type(model), operation, None)
    if method is None or operation.startswith("_") or not inspect.isfunction(method) or not _is_operation(method):
        raise ValueError(f"no operation {operation!r}; there are {', '.join(describe(model))}")
    return typing.cast("type", _type_hints(method)["options"])


def _is_operation(method: Any) -> bool:
    hints = _type_hints(method)
    return hints.get("rows") is RowStreams and "options" in hints


def _describe_method(method: Any) -> dict[str, Any]:
    hints = _type_hints(method)
    return {
        "inputs": [name for name in IMAGE_INPUTS if name in hints],
        "options": json_schema(hints["options"]),
        "unit": getattr(hints["options"], "UNIT", None),
        "sliced": "state" in hints,
    }


def _type_hints(method: Any) -> dict[str, Any]:
    return typing.get_type_hints(inspect.unwrap(method))
