"""The answer of a sliced operation that has not ended: what to hand back to it, and how far it came."""

from __future__ import annotations

from dataclasses import dataclass

from models.kit.shapes import Tensor


@dataclass(frozen=True)
class Partial:
    """`state`: tensors with the batch leading, to be passed to the next call as they are; `done`: share of the work."""

    state: dict[str, Tensor]
    done: float
