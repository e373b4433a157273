"""The intermediate result of an operation that runs in several calls."""

from dataclasses import dataclass
from typing import Any

from models.kit.shapes import Images, Tensor


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
