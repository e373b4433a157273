"""`models.kit.onednn_linear`: values and gradients agree with torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from models.kit import onednn_linear

SIZES = [(100, 784, 512), (7, 600, 600), (3, 4, 5)]


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    """Return normal numbers that require gradients."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.fixture(params=[False, True], ids=["other", "intel"], autouse=True)
def intel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Make the processor one of Intel's, or of another vendor."""
    monkeypatch.setattr(onednn_linear, "_has_intel_processor", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_torch(rows: int, inputs: int, outputs: int, *, biased: bool) -> None:
    """x Wᵀ + b and its three gradients agree with float64 for any size and number of dimensions."""
    x, weight = drawn(rows, 2, inputs), drawn(outputs, inputs, seed=2)
    wanted = [x, weight, *([drawn(outputs, seed=3)] if biased else [])]
    toward = torch.randn(rows, 2, outputs)
    made = onednn_linear.linear(*wanted)
    exact = functional.linear(*(one.double() for one in wanted))
    torch.testing.assert_close(made.double(), exact, rtol=1e-4, atol=1e-3)
    for one, other in zip(
        torch.autograd.grad(made, wanted, toward), torch.autograd.grad(exact, wanted, toward.double()), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_a_layer_that_is_not_trained_is_torchs_to_the_bit(*, intel: bool) -> None:
    """Without gradients the layer equals `nn.Linear` bit for bit; with gradients it uses oneDNN,
    except on Intel's processors.
    """
    layer, x = onednn_linear.Linear(784, 512), drawn(100, 784).detach()
    with torch.no_grad():
        assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
    assert type(layer(x).grad_fn).__name__ == ("AddmmBackward0" if intel else "ViewBackward0")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert torch.equal(layer.double()(x.double()), functional.linear(x.double(), layer.weight, layer.bias))
