"""Packed layers compute the same function without keeping the plain weights."""

import torch
from torch import nn

from models import vae
from workers.inference.packed_linear import PackedLinear, pack


def test_a_packed_layer_computes_the_same() -> None:
    """A packed layer agrees with the plain one up to rounding, with and without bias, for inputs of
    several shapes.
    """
    for bias in (True, False):
        plain = nn.Linear(1024, 700, bias=bias)
        packed = PackedLinear(plain)
        for shape in [(1, 1024), (33, 1024), (2, 3, 1024)]:
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            with torch.inference_mode():
                torch.testing.assert_close(packed(x), plain(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(packed.weight, plain.weight)


def test_only_wide_layers_are_packed() -> None:
    """Small layers are not packed, and a layer used twice is packed once."""
    wide, narrow = nn.Linear(1024, 1024), nn.Linear(1024, 8)
    model = nn.Sequential(wide, nn.Sequential(wide, narrow))
    x = torch.randn(5, 1024, generator=torch.Generator().manual_seed(0))
    before = model(x)
    pack(model)
    inner = model[1]
    assert isinstance(inner, nn.Sequential)
    assert isinstance(model[0], PackedLinear)
    assert inner[0] is model[0]
    assert inner[1] is narrow
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000


def test_a_wide_model_of_a_family_is_packed() -> None:
    """The layers of a wide VAE are packed, whatever class it trains with."""
    model = vae.Model(vae.Config(hidden=(1024, 1024)))
    pack(model)
    assert sum(isinstance(layer, PackedLinear) for layer in model.modules()) == 4
    assert not any(isinstance(layer, nn.Linear) and layer.weight.numel() >= 1 << 18 for layer in model.modules())
