"""Replace wide linear layers on a CPU by ones that store weights in oneDNN's blocked layout."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from models.kit.onednn_linear import Linear, onednn_linear

_MIN_BYTES = 1 << 20  # smaller layers gain nothing


# See docs/decisions.md#large-models-have-packed-linear-layers-on-a-cpu
class PackedLinear(nn.Module):
    """A linear layer that keeps its weight in oneDNN's blocked layout only.

    With `nn.Linear` each forward pass copies the weight into such a layout; for the few rows of a
    served batch that is most of the work.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Convert the weight of a float32 layer on the CPU; the layer's bias is used as it is."""
        super().__init__()
        self.bias = layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001 - inductor's own way

    @property
    def weight(self) -> Tensor:
        """The weight in the plain layout, converted at each access."""
        return self._packed.to_dense()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return Wx + b."""
        return onednn_linear(x, self._packed, self.bias)


def pack(model: nn.Module) -> None:
    """Replace a model's wide linear layers by packed ones, in place.

    Does nothing if this build of torch does not support it.
    """
    if not torch.backends.mkldnn.is_available():
        return
    packed: dict[nn.Module, PackedLinear] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if _should_pack(layer):
                packed[layer] = packed.get(layer) or PackedLinear(layer)
                setattr(parent, name, packed[layer])


def _should_pack(layer: nn.Module) -> TypeGuard[nn.Linear]:
    if type(layer) not in {nn.Linear, Linear}:
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() * 4 >= _MIN_BYTES
