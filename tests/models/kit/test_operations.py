"""`models.kit.operations`: operations are derived from a model's methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from models.kit.operations import describe, options_of, samples_per_call
from models.kit.row_streams import RowStreams
from models.kit.schema import option
from models.kit.shapes import Float, Tensor


@dataclass(frozen=True)
class Options:
    """One option, and a unit."""

    UNIT: ClassVar[str] = "nats"
    draws: int = option(2, minimum=1)


class Example(nn.Module):
    """A model with two operations and two other methods."""

    def blend(self, first: Float[Tensor, "B"], second: Float[Tensor, "B"], rows: RowStreams, options: Options) -> Any:
        """An operation with two input images."""

    def measure(
        self, images: Float[Tensor, "B"], rows: RowStreams, options: Options, state: dict[str, Any] | None = None
    ) -> Any:
        """A sliced operation with one input."""

    def _hidden(self, rows: RowStreams, options: Options) -> Any:
        """Not an operation: it is private."""

    def loss(self, images: Float[Tensor, "B"], rows: RowStreams) -> Any:
        """Not an operation: it has no options."""


def test_operations_are_methods_with_rows_and_options() -> None:
    """Inputs, options, unit and slicing are read from the signature; other
    methods are not operations.
    """
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
    """Options of an unknown operation raise ValueError, which lists the existing operations."""
    assert options_of(Example(), "measure") is Options
    with pytest.raises(ValueError, match="there are blend, measure"):
        options_of(Example(), name)


@pytest.mark.parametrize(("images", "samples"), [(0, 200), (1, 200), (5, 200), (8, 125), (100, 10), (4000, 10)])
def test_a_call_for_many_images_draws_fewer_samples(images: int, samples: int) -> None:
    """The samples of one call on a CPU are limited over all images, and at least ten of each; other
    devices have no limit.
    """
    assert samples_per_call(torch.empty(images, 1, 2, 2), 200) == samples
    assert samples_per_call(torch.empty(images, 1, 2, 2, device="meta"), 200) == 200
