"""`models.kit.bernoulli`: values and gradients agree with torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.kit import bernoulli

SHAPES = [
    ((5, 4, 7), (5, 4, 7)),
    ((5, 1, 7), (5, 4, 7)),  # a picture that several samples share
    ((5, 4, 7), (5, 1, 7)),  # logits that several samples share
    ((5, 4, 7), (7,)),
    ((5, 7), (5, 7)),
]


@pytest.mark.parametrize(("values", "logits"), SHAPES)
def test_values_and_gradients_are_those_of_torch(values: tuple[int, ...], logits: tuple[int, ...]) -> None:
    """Value and gradient agree with float64 autograd, whichever of the two is shared by samples."""
    generator = torch.Generator().manual_seed(1)
    t = (torch.rand(values, generator=generator) < 0.5).float()
    a = (8 * torch.randn(logits, generator=generator)).requires_grad_()
    exact = (t.double() * a.double()).sum(-1) - functional.softplus(a.double()).sum(-1)
    made = bernoulli.log_probability(t, a)
    torch.testing.assert_close(made, exact.float())
    toward = torch.randn(exact.shape, generator=generator)
    (gradient,) = torch.autograd.grad(made, a, toward)
    (wanted,) = torch.autograd.grad(exact, a, toward.double())
    torch.testing.assert_close(gradient, wanted.float())


def test_values_do_not_depend_on_whether_gradients_are_recorded() -> None:
    """Elementwise logits give the same bits with and without gradients."""
    t, a = torch.ones(3, 4, 5), torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        without = bernoulli.log_probability(t, a)
    assert torch.equal(bernoulli.log_probability(t, a.requires_grad_()), without)
