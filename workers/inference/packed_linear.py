"""Make wide linear layers faster on a CPU by storing their weights in oneDNN's blocked layout."""

from typing import TypeGuard

import torch
from torch import Tensor, nn

from models.kit.onednn_linear import Linear, onednn_linear

_MIN_BYTES = 1 << 20  # smaller layers gain nothing


# See docs/decisions.md#large-models-have-packed-linear-layers-on-a-cpu
class PackedLinear(nn.Module):
    """A linear layer that stores its weight only in oneDNN's blocked layout.

    `nn.Linear` copies the weight into this layout in each forward pass; for the few rows of a
    served batch that is most of the work.
    """

    def __init__(self, layer: nn.Linear) -> None:
        """Convert the weight of `layer`, which is float32 and on the CPU; share its bias."""
        super().__init__()
        self.bias = layer.bias
        self._packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)  # noqa: SLF001 - inductor's own way

    @property
    def weight(self) -> Tensor:
        """The weight as an ordinary dense tensor, converted back at each access."""
        return self._packed.to_dense()  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, `x` times the transposed weight, plus the bias."""
        return onednn_linear(x, self._packed, self.bias)


def pack(model: nn.Module) -> None:
    """Replace the linear layers of a model that have at least 1 MiB of weights by `PackedLinear`.

    The model is changed in place. Only float32 layers on the CPU are replaced, and none if torch
    was built without oneDNN.
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
