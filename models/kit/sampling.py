r"""Provide basic Monte Carlo algorithms as pure functions, with their diagnostics.

    algorithm             here                                   diagnostics
    inverse CDF           exponential, truncated_normal,         -
                          manifold_coordinates
    rejection sampling    accept, first_accepted                 envelope_excess; acceptance rate = accepted / proposals
    importance sampling   normalised_weights, resample,          log_mean_error, effective_sample_size,
                          log_mean_exp, ImportanceWeights        log_mean_batches

Uniform numbers lie in [0, 1) and are arguments. Weights are log w = log p̃ − log q, in nats, at
samples from q. p̃ need not be normalised: the mean of w is the ratio Z_p/Z_q of the normalising
constants. No diagnostic can detect a mode of p that q never visits: it is missing from the
estimate, from its error and from the effective sample size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from models.kit.shapes import Bool, Float, Float64, Int, Int64, Tensor

# --- Inverse CDF -----------------------------------------------------------------------------------------------------


def exponential(uniform: Float[Tensor, "*B"], rate: float) -> Float[Tensor, "*B"]:
    """Return draws from the exponential distribution of rate λ: −ln(1 − u)/λ with u = `uniform`.

    That is h⁻¹(u) for its cumulative distribution h(y) = 1 − e^(−λy).
    """
    return -torch.log1p(-uniform) / rate


def truncated_normal(uniform: Float[Tensor, "*B"], truncation: float) -> Float[Tensor, "*B"]:
    """Return draws from N(0, 1) truncated to (−t, t): Φ⁻¹(Φ(−t) + u (Φ(t) − Φ(−t))).

    Φ is the cumulative distribution of N(0, 1), t is `truncation`, and u is `uniform`.
    """
    low = 0.5 * math.erfc(truncation / math.sqrt(2.0))
    inner = low + (uniform.double() + 2.0**-25) * (1.0 - 2.0 * low)
    z: Tensor = torch.special.ndtri(inner)
    return z.to(uniform.dtype)


def manifold_coordinates(size: int) -> Float[Tensor, "size"]:
    """Return Φ⁻¹ of `size` evenly spaced points in the open interval (0, 1).

    Φ is the cumulative distribution of N(0, 1).
    """
    z: Tensor = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    return z.float()


# --- Rejection sampling ----------------------------------------------------------------------------------------------


def accept(
    log_p: Float[Tensor, "*B"], log_q: Float[Tensor, "*B"], log_k: float, uniform: Float[Tensor, "*B"]
) -> Bool[Tensor, "*B"]:
    """Return for each proposal z ~ q whether it is accepted, that is, whether u < p̃(z)/(k q(z)).

    `log_p`, `log_q` and `log_k` are the logarithms of p̃(z), q(z) and k; u is `uniform`. If k q ≥
    p̃ everywhere, the accepted proposals are draws from p, and P(accept) = ∫p̃ / k. Otherwise they
    are draws from min(p̃, k q), and only `envelope_excess` shows it. A z with p̃(z) = 0 is never
    accepted, because the inequality is strict and u may be 0.
    """
    return uniform.double() < (log_p.double() - log_q.double() - log_k).exp()


def envelope_excess(log_p: Float[Tensor, "*B N"], log_q: Float[Tensor, "*B N"], log_k: float) -> Float[Tensor, "*B"]:
    """Return maxₙ log p̃(zₙ) − log k q(zₙ) over N proposals zₙ, in nats.

    If it is above 0, the condition k q ≥ p̃ of rejection sampling is violated; if it is below 0,
    log k could be smaller by that amount.
    """
    excess = (log_p - log_q - log_k).masked_fill(log_p == -math.inf, -math.inf)
    return excess.amax(dim=-1)


def first_accepted(accepted: Bool[Tensor, "B N"]) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"], Int[Tensor, "B"]]:
    """Return for each row the first accepted of N proposals, as three tensors (B,).

    They are the index of that proposal (0 if none is accepted), whether any is accepted, and the
    number of proposals up to that one (N if none is accepted).
    """
    any_accepted = accepted.any(dim=1)
    index = accepted.to(torch.uint8).argmax(dim=1)
    return index, any_accepted, torch.where(any_accepted, index + 1, accepted.shape[1])


# --- Importance sampling ---------------------------------------------------------------------------------------------


def log_mean_exp(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Return log (1/K) Σₖ wₖ of K importance weights w = p̃/q, in nats.

    The mean is an unbiased estimate of Z_p/Z_q, the ratio of the normalising constants. Its
    logarithm is biased low (Jensen), less so with larger K.
    """
    return torch.logsumexp(log_w, dim=1) - math.log(log_w.shape[1])


def normalised_weights(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
    """Return wₖ / Σₘ wₘ for the importance weights wₖ of each row; NaN if all of them are 0."""
    return torch.softmax(log_w, dim=1)


def effective_sample_size(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Return the effective sample size (Σw)² / Σw² of the importance weights w of each row.

    It is 1 if one sample has all the weight, K if all weights are equal, and 0 if all are 0.
    """
    return ImportanceWeights.from_log_weights(log_w).effective_sample_size.to(log_w.dtype)


def log_mean_error(log_w: Float[Tensor, "B K"]) -> Float[Tensor, "B"]:
    """Return the standard error of log (1/K) Σₖ wₖ by the delta method, in nats.

    It is √((K Σw²/(Σw)² − 1)/(K − 1)) for K ≥ 2 weights. It is an estimate itself: if the variance
    of w is infinite, it is too small until the rare large weights that dominate the mean have been
    drawn.
    """
    return ImportanceWeights.from_log_weights(log_w).standard_error.to(log_w.dtype)


def resample(log_w: Float[Tensor, "B K"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Draw one index k per row, with the probability wₖ / Σₘ wₘ.

    It is inf {k: Σ_{m ≤ k} wₘ > u Σₘ wₘ}, where u is `uniform`. An index of weight 0 is never
    drawn, except that a row with only zero weights has the last index.
    """
    total = normalised_weights(log_w.double()).cumsum(dim=1)
    threshold = uniform.double().clamp(max=1.0 - 2.0**-53) * total[:, -1]
    return torch.searchsorted(total, threshold[:, None], right=True)[:, 0].clamp_(max=log_w.shape[1] - 1)


def common_progress(done: Int[Tensor, "B"]) -> int:
    """Return the number that all rows of `done` have, for example of finished steps; 0 without
    rows.

    Raises ValueError if rows differ.
    """
    if bool((done != done[:1]).any()):
        raise ValueError("all rows of a batch must have the same progress")
    return int(done[0]) if len(done) else 0


@dataclass(frozen=True)
class ImportanceWeights:
    """Statistics of the importance weights w of each row, to which weights can be added.

    They are log Σw, log Σw² and the number of weights.
    """

    log_sum: Float64[Tensor, "B"]
    log_square_sum: Float64[Tensor, "B"]
    count: Int64[Tensor, "B"]

    @classmethod
    def resume(
        cls, state: Mapping[str, Tensor] | None, rows: int, device: torch.device | str = "cpu", name: str = ""
    ) -> "ImportanceWeights":
        """Return the statistics that are in the `state` of a `Continuation`.

        Their keys begin with `name`. If `state` is None, as in the first call of an operation, the
        result describes no weights, for `rows` rows on `device`. The method `state` is the inverse.
        """
        if state is not None:
            return cls(*(state[name + field] for field in cls.__dataclass_fields__))
        none = torch.full((rows,), -math.inf, dtype=torch.float64, device=device)
        return cls(none, none, torch.zeros((rows,), dtype=torch.int64, device=device))

    @classmethod
    def from_log_weights(cls, log_w: Float[Tensor, "B K"]) -> "ImportanceWeights":
        """Return the statistics of the weights w of each row, given log w."""
        log_w = log_w.double()
        count = torch.full((log_w.shape[0],), log_w.shape[1], dtype=torch.int64, device=log_w.device)
        return cls(log_w.logsumexp(1), (2.0 * log_w).logsumexp(1), count)

    def state(self, name: str = "") -> dict[str, Tensor]:
        """Return the statistics as entries (B,) for the state of a `Continuation`.

        The keys begin with `name`.
        """
        return {name + field: getattr(self, field) for field in self.__dataclass_fields__}

    def add(self, log_w: Float[Tensor, "B K"]) -> "ImportanceWeights":
        """Return new statistics that also include the weights with the logarithms `log_w`.

        On a CPU the weights are summed one after another, so that it makes no difference to the
        bits how many weights each call adds.
        """
        log_w = log_w.double()
        return ImportanceWeights(
            torch.cat((self.log_sum[:, None], log_w), 1).logcumsumexp(1)[:, -1],
            torch.cat((self.log_square_sum[:, None], 2.0 * log_w), 1).logcumsumexp(1)[:, -1],
            self.count + log_w.shape[1],
        )

    @property
    def done(self) -> int:
        """The number of weights, which all rows must have.

        Raises ValueError if rows differ.
        """
        return common_progress(self.count)

    @property
    def log_mean(self) -> Float64[Tensor, "B"]:
        """The logarithm of the mean weight of each row, in nats."""
        return self.log_sum - self.count.double().log()

    @property
    def effective_sample_size(self) -> Float64[Tensor, "B"]:
        """The effective sample size (Σw)² / Σw² of each row.

        It is between 1 and the number of weights, or 0 if all weights are 0.
        """
        size = (2.0 * self.log_sum - self.log_square_sum).exp().clamp_min(1.0).minimum(self.count.double())
        return size.masked_fill(self.log_sum == -math.inf, 0.0)

    @property
    def standard_error(self) -> Float64[Tensor, "B"]:
        """The standard error of `log_mean` by the delta method, in nats.

        Each row needs at least two weights.
        """
        return ((self.count / self.effective_sample_size - 1.0).clamp_min(0.0) / (self.count - 1)).sqrt()


def batch_means(values: Float[Tensor, "N"], batches: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean of N values, and its standard error from the means of `batches` batches.

    Raises ValueError if there are fewer than two batches, or if they do not divide N.
    """
    means = _split_batches(values, batches).mean(dim=1)
    return means.mean(), means.std() / math.sqrt(batches)


def log_mean_batches(
    log_w: Float[Tensor, "N"], batches: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return log (1/N) Σ w, its standard error by batch means, and the share maxₙ wₙ / Σ w.

    w are N importance weights, divided into `batches` batches. If the share is not small, the error
    is unreliable. Raises ValueError if there are fewer than two batches, or if they do not divide
    N.
    """
    log_w = log_w.double()
    log_sum = log_w.logsumexp(0)
    log_mean = log_sum - math.log(len(log_w))
    relative = (log_mean_exp(_split_batches(log_w, batches)) - log_mean).exp()
    return log_mean, relative.std() / math.sqrt(batches), (log_w.max() - log_sum).exp()


def _split_batches(values: Float[Tensor, "N"], batches: int) -> Float[Tensor, "batches M"]:
    if batches < 2 or len(values) % batches or not len(values):
        raise ValueError(
            f"{len(values)} values cannot be divided into {batches} equal batches; at least two batches are needed"
        )
    return values.view(batches, -1)
