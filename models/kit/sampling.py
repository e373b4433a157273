r"""Basic algorithms of Monte Carlo sampling as pure functions, each with what tells whether it went well.

    algorithm             here                                   tells
    inverse CDF           exponential, truncated_normal,         -
                          manifold_coordinates
    rejection sampling    accept, first_accepted                 envelope_excess, acceptance = found / proposals
    importance sampling   normalised_weights, resample,          log_mean_error, effective_sample_size,
                          log_mean_exp, Weights                  log_mean_batches

Uniforms lie in [0, 1) and come as arguments. Weights come as log w = log p̃ − log q, nats, at samples from q: p̃ need not
be normalised, and the mean of w is then the ratio Z_p/Z_q of normalising constants. None of these numbers can tell
what q never visits: a mode that q misses is missing from the estimate, from its error and from the effective size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.kit.shapes import Bool, Float, Float64, Int, Int64, Tensor

# --- Inverse CDF -----------------------------------------------------------------------------------------------------


def exponential(uniform: Float[Tensor, "*B"], rate: float) -> Float[Tensor, "*B"]:
    """h⁻¹(u) = −ln(1 − u)/λ of h(y) = 1 − e^(−λy): a draw from the exponential law of rate λ."""
    return -torch.log1p(-uniform) / rate


def truncated_normal(uniform: Float[Tensor, "*B"], truncation: float) -> Float[Tensor, "*B"]:
    """Φ⁻¹(Φ(−t) + u (Φ(t) − Φ(−t))): a draw from N(0, 1) given that it lies in (−t, t)."""
    low = 0.5 * math.erfc(truncation / math.sqrt(2.0))
    inner = low + (uniform.double() + 2.0**-25) * (1.0 - 2.0 * low)
    z: Tensor = torch.special.ndtri(inner)
    return z.to(uniform.dtype)


def manifold_coordinates(size: int) -> Float[Tensor, "size"]:
    """Φ⁻¹ of `size` evenly spaced points inside the unit interval, its ends (±∞) left out."""
    z: Tensor = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    return z.float()


# --- Rejection sampling ----------------------------------------------------------------------------------------------


def accept(
    log_p: Float[Tensor, "*B"], log_q: Float[Tensor, "*B"], log_k: float, uniform: Float[Tensor, "*B"]
) -> Bool[Tensor, "*B"]:
    """u < p̃(z) / (k q(z)): which proposals z ~ q to keep; those are draws from p where k q ≥ p̃ everywhere.

    P(keep) = ∫p̃ / k. With a k that is too small the kept ones are draws from min(p̃, kq) instead, and nothing but
    `envelope_excess` says so. The inequality is strict since u may be 0: what p̃ excludes is then never kept.
    """
    return uniform.double() < (log_p.double() - log_q.double() - log_k).exp()


def envelope_excess(log_p: Float[Tensor, "*B N"], log_q: Float[Tensor, "*B N"], log_k: float) -> Float[Tensor, "*B"]:
    """maxₙ log p̃(zₙ) − log k q(zₙ), nats: above 0 the envelope k q ≥ p̃ is broken; below 0, k may be so much smaller."""
    excess = (log_p - log_q - log_k).masked_fill(log_p == -math.inf, -math.inf)
    return excess.amax(dim=-1)


def first_accepted(accepted: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"], Int[Tensor, "B"]]:
    """Of each row's N proposals the first kept: its index (0 where none is), whether there is one, how many it took."""
    found = accepted.any(dim=1)
    index = accepted.to(torch.uint8).argmax(dim=1)
    return index, found, torch.where(found, index + 1, accepted.shape[1])


# --- Importance sampling ---------------------------------------------------------------------------------------------


def log_mean_exp(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """log (1/K) Σₖ wₖ, nats; the mean is unbiased for Z_p/Z_q, its log biased low (Jensen), less so with K."""
    return torch.logsumexp(log_w, dim=1) - math.log(log_w.shape[1])


def normalised_weights(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """wₖ / Σₘ wₘ; NaN where every weight of a row is 0."""
    return torch.softmax(log_w, dim=1)


def effective_sample_size(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """(Σw)² / Σw², from 1 (one sample has all the weight) to K (all are equal); 0 where every weight is 0."""
    return Weights.of(log_w).effective_sample_size.to(log_w.dtype)


def log_mean_error(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Standard error of `log_mean_exp` by the delta method, √((K Σw²/(Σw)² − 1)/(K − 1)), nats; takes two samples.

    It is itself an estimate: where w has no finite variance it stays small and wrong while the rare large weights that
    carry the mean have not been drawn.
    """
    return Weights.of(log_w).error.to(log_w.dtype)


def resample(log_w: Float[Tensor, "B K"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """One index a row with probability wₖ / Σₘ wₘ: inf {k: Σ_{m ≤ k} wₘ > u Σₘ wₘ}; never one whose weight is 0.

    Where every weight of a row is 0, the last index.
    """
    total = normalised_weights(log_w.double()).cumsum(dim=1)
    threshold = uniform.double().clamp(max=1.0 - 2.0**-53) * total[:, -1]
    return torch.searchsorted(total, threshold[:, None], right=True)[:, 0].clamp_(max=log_w.shape[1] - 1)


@dataclass(frozen=True)
class Weights:
    """Importance weights that come in slices: all that is kept of them are log Σw, log Σw² and how many there were."""

    log_sum: Float64[Tensor, "B"]
    log_square_sum: Float64[Tensor, "B"]
    count: Int64[Tensor, "B"]

    @classmethod
    def start(cls, rows: int, device: torch.device | str = "cpu") -> Weights:
        """No weight yet for any of `rows` rows."""
        none = torch.full((rows,), -math.inf, dtype=torch.float64, device=device)
        return cls(none, none, torch.zeros((rows,), dtype=torch.int64, device=device))

    @classmethod
    def of(cls, log_w: Float[Tensor, "B K"]) -> Weights:
        """All weights at once."""
        log_w = log_w.double()
        count = torch.full((log_w.shape[0],), log_w.shape[1], dtype=torch.int64, device=log_w.device)
        return cls(log_w.logsumexp(1), (2.0 * log_w).logsumexp(1), count)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str = "") -> Weights:
        """Those that `state(name)` wrote down."""
        return cls(*(state[name + field] for field in cls.__dataclass_fields__))

    def state(self, name: str = "") -> dict[str, Tensor]:
        """As a part of a `Continuation`'s state, (B,) each; `name` begins every key, to tell several weights apart."""
        return {name + field: getattr(self, field) for field in self.__dataclass_fields__}

    def add(self, log_w: Float[Tensor, "B K"]) -> Weights:
        """With the next slice of weights."""
        more = Weights.of(log_w)
        return Weights(
            torch.logaddexp(self.log_sum, more.log_sum),
            torch.logaddexp(self.log_square_sum, more.log_square_sum),
            self.count + more.count,
        )

    @property
    def done(self) -> int:
        """How many weights each row has; ValueError where rows differ in that."""
        if not len(self.count):
            return 0
        least, most = (int(end) for end in self.count.aminmax())
        if least != most:
            raise ValueError("all rows of a batch must have the same progress")
        return most

    @property
    def log_mean(self) -> Float64[Tensor, "B"]:
        """`log_mean_exp` of all weights, nats."""
        return self.log_sum - self.count.double().log()

    @property
    def effective_sample_size(self) -> Float64[Tensor, "B"]:
        """(Σw)² / Σw², between 1 and the count; 0 where every weight is 0."""
        size = (2.0 * self.log_sum - self.log_square_sum).exp().clamp_min(1.0).minimum(self.count.double())
        return size.masked_fill(self.log_sum == -math.inf, 0.0)

    @property
    def error(self) -> Float64[Tensor, "B"]:
        """`log_mean_error` of all weights, nats."""
        return ((self.count / self.effective_sample_size - 1.0).clamp_min(0.0) / (self.count - 1)).sqrt()


def batch_means(values: Float[Tensor, "N"], batches: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The mean of N values and its standard error from the spread of the means of `batches` equal batches.

    ValueError where there are fewer than two batches or they do not divide N.
    """
    means = _batched(values, batches).mean(dim=1)
    return means.mean(), means.std() / math.sqrt(batches)


def log_mean_batches(
    log_w: Float[Tensor, "N"], batches: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """log (1/N) Σ w, its standard error from the spread of `batches` batch means, and maxₙ wₙ / Σ w.

    A share of the largest weight that is not small says that the error cannot be trusted. ValueError as `batch_means`.
    """
    log_w = log_w.double()
    log_sum = log_w.logsumexp(0)
    log_mean = log_sum - math.log(len(log_w))
    relative = (log_mean_exp(_batched(log_w, batches)) - log_mean).exp()
    return log_mean, relative.std() / math.sqrt(batches), (log_w.max() - log_sum).exp()


def _batched(values: Float[Tensor, "N"], batches: int) -> Float[Tensor, "batches M"]:
    if batches < 2 or len(values) % batches or not len(values):
        raise ValueError(
            f"{len(values)} values do not make {batches} equal batches, of which there must be two or more"
        )
    return values.view(batches, -1)
