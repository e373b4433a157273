"""The answer of a sliced operation that has not ended: what to hand back to it, and how far it came."""

from __future__ import annotations

from dataclasses import dataclass

from models.kit.shapes import Float, Tensor


@dataclass(frozen=True)
class Partial:
    """`state`: tensors with the batch leading, to be passed to the next call as they are; `done`: share of the work.

    `preview`: what the pictures of the answer look like so far, in 0 … 1, for whoever watches a long run. It is not
    handed back, and looked at twice a second at most.
    """

    state: dict[str, Tensor]
    done: float
    preview: Float[Tensor, "B C H W"] | None = None
