"""Quality and diversity of generated digits, by the classifier.

I' = E_x KL(p(y) ‖ p(y|x)) is the score of the EBGAN paper: every p(y|x) is clamped at 1e-2 from
below and renormalised, and p(y) is their mean; without the clamp the classifier's confidence alone
decides. E KL = E_x KL(p(y|x) ‖ p(y)), the logarithm of the inception score, is not clamped. An
image is clear if its largest probability exceeds 0.9.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

CLAMP = 1e-2
CLEAR = 0.9


@dataclass(frozen=True)
class Scores:
    """Both scores in nats, the share of clear images, and the share of images assigned to each
    digit.
    """

    i_prime: float
    e_kl: float
    clear: float
    shares: tuple[float, ...]

    def rounded(self) -> dict[str, Any]:
        """Return the scores as JSON."""
        values = asdict(self)
        return {name: round(values[name], 4) for name in ("i_prime", "e_kl", "clear")} | {
            "shares": [round(share, 4) for share in values["shares"]]
        }


def i_prime(p: torch.Tensor, clamp: float = CLAMP) -> float:
    """Return E_x KL(p(y) ‖ p(y|x)) of probabilities (N, 10), clamped and renormalised, in nats."""
    p = p.clamp_min(clamp)
    p = p / p.sum(dim=1, keepdim=True)
    mean = p.mean(dim=0)
    return float((mean * (mean.log() - p.log())).sum(dim=1).mean())


def e_kl(p: torch.Tensor) -> float:
    """Return E_x KL(p(y|x) ‖ p(y)) of probabilities (N, 10), in nats."""
    mean = p.mean(dim=0, keepdim=True)
    return float((torch.xlogy(p, p) - torch.xlogy(p, mean)).sum(dim=1).mean())


def scores(p: torch.Tensor) -> Scores:
    """Return the scores of probabilities (N, 10), float64."""
    shares = torch.bincount(p.argmax(dim=1), minlength=10).double() / len(p)
    clear = float((p.amax(dim=1) > CLEAR).double().mean())
    return Scores(i_prime(p), e_kl(p), clear, tuple(shares.tolist()))


def standard_errors(p: torch.Tensor, groups: int = 50) -> dict[str, float]:
    """Return the standard errors of the scores of probabilities (N, 10), by a delete-a-group
    jackknife.

    They are of `i_prime`, `e_kl` and `clear`; the images are dealt to `groups` groups of one size.
    """
    members = torch.arange(len(p)) % groups
    estimates = [scores(p[members != group]) for group in range(groups)]
    errors = {}
    for name in ("i_prime", "e_kl", "clear"):
        values = torch.tensor([getattr(estimate, name) for estimate in estimates], dtype=torch.float64)
        errors[name] = round(math.sqrt((groups - 1) * float(values.var(correction=0))), 4)
    return errors
