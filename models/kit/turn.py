"""One player's turn in a step of training, for families that train several players against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.kit.shapes import Float, Tensor


@dataclass(frozen=True)
class Turn:
    """`player`: the submodule whose weights move, down the mean of `losses`; `facts`: what the metrics should tell."""

    player: str
    losses: Float[Tensor, "B"]
    facts: Mapping[str, Float[Tensor, "B"]] = field(default_factory=dict)
