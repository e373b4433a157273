"""Large matrix products of float32 on the CPU, by oneDNN.

torch takes them from MKL, which keeps its widest instructions to one maker's processors; oneDNN, which torch ships too
and takes convolutions and reduced precision from, uses what the processor has, and is twice as fast on others. Sums are
taken in another order, so the last bits differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from models.kit.shapes import Float, Tensor

LARGE = 2_000_000
"""Multiplications from which a product is worth the detour."""


def product(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, (*B, O), differentiable once."""
    if not _suits(x, weight):
        return functional.linear(x, weight, bias)
    rows = x.reshape(-1, x.shape[-1])
    act: Callable[..., Tensor] = _Product.apply if torch.is_grad_enabled() else onednn
    made = act(rows, weight, bias)
    return made.view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """torch's layer, trained by `product`; without gradients it is that layer to the bit."""

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """x Wᵀ + b."""
        return (product if torch.is_grad_enabled() else functional.linear)(x, self.weight, self.bias)


class _Product(torch.autograd.Function):
    """The product of two matrices, and its slopes, each one product more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (slope,) = slopes
        toward_x, toward_weight, toward_bias = ctx.needs_input_grad
        return (
            onednn(slope, weight.T) if toward_x else None,
            onednn(slope.T, x.T) if toward_weight else None,
            slope.sum(0) if toward_bias else None,
        )


def onednn(x: Float[Tensor, "*B I"], weight: Tensor, bias: Tensor | None = None) -> Float[Tensor, "*B O"]:
    """x Wᵀ + b by oneDNN, W plain or in its blocks; the operator of torch's own compiler, without slopes."""
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - no public way
    return made


def _suits(x: Tensor, weight: Tensor) -> bool:
    """Whether a product is oneDNN's."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= LARGE
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()  # which lowers this operator for packed constants alone
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )
