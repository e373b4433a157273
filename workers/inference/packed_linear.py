"""Weights of wide layers, laid out once as the processor wants them."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from models.kit.onednn_linear import Linear, onednn_linear

_WORTH_BYTES = 1 << 20
"""Smaller layers gain nothing."""


# See docs/decisions.md#large-models-have-packed-linear-layers-on-a-cpu
class PackedLinear(nn.Module):
    """A linear layer whose weight lies in oneDNN's blocks alone.

    `nn.Linear` hands its weight to the matrix product as it stands, which lays it out anew in every pass; for the few
    rows of a served batch that is most of the work.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Take over a layer of float32 on the CPU."""
        super().__init__()
        self.bias = layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001 - inductor's own way

    @property
    def weight(self) -> Tensor:
        """The plain weight, made anew each time."""
        return self._packed.to_dense()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Wx + b."""
        return onednn_linear(x, self._packed, self.bias)


def pack(model: nn.Module) -> None:
    """Replace a model's wide linear layers by packed ones, where this build of torch can."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    packed: dict[nn.Module, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if _packs(layer):
                packed[layer] = packed.get(layer) or PackedLinear(layer)
                setattr(parent, name, packed[layer])


def _packs(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) not in {nn.Linear, Linear}:
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() * 4 >= _WORTH_BYTES
