r"""Bidirectional Helmholtz Machines, Bornschein, Shabanian, Fischer and Bengio, arXiv:1506.03877v5 (ICML 2016).

    paper              here                  shape     unit   eq.
    x                  x                     B D       1      -
    h₁ … h_L           h (a list)            B K nₗ    1      -
    log p(x, h)        log_p                 B K       nats   §2
    log q(h|x)         log_q                 B K       nats   §2
    log p − log q      a                     B K       nats   -
    p*(x, h)           √(p q)/Z              -         -      1
    log p̃*(x)          log_p_tilde_star      B         nats   4
    log p(x)           log_p                 B         nats   5
    ω̃ₖ                 importance_weights    B K       1      6
    log Z²             z_squared_log_weight  N         nats   7
    log p*(x)          log_p_tilde_star − 2 log Z      B      nats   -

K counts samples of one image and is axis 1. p is top-down, p(h_L) ∏ p(hₗ₋₁|hₗ); q is bottom-up, q(h|x) = ∏ q(hₗ|hₗ₋₁);
every layer is Bernoulli(sigmoid(Wh + b)). The model is p*(x) = (Σ_h √(p(x,h) q(h|x)))²/Z²; the paper's bound is
p̃*(x) = Z² p*(x), which is no more than p*(x) and no more than p(x). Losses are −log p̃*, one an image, in nats.

Departs from the paper: the authors' baseline 1/K on q's weights (in their code, not in the paper) is the default; no L1
penalty unless asked for; the Gibbs sampler draws each candidate from an equal mixture of p(hₗ|hₗ₊₁) and q(hₗ|hₗ₋₁),
where the paper takes half from each, and keeps the present state among the candidates, which leaves p* invariant
whatever their number; the weight of a candidate for x has the factor √p̃*(x), estimated afresh in every sweep with
`inner` samples, which leaves a bias that falls with their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.kit.continuation import Continuation
from models.kit.operations import describe
from models.kit.row_streams import BINARIZE, CHOICE, FIRST_FREE, RowStreams, bernoulli_from_int16
from models.kit.sampling import Weights, log_mean_batches, log_mean_exp, resample
from models.kit.schema import option
from models.kit.shapes import Float, Int16, Tensor

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B"]
PerSample = Float[Tensor, "B K"]
Layers = list[Tensor]

CHUNK, BLOCK = 200, 10  # importance samples, and draws of p in a block, of one slice
PICTURES = 20  # measured at once
HIDDEN, VISIBLE, INNER = range(FIRST_FREE, FIRST_FREE + 3)  # streams: q's draws, p's draws, those of p̃* within a sweep
SWEEP = 16  # streams of a Gibbs sweep begin here


@dataclass(frozen=True)
class Config:
    """The layers and the estimate of the gradient; by default MNIST's shape and the paper's twelve layers."""

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels")
    width: int = option(28, minimum=1, maximum=4096, description="pixels")
    hidden: tuple[int, ...] = option(
        (300, 200, 100, 75, 50, 35, 30, 25, 20, 15, 10, 10),
        minimum=1,
        maximum=4096,
        description="units of the hidden layers, the one next to the picture first",
    )
    samples: int = option(10, minimum=1, maximum=10000, description="K, importance samples of an image")
    late_samples: int = option(100, minimum=1, maximum=10000, description="K from epoch `late_from` on")
    late_from: int = option(10**9, minimum=0, maximum=10**9, description="the first epoch with `late_samples`, from 0")
    baseline: bool = option(default=True, description="q's weights less 1/K, which is zero in the mean")
    init: str = option(
        "glorot", choices=("glorot", "small"), description="of the weights; small: Glorot's over the fan-in"
    )
    bias: float = option(-1.0, minimum=-20.0, maximum=20.0, description="every bias at the start")
    l1: float = option(0.0, minimum=0.0, maximum=1.0, description="penalty on every weight, for each picture")


# --- The paper's equations -------------------------------------------------------------------------------------------


def log_bernoulli(t: Float[Tensor, "*#B n"], logits: Float[Tensor, "*#B n"]) -> Float[Tensor, "*B"]:
    """§2: log Bernoulli(t; sigmoid(a)) = Σᵢ tᵢaᵢ − log(1 + e^aᵢ)."""
    return (t * logits).sum(-1) + functional.logsigmoid(-logits).sum(-1)


def log_p_tilde_star(a: PerSample) -> PerImage:
    """Eq. 4: log p̃*(x) ≃ 2 log (1/K) Σₖ √(p(x, hₖ)/q(hₖ|x)) with hₖ ~ q(h|x)."""
    return 2.0 * log_mean_exp(0.5 * a)


def log_p(a: PerSample) -> PerImage:
    """Eq. 5: log p(x) ≃ log (1/K) Σₖ p(x, hₖ)/q(hₖ|x) with hₖ ~ q(h|x)."""
    return log_mean_exp(a)


def importance_weights(a: PerSample) -> PerSample:
    """Eq. 6: ω̃ₖ = ωₖ/Σω with ωₖ = √(p(x, hₖ)/q(hₖ|x))."""
    return torch.softmax(0.5 * a, dim=1)


def surrogate_objective(log_p: PerSample, log_q: PerSample, *, baseline: bool) -> PerImage:
    """Eq. 6: a term whose gradient is Σₖ ω̃ₖ ∇[log p(x, hₖ) + log q(hₖ|x)], none through the weights.

    With the baseline q's weights are ω̃ₖ − 1/K: E_q ∇log q = 0, so that only the variance falls.
    """
    weights = importance_weights((log_p - log_q).detach())
    of_q = weights - 1.0 / weights.shape[1] if baseline else weights
    return (weights * log_p + of_q * log_q).sum(1)


def z_squared_log_weight(a_inferred: Float[Tensor, "*B"], a_drawn: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Eq. 7: log √(p(x,h′) q(h|x)/(p(x,h) q(h′|x))), whose exp has the mean Z² over (x,h) ~ p, h′ ~ q(h′|x)."""
    return 0.5 * (a_inferred - a_drawn)


# --- Options of the operations ---------------------------------------------------------------------------------------

_BINARIZATION = option(
    "draw",
    choices=("draw", "threshold", "none"),
    description="how grey pixels become binary: by a seeded Bernoulli draw (binary ones stay as they are), at 0.5, or"
    " not at all",
)
_OUTPUT = option(
    "means", choices=("means", "draws"), description="each pixel's probability given the layer above, or a draw of it"
)
_CANDIDATES = option(8, minimum=2, maximum=64, description="candidates for a layer, its present state among them")
_INNER = option(8, minimum=0, maximum=256, description="samples behind p̃*(x) of each candidate for x; 0 leaves it out")


@dataclass(frozen=True)
class SampleOptions:
    """How to draw from the model."""

    source: str = option(
        "p_star",
        choices=("p_star", "p", "block"),
        description="p*: Gibbs sweeps from a draw of p; p: one pass down; block: p* by resampling `pool` draws of p",
    )
    output: str = _OUTPUT
    steps: int = option(10, minimum=1, maximum=2000, description="Gibbs sweeps")
    candidates: int = _CANDIDATES
    inner: int = _INNER
    pool: int = option(100, minimum=2, maximum=1000, description="draws of p of which a block keeps one")


@dataclass(frozen=True)
class InpaintOptions:
    """How hidden pixels are filled."""

    binarization: str = _BINARIZATION
    output: str = _OUTPUT
    steps: int = option(50, minimum=1, maximum=2000, description="Gibbs sweeps; the paper takes 100")
    candidates: int = _CANDIDATES
    inner: int = _INNER
    pool: int = option(100, minimum=1, maximum=1000, description="draws of p of which the chain starts from one")


@dataclass(frozen=True)
class EncodeOptions:
    """How the layers' probabilities are averaged."""

    binarization: str = _BINARIZATION
    draws: int = option(16, minimum=1, maximum=1000, description="samples of the layers below averaged over")


@dataclass(frozen=True)
class EnergyOptions:
    """How the energy −log p̃* is estimated."""

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = option(100, minimum=1, maximum=1000, description="importance samples an image")


@dataclass(frozen=True)
class LikelihoodOptions:
    """How many importance samples estimate log p(x) and log p*(x); a standard error takes two."""

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = option(1000, minimum=2, maximum=100000, description="importance samples an image")


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """p, q and p*, and what can be asked of them. `images` hold 0 … 1 and become binary by `binarization`.

    `log_z` and `log_z_error` (nats) are measured by `evaluate` and travel with the weights; until then they are ∞ and
    no value of p* itself is given.
    """

    log_z: Tensor
    log_z_error: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        sizes = (config.channels * config.height * config.width, *config.hidden)
        self.q = nn.ModuleList(nn.Linear(lower, upper) for lower, upper in pairwise(sizes))
        self.p = nn.ModuleList(nn.Linear(upper, lower) for lower, upper in pairwise(sizes))
        self.top = nn.Parameter(torch.empty(sizes[-1]))
        self.sizes = sizes
        for name in ("log_z", "log_z_error"):
            self.register_buffer(name, torch.tensor(math.inf, dtype=torch.float64))

    def initialise(self, rows: RowStreams) -> None:
        """§4: Glorot's uniform law ±√(6/(fan-in + fan-out)) for weights; every bias `config.bias`.

        The authors' code divides that by the fan-in ("small").
        """
        for number, layer in enumerate([*self.q, *self.p]):
            drawn = 2.0 * rows.uniform(layer.weight.numel(), number) - 1.0
            bound = math.sqrt(6.0 / (layer.in_features + layer.out_features))
            if self.config.init == "small":
                bound /= layer.in_features
            layer.weight.data.copy_(drawn[0].view_as(layer.weight) * bound)
            layer.bias.data.fill_(self.config.bias)
        self.top.data.fill_(self.config.bias)

    def operations(self) -> dict[str, Any]:
        """What this model can do."""
        return describe(self)

    # The two directions

    def infer(self, x: Float[Tensor, "B #K D"], uniform16: Int16[Tensor, "B K n"]) -> tuple[Layers, PerSample]:
        """h ~ q(h|x), a list of (B, K, nₗ), and log q(h|x); `uniform16` decide the draws of all layers.

        `x` may hold one picture for all K samples, (B, 1, D): its first layer's logits are then computed once.
        """
        h: Layers = []
        log_q = uniform16.new_zeros(uniform16.shape[:2], dtype=torch.float32)
        below_it, first = x, 0
        for layer, size in zip(self.q, self.config.hidden, strict=True):
            logits = layer(below_it).float()
            drawn = bernoulli_from_int16(uniform16[..., first : first + size], logits.detach().sigmoid())
            log_q = log_q + log_bernoulli(drawn, logits)
            h.append(drawn)
            below_it, first = drawn, first + size
        return h, log_q

    def log_joint(self, x: Float[Tensor, "B #K D"], h: Layers) -> PerSample:
        """log p(x, h) = log p(h_L) + Σₗ log p(hₗ₋₁|hₗ), where h₀ = x may be (B, 1, D)."""
        total = log_bernoulli(h[-1], self.top)
        for layer, lower, upper in zip(self.p, [x, *h], h, strict=False):
            total = total + log_bernoulli(lower, layer(upper).float())
        return total

    def log_inferred(self, x: Float[Tensor, "B #K D"], h: Layers) -> PerSample:
        """log q(h|x) of given layers."""
        pairs = zip(self.q, [x, *h], h, strict=False)
        return torch.stack([log_bernoulli(upper, layer(lower).float()) for layer, lower, upper in pairs]).sum(0)

    def ancestral(self, uniform16: Int16[Tensor, "B K n"]) -> tuple[Tensor, Layers, Tensor]:
        """(x, h) ~ p from the top down, x (B, K, D), and the probabilities of x's pixels."""
        probability = self.top.float().sigmoid().expand(*uniform16.shape[:2], -1)
        h: Layers = []
        first = 0
        for layer, size in zip(reversed(self.p), reversed(self.config.hidden), strict=True):
            h.append(bernoulli_from_int16(uniform16[..., first : first + size], probability))
            probability = layer(h[-1]).float().sigmoid()
            first += size
        return bernoulli_from_int16(uniform16[..., first:], probability), h[::-1], probability

    def log_weights(self, x: Float[Tensor, "B D"], rows: RowStreams, first: int, count: int) -> PerSample:
        """a = log p(x, h) − log q(h|x) of importance samples `first` … `first + count − 1`, nats."""
        h, log_q = self.infer(x[:, None], rows.uniform_int16(sum(self.config.hidden), first, count, HIDDEN))
        return self.log_joint(x[:, None], h) - log_q

    # Training

    def loss(self, images: Images, rows: RowStreams, epoch: int = 0) -> PerImage:
        """−log p̃* of each image by eq. 4, with the gradient of eq. 6; nats. To learn from, the L1 penalty too."""
        late = epoch >= self.config.late_from
        count = self.config.late_samples if late else self.config.samples
        x = images.flatten(1)[:, None]
        h, log_q = self.infer(x, rows.uniform_int16(sum(self.config.hidden), 0, count, HIDDEN))
        log_p_joint = self.log_joint(x, h)
        value = log_p_tilde_star((log_p_joint - log_q).detach())
        carrier = surrogate_objective(log_p_joint, log_q, baseline=self.config.baseline)
        loss = carrier.detach() - carrier - value
        if self.config.l1 and torch.is_grad_enabled():
            loss = loss + self.config.l1 * sum(layer.weight.abs().sum() for layer in [*self.q, *self.p])
        return loss

    # Sampling

    @torch.inference_mode()
    def sample(
        self, rows: RowStreams, options: SampleOptions, state: dict[str, Tensor] | None = None
    ) -> dict[str, Any] | Continuation:
        """A draw from p, or from p* by Gibbs sweeps (one a call) or by resampling draws of p; `images` in 0 … 1.

        "block" also answers `effective_sample_size` (B,), the worth of the `pool` draws of p as draws of p*.
        """
        if options.source == "block":
            return self._block(rows, options, state)
        if state is None:
            x, h, means = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, 1, VISIBLE))
            chain, done = [x[:, 0], *(layer[:, 0] for layer in h)], 0
            if options.source == "p":
                return {"images": self._pictures(means[:, 0] if options.output == "means" else chain[0])}
        else:
            chain, done = self._unpacked(state["chain"]), _common(state["done"])
        chain = self._sweep(chain, rows, done, options, None)
        if done + 1 < options.steps:
            return self._partial(chain, done + 1, options.steps)
        return {"images": self._pictures(self._shown(chain, options.output))}

    @torch.inference_mode()
    def inpaint(
        self,
        images: Images,
        mask: Images,
        rows: RowStreams,
        options: InpaintOptions,
        state: dict[str, Tensor] | None = None,
    ) -> dict[str, Any] | Continuation:
        """§2.3: `images` (B, C, H, W) with what `mask` hides (≥ 0.5) drawn from p*(hidden | known); the rest as given.

        The chain starts from one of `pool` draws of p, chosen by the known pixels' likelihood; a sweep a call.
        ValueError where a mask hides nothing or everything.
        """
        hidden = mask.flatten(1) >= 0.5
        share = hidden.float().mean(1)
        if bool((share == 0).any() or (share == 1).any()):
            raise ValueError("the mask hides nothing or everything: hide some pixels (white) and keep some (black)")
        if state is None:
            x = self._binarized(images, rows.row_zero(), options.binarization)
            chain, done = self._start(x, hidden, rows, options.pool), 0
        else:
            chain, done = self._unpacked(state["chain"]), _common(state["done"])
        chain = self._sweep(chain, rows, done, options, hidden)
        if done + 1 < options.steps:
            return self._partial(chain, done + 1, options.steps)
        filled = torch.where(hidden, self._shown(chain, options.output), images.flatten(1))
        return {"images": self._pictures(filled), "binarization": options.binarization}

    # Encoding and scoring

    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """`layers.0` … : the probability q(hₗ = 1|x) of each hidden layer's units, (B, nₗ), over `draws` samples."""
        x = self._binarized(images, rows, options.binarization)[:, None]
        h, _ = self.infer(x, rows.uniform_int16(sum(self.config.hidden), 0, options.draws, HIDDEN))
        answer: dict[str, Any] = {"binarization": options.binarization}
        for number, (layer, lower) in enumerate(zip(self.q, [x, *h], strict=False)):
            answer[f"layers.{number}"] = layer(lower).sigmoid().mean(1)
        return answer

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: EnergyOptions) -> dict[str, Any]:
        """`energies` (B,): −log p̃*(x) by eq. 4, nats."""
        x = self._binarized(images, rows, options.binarization)
        energies = -log_p_tilde_star(self.log_weights(x, rows, 0, options.k))
        return {"energies": energies, "unit": "nats", "binarization": options.binarization}

    @torch.inference_mode()
    def log_likelihood(
        self, images: Images, rows: RowStreams, options: LikelihoodOptions, state: dict[str, Tensor] | None = None
    ) -> dict[str, Any] | Continuation:
        """Eqs. 4 and 5 with K = `k`, `CHUNK` samples a call; nats.

        The answer, (B,) each: `log_p` and `log_p_tilde_star` with standard errors (delta method) and effective sample
        sizes (`_star`: that of the weights √(p/q)), and `log_p_star` where `log_z` is known.
        """
        weights = Weights.start(len(rows), images.device) if state is None else Weights.from_state(state)
        roots = Weights.start(len(rows), images.device) if state is None else Weights.from_state(state, "root_")
        x = self._binarized(images, rows, options.binarization)
        a = self.log_weights(x, rows, weights.done, min(CHUNK, options.k - weights.done))
        weights, roots = weights.add(a), roots.add(0.5 * a)
        if len(rows) and weights.done < options.k:
            return Continuation({**weights.state(), **roots.state("root_")}, weights.done / options.k)
        answer: dict[str, Any] = {
            "log_p": weights.log_mean.float(),
            "standard_error": weights.error.float(),
            "effective_sample_size": weights.effective_sample_size.float(),
            "log_p_tilde_star": (2.0 * roots.log_mean).float(),
            "log_p_tilde_star_standard_error": (2.0 * roots.error).float(),
            "effective_sample_size_star": roots.effective_sample_size.float(),
            "k": options.k,
            "unit": "nats",
            "binarization": options.binarization,
        }
        if math.isfinite(float(self.log_z)):
            log_z, error = float(self.log_z), float(self.log_z_error)
            answer["log_p_star"] = (2.0 * (roots.log_mean - log_z)).float()
            answer["log_p_star_standard_error"] = (2.0 * (roots.error.square() + error**2).sqrt()).float()
            answer |= {"log_z": log_z, "log_z_standard_error": error}
        return answer

    # Measuring

    @torch.inference_mode()
    def estimate_log_z(
        self, seed: int, samples: int, report: Callable[[int], None] = lambda _: None
    ) -> dict[str, float]:
        """Eq. 7 with `samples` pairs: `log_z`, its `standard_error` by 50 batch means, the `largest` weight's share.

        log Z is biased low, and −2 log Z high, by about the squared error: quote the error beside it.
        """
        device = self.top.device
        size, found = 500, []
        for first in range(0, samples, size):
            row = RowStreams.range(seed, 0, 1, device)
            count = min(size, samples - first)
            x, h, _ = self.ancestral(row.uniform_int16(sum(self.sizes), first, count, VISIBLE))
            drawn = self.log_joint(x, h) - self.log_inferred(x, h)
            other, log_q = self.infer(x, row.uniform_int16(sum(self.config.hidden), first, count, HIDDEN))
            inferred = self.log_joint(x, other) - log_q
            found.append(z_squared_log_weight(inferred, drawn)[0].double())
            report(first + count)
        log_w = torch.cat(found)
        log_mean, error, largest = log_mean_batches(log_w[: len(log_w) // 50 * 50], 50)
        return {"log_z": 0.5 * float(log_mean), "standard_error": 0.5 * float(error), "largest": float(largest)}

    @torch.inference_mode()
    def evaluate(
        self,
        images: Images,
        seed: int,
        k: int,
        precision: str = "float32",
        report: Callable[[int], None] = lambda _: None,
        *,
        z_samples: int | None = None,
    ) -> list[dict[str, Any]]:
        """The card's figures on given binary pictures; measures log Z first, by `z_samples`, and keeps it in `log_z`.

        By default these are a thousand for each of `k`, so that a quick measurement is quick, and five million at most.
        `precision` "bfloat16" is that of the matrix products.
        """
        z_samples = min(1000 * k, 5_000_000) if z_samples is None else z_samples
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            z = self.estimate_log_z(seed, z_samples)
            self.log_z.fill_(z["log_z"])
            self.log_z_error.fill_(z["standard_error"])
            kept: dict[str, list[Tensor]] = {}
            for first in range(0, len(images), PICTURES):
                few = images[first : first + PICTURES]
                rows = RowStreams.range(seed, first, len(few), images.device)
                answer = self.log_likelihood(few, rows, LikelihoodOptions("none", k))
                while isinstance(answer, Continuation):
                    answer = self.log_likelihood(few, rows, LikelihoodOptions("none", k), answer.state)
                for name, value in answer.items():
                    if isinstance(value, Tensor):
                        kept.setdefault(name, []).append(value)
                report(first + len(few))
        on = f"{len(images)} test images, K = {k}, products in {precision}"
        return _figures({name: torch.cat(values).double() for name, values in kept.items()}, z, z_samples, k, on)

    # The Gibbs sampler (§2.3)

    def _sweep(
        self,
        chain: Layers,
        rows: RowStreams,
        number: int,
        options: SampleOptions | InpaintOptions,
        hidden: Tensor | None,
    ) -> Layers:
        """Every odd layer, then every even one, given its neighbours; layer 0 is x, of which only `hidden` moves."""
        chain = list(chain)
        for at in [*range(1, len(chain), 2), *range(0, len(chain), 2)]:
            n = self.sizes[at]
            uniform16 = rows.uniform_int16(n + 3, number * options.candidates, options.candidates, SWEEP + at)
            if at:
                candidates, log_w = self._layer_candidates(at, chain, uniform16)
            else:
                candidates, log_w = self._picture_candidates(chain, uniform16, rows, number, options.inner, hidden)
            chosen = resample(log_w, _uniform(uniform16[:, 0, n + 1 :]))
            chain[at] = candidates[torch.arange(len(chosen)), chosen]
        return chain

    def _layer_candidates(self, at: int, chain: Layers, uniform16: Int16[Tensor, "B J n"]) -> tuple[Tensor, PerSample]:
        """Candidates for hₗ from ½ p(hₗ|hₗ₊₁) + ½ q(hₗ|hₗ₋₁), the present state first, and their log weights.

        w = √(p(hₗ|hₗ₊₁) p(hₗ₋₁|hₗ) q(hₗ|hₗ₋₁) q(hₗ₊₁|hₗ)) / (p(hₗ|hₗ₊₁) + q(hₗ|hₗ₋₁)).
        """
        n, lower = self.sizes[at], chain[at - 1][:, None]
        upper = chain[at + 1][:, None] if at + 1 < len(chain) else None
        from_q = self.q[at - 1](lower)
        from_p = self.top.expand_as(from_q) if upper is None else self.p[at](upper)
        down = uniform16[..., n : n + 1] < 0
        candidates = bernoulli_from_int16(uniform16[..., :n], torch.where(down, from_p, from_q).sigmoid())
        candidates[:, 0] = chain[at]
        log_p_here, log_q_here = log_bernoulli(candidates, from_p), log_bernoulli(candidates, from_q)
        log_w = log_p_here + log_q_here + log_bernoulli(lower, self.p[at - 1](candidates))
        if upper is not None:
            log_w = log_w + log_bernoulli(upper, self.q[at](candidates))
        return candidates, 0.5 * log_w - torch.logaddexp(log_p_here, log_q_here)

    def _picture_candidates(
        self,
        chain: Layers,
        uniform16: Int16[Tensor, "B J n"],
        rows: RowStreams,
        number: int,
        inner: int,
        hidden: Tensor | None,
    ) -> tuple[Tensor, PerSample]:
        """Candidates for x from p(x|h₁), the present one first, and their log weights √(p̃*(x) q(h₁|x)/p(x|h₁)).

        Of a picture that is partly known, only the unknown pixels of the proposal count.
        """
        count, n = uniform16.shape[1], self.sizes[0]
        logits = self.p[0](chain[1])[:, None]
        candidates = bernoulli_from_int16(uniform16[..., :n], logits.sigmoid().expand(-1, count, -1))
        candidates[:, 0] = chain[0]
        if hidden is not None:
            candidates = torch.where(hidden[:, None], candidates, chain[0][:, None])
        # pixels that are known add the same to every candidate's log p(x|h₁), and cancel
        log_w = 0.5 * (log_bernoulli(chain[1][:, None], self.q[0](candidates)) - log_bernoulli(candidates, logits))
        if inner:
            log_w = log_w + 0.5 * self._log_p_tilde_star(candidates, rows, number * count, inner)
        return candidates, log_w

    def _log_p_tilde_star(self, x: Float[Tensor, "B J D"], rows: RowStreams, first: int, inner: int) -> PerSample:
        """Eq. 4 with K = `inner` for each of J pictures of a row, the `first`-th and following of its run, nats."""
        batch, count, _ = x.shape
        uniform16 = rows.uniform_int16(sum(self.config.hidden), first * inner, count * inner, INNER)
        flat = x.reshape(batch * count, 1, -1)
        h, log_q = self.infer(flat, uniform16.reshape(batch * count, inner, -1))
        return log_p_tilde_star(self.log_joint(flat, h) - log_q).view(batch, count)

    def _start(self, x: Float[Tensor, "B D"], hidden: Tensor, rows: RowStreams, pool: int) -> Layers:
        """h of one of `pool` draws of p, chosen by the known pixels' likelihood, and x with its hidden pixels."""
        drawn, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, pool, VISIBLE))
        logits = self.p[0](h[0])
        known = torch.where(hidden[:, None], 0.0, x[:, None] * logits + functional.logsigmoid(-logits))
        chosen = resample(known.sum(-1), rows.uniform(1, CHOICE)[:, 0])
        at = torch.arange(len(chosen))
        return [torch.where(hidden, drawn[at, chosen], x), *(layer[at, chosen] for layer in h)]

    def _block(
        self, rows: RowStreams, options: SampleOptions, state: dict[str, Tensor] | None
    ) -> dict[str, Any] | Continuation:
        """§2.3, as the authors' code samples: draws of p resampled with the weights √(p̃*(x) q(h|x)/p(x, h)).

        `BLOCK` draws a call: the one kept so far is replaced by one of the new with their share of all weights.
        """
        weights = Weights.start(len(rows), rows.row.device) if state is None else Weights.from_state(state)
        first = weights.done
        count, inner = min(BLOCK, options.pool - first), max(1, options.inner)
        x, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), first, count, VISIBLE))
        drawn = self.log_joint(x, h) - self.log_inferred(x, h)
        log_w = 0.5 * (self._log_p_tilde_star(x, rows, first, inner) - drawn)
        new = [layer[torch.arange(len(rows)), resample(log_w, self._choice(rows, 2 * first))] for layer in [x, *h]]
        total = weights.add(log_w)
        chain = new
        if state is not None:
            keep = self._choice(rows, 2 * first + 1).double().log() < weights.log_sum - total.log_sum
            pairs = zip(self._unpacked(state["chain"]), new, strict=True)
            chain = [torch.where(keep[:, None], old, fresh) for old, fresh in pairs]
        done = first + count
        if done < options.pool:
            packed = {"chain": torch.cat(chain, dim=1).to(torch.uint8), **total.state()}
            return Continuation(packed, done / options.pool, self._pictures(self._shown(chain, "means")))
        size = total.effective_sample_size.float().round(decimals=1)  # more digits would tell of the batch's shape
        return {"images": self._pictures(self._shown(chain, options.output)), "effective_sample_size": size}

    def _choice(self, rows: RowStreams, number: int) -> PerImage:
        """One uniform number a row, the `number`-th."""
        return _uniform(rows.uniform_int16(2, number, 1, CHOICE)[:, 0])

    def _partial(self, chain: Layers, done: int, steps: int) -> Continuation:
        packed = torch.cat(chain, dim=1).to(torch.uint8)
        counts = torch.full((len(packed),), done, device=packed.device)
        preview = self._pictures(self._shown(chain, "means"))
        return Continuation({"chain": packed, "done": counts}, done / steps, preview)

    def _unpacked(self, chain: Tensor) -> Layers:
        return list(torch.split(chain.float(), list(self.sizes), dim=1))

    def _shown(self, chain: Layers, output: str) -> Float[Tensor, "B D"]:
        shown: Tensor = self.p[0](chain[1]).sigmoid() if output == "means" else chain[0]
        return shown

    def _pictures(self, x: Float[Tensor, "B D"]) -> Images:
        return x.view(-1, self.config.channels, self.config.height, self.config.width)

    def _binarized(self, images: Images, rows: RowStreams, how: str) -> Float[Tensor, "B D"]:
        x = images.flatten(1)
        if how == "none":
            return x
        return rows.bernoulli(x, BINARIZE) if how == "draw" else (x >= 0.5).to(x.dtype)


def _uniform(uniform16: Int16[Tensor, "B n"]) -> PerImage:
    """One number in [0, 1) of two signed 16-bit ones."""
    high, low = (uniform16[:, i].double() + 32768.0 for i in (0, 1))
    return ((high * 65536.0 + low) * 2.0**-32).float().clamp_max(1.0 - 2.0**-24)


def _common(done: Tensor) -> int:
    """How far all rows are; ValueError where they differ."""
    if len(done) and not bool((done == done[0]).all()):
        raise ValueError("the rows of a batch must be equally far")
    return int(done[0]) if len(done) else 0


def _figures(
    values: dict[str, Float[Tensor, "N"]], z: dict[str, float], z_samples: int, k: int, on: str
) -> list[dict[str, Any]]:
    """Figures as a card holds them."""

    def figure(name: str, unit: str, better: str, value: float, detail: str) -> dict[str, Any]:
        return {"name": name, "value": round(value, 3), "unit": unit, "better": better, "detail": detail}

    def mean(name: str, label: str, detail: str) -> dict[str, Any]:
        spread = float(values[name].std()) / math.sqrt(len(values[name]))
        return figure(label, "nats", "higher", float(values[name].mean()), f"{detail}, mean of {on}; s.e. {spread:.3f}")

    z_detail = (
        f"{z_samples} samples of eq. 7; standard error {2.0 * z['standard_error']:.4f} by batch means, largest weight "
        f"{100.0 * z['largest']:.3f} % of all"
    )
    found = [
        mean("log_p_star", "log_p_star", "log p*(x)"),
        mean("log_p", "log_p", "log p(x) by q's samples"),
        mean("log_p_tilde_star", "log_p_tilde_star", "the bound log p~*(x)"),
        figure("minus_2_log_z", "nats", "lower", -2.0 * z["log_z"], z_detail),
    ]
    for name, of in (("effective_sample_size_star", "sqrt(p/q)"), ("effective_sample_size", "p/q")):
        share = 100.0 * float(values[name].mean()) / k
        found.append(figure(name, "%", "higher", share, f"of K, weights {of}, mean of {on}"))
    return found
