"""Compute log probabilities of independent Bernoulli variables from their logits, for training.

torch's own operations keep five tensors of the size of the logits for the gradient, which is simply
t − sigmoid(a). Here it is computed directly, and a variable that several samples share is
multiplied with them by a matrix product.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from models.kit.shapes import Float, Tensor


# See docs/decisions.md#the-gradient-of-log-bernoulli-is-computed-directly
def log_probability(t: Float[Tensor, "*#B n"], logits: Float[Tensor, "*#B n"]) -> Float[Tensor, "*B"]:
    """Return log Bernoulli(t; sigmoid(a)) = Σᵢ tᵢaᵢ − log(1 + e^aᵢ) in nats.

    a is `logits`; i runs over the last axis. Only `logits` has a gradient, and only a first one.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return (t * logits).sum(-1) - functional.softplus(logits).sum(-1)
    apply: Callable[..., Tensor] = _LogProbability.apply
    return apply(t, logits)


class _LogProbability(torch.autograd.Function):
    """The autograd function of log Bernoulli(t; sigmoid(a)), with the gradient t − sigmoid(a)."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(t, logits)
        shared = logits.ndim == 3 and t.shape == (len(logits), 1, logits.shape[-1]) and t.dtype == logits.dtype
        dot = (logits @ t.mT).squeeze(-1) if shared else (t * logits).sum(-1)
        return dot - functional.softplus(logits).sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        t, logits = ctx.saved_tensors
        (gradient,) = gradients
        weight = gradient.unsqueeze(-1)
        if logits.shape[:-1] == gradient.shape:
            return None, logits.sigmoid().sub_(t).mul_(-weight)
        # logits that several samples share: Σ g (t − σ(a)) = Σ g t − σ(a) Σ g
        summed = (weight * t).sum_to_size(logits.shape)
        return None, summed.sub_(logits.sigmoid().mul_(weight.sum_to_size(*logits.shape[:-1], 1)))
