"""`models.kit.operations`: what a model can do is read off its methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from torch import nn

from models.kit.operations import describe, options_of
from models.kit.row_streams import RowStreams
from models.kit.schema import option
from models.kit.shapes import Float, Tensor


@dataclass(frozen=True)
class Options:
    """One option, and a unit."""

    UNIT: ClassVar[str] = "nats"
    draws: int = option(2, minimum=1)


class Example(nn.Module):
    """Two operations, and methods that are none."""

    def blend(self, first: Float[Tensor, "B"], second: Float[Tensor, "B"], rows: RowStreams, options: Options) -> Any:
        """An operation of two pictures."""

    def measure(self, images: Float[Tensor, "B"], rows: RowStreams, options: Options, state: dict | None = None) -> Any:
        """A sliced operation of one."""

    def _hidden(self, rows: RowStreams, options: Options) -> Any:
        """None: it is private."""

    def loss(self, images: Float[Tensor, "B"], rows: RowStreams) -> Any:
        """None: it takes no options."""


def test_operations_are_methods_with_rows_and_options() -> None:
    """Inputs, options, unit and slicing come from the signature; other methods are no operations."""
    listed = describe(Example())
    assert set(listed) == {"blend", "measure"}
    assert listed["blend"]["inputs"] == ["first", "second"]
    assert listed["measure"]["inputs"] == ["images"]
    assert (listed["blend"]["sliced"], listed["measure"]["sliced"]) == (False, True)
    assert listed["measure"]["unit"] == "nats"
    assert set(listed["measure"]["options"]["properties"]) == {"draws"}
    assert set(describe(Example(), without=("blend",))) == {"measure"}


@pytest.mark.parametrize("name", ["loss", "_hidden", "forward", "nothing"])
def test_options_of_what_is_no_operation(name: str) -> None:
    """ValueError lists the operations there are."""
    assert options_of(Example(), "measure") is Options
    with pytest.raises(ValueError, match="there are blend, measure"):
        options_of(Example(), name)
