"""Compute large float32 matrix products on the CPU by oneDNN instead of MKL.

torch computes linear layers by MKL, which uses its widest instructions only on Intel's processors.
oneDNN, which torch ships for convolutions and reduced precision, uses what the processor has and is
up to twice as fast on others. It sums in another order, so the last bits of a result differ. On
Intel's processors MKL computes all products.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit.shapes import Float, Tensor

# Smaller products stay with MKL: the call through the dispatcher would cost more than it gains.
MIN_MULTIPLICATIONS = 2_000_000


def linear(
    x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, "O"] | None = None
) -> Float[Tensor, "*B O"]:
    """Return x Wᵀ + b, by oneDNN for large products on a CPU and otherwise by torch's default.

    It can be differentiated once, not twice.
    """
    if not _uses_onednn(x, weight):
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    apply: Callable[..., Tensor] = _OnednnLinear.apply if torch.is_grad_enabled() else onednn_linear
    return apply(rows, weight, bias).view(*x.shape[:-1], -1)


# See docs/decisions.md#training-uses-onednn-for-large-products-and-keeps-freed-memory
class Linear(nn.Linear):
    """An `nn.Linear` that uses oneDNN for large products on a CPU while gradients are recorded.

    Without gradients its results equal those of `nn.Linear` bit for bit.
    """

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """Return x Wᵀ + b with the layer's weight W and bias b."""
        return (linear if torch.is_grad_enabled() else functional.linear)(x, self.weight, self.bias)


class _OnednnLinear(torch.autograd.Function):
    """The autograd function of x Wᵀ + b: product and gradients are computed by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            onednn_linear(gradient, weight.T) if needs_x else None,
            onednn_linear(gradient.T, x.T) if needs_weight else None,
            gradient.sum(0) if needs_bias else None,
        )


def onednn_linear(x: Float[Tensor, "*B I"], weight: Tensor, bias: Tensor | None = None) -> Float[Tensor, "*B O"]:
    """Return x Wᵀ + b by oneDNN, without recording gradients.

    `weight` is W (O, I) as a dense tensor or in oneDNN's blocked layout.
    """
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - no public API
    return output


def _uses_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether `linear` computes x Wᵀ by oneDNN: a large float32 product on a CPU.

    Under autocast and torch.compile it does not, and neither on a processor that MKL is made for.
    """
    return (
        x.device.type == "cpu"
        and not _has_intel_processor()
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= MIN_MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # the compiler lowers this operator only for constant, packed weights
        and torch.backends.mkldnn.is_available()
    )


@cache
def _has_intel_processor() -> bool:
    """Return whether this machine's processor is one of Intel's; False if that is not known."""
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
