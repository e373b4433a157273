r"""Bidirectional Helmholtz Machines, Bornschein et al., arXiv:1506.03877v5 (ICML 2016).

    paper              here                  shape     unit   equation
    x                  x                     B D       1      -
    h₁ … h_L           h (a list)            B K nₗ    1      -
    log p(x, h)        log_p                 B K       nats   §2
    log q(h|x)         log_q                 B K       nats   §2
    log p − log q      a                     B K       nats   -
    p*(x, h)           √(p q)/Z              -         -      1
    log p̃*(x)          log_p_tilde_star      B         nats   4
    log p(x)           log_p                 B         nats   5
    ω̃ₖ                 importance_weights    B K       1      6
    ∇ log p̃*(x)        surrogate_objective   B         nats   6, Algorithm 1
    log Z²             z_squared_log_weight  N         nats   7
    log p*(x)          log_p_tilde_star − 2 log Z      B      nats   -

K counts the samples of one image and is axis 1. p is top-down, p(h_L) ∏ p(hₗ₋₁|hₗ); q is bottom-up,
q(h|x) = ∏ q(hₗ|hₗ₋₁); every layer is Bernoulli(sigmoid(Wh + b)). The model is p*(x) = (Σ_h √(p(x,h)
q(h|x)))²/Z². The paper trains the bound p̃*(x) = Z² p*(x), which exceeds neither p*(x) nor p(x). A
loss is −log p̃*, one number per image, in nats.

Departs from the paper: q's weights have the baseline 1/K of the authors' code by default; no L1
penalty by default; the sleep phase and the weight of log Z² are our own options. The Gibbs sampler
draws each proposal from an equal mixture of p(hₗ|hₗ₊₁) and q(hₗ|hₗ₋₁) instead of half from each,
and the current state is one of the proposals, which leaves p* invariant whatever their number. The
weight of a proposal for x has the factor √p̃*(x), estimated again in every sweep with `inner`
samples; its bias decreases with their number.

This file has more than 400 lines because one paper is one file.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.kit import bernoulli
from models.kit.codes import CodeActivity, CodeFormat
from models.kit.figures import Figures, Report, figure, mean_figure, no_report
from models.kit.operations import Continuation, Result, State, describe, samples_per_call
from models.kit.row_streams import CHOICE, FIRST_FREE, OUTPUT, RowStreams, bernoulli_from_int16
from models.kit.sampling import ImportanceWeights, common_progress, log_mean_batches, log_mean_exp, resample
from models.kit.schema import binarization, importance_samples, option
from models.kit.shapes import Float, Images, Int16, PerImage, Tensor

PerSample = Float[Tensor, "B K"]
Pixels = Float[Tensor, "B D"]
ImageSamples = Float[Tensor, "B #K D"]
RandomIntegers = Int16[Tensor, "B K n"]
Layers = list[Tensor]

SAMPLES_PER_CALL, POOL_PER_CALL = 200, 10  # importance samples, and draws of p for "block", of one call
IMAGES_PER_BATCH = 20  # of `evaluate`
MODEL_SAMPLES = 10  # draws of p per image of a training batch, for the sleep phase and for log Z
HIDDEN, VISIBLE, INNER = range(FIRST_FREE, FIRST_FREE + 3)  # streams: draws of q, of p, and for p̃* in a sweep
SWEEP = 16  # stream of layer 0 in a Gibbs sweep; layer l has SWEEP + l
VALIDATION_DRAWS = 100_000  # of log Z² in the validation loss of a training with `z_weight`
DECODE = 128  # stream of layer 0 in a decoding; layer l has DECODE + l


@dataclass(frozen=True)
class Config:
    """Configuration of a BiHM: image shape, layers, initialisation and loss.

    By default the images are MNIST's and the layers are the paper's twelve.
    """

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels")
    width: int = option(28, minimum=1, maximum=4096, description="pixels")
    hidden: tuple[int, ...] = option(
        (300, 200, 100, 75, 50, 35, 30, 25, 20, 15, 10, 10),
        minimum=1,
        maximum=4096,
        description="units of the hidden layers, from the image upwards",
    )
    samples: int = option(10, minimum=1, maximum=10000, description="K, importance samples per image")
    late_samples: int = option(100, minimum=1, maximum=10000, description="K from epoch `late_from` on")
    late_from: int = option(10**9, minimum=0, maximum=10**9, description="the first epoch with `late_samples`, from 0")
    baseline: bool = option(
        default=True, description="subtract 1/K from q's weights, which lowers the variance and leaves the mean"
    )
    init: str = option(
        "glorot", choices=("glorot", "small"), description="of the weights; small: Glorot's divided by the fan-in"
    )
    bias: float = option(-1.0, minimum=-20.0, maximum=20.0, description="initial value of every bias")
    l1: float = option(0.0, minimum=0.0, maximum=1.0, description="L1 penalty on the weights, per image")
    prior: float = option(
        0.0,
        minimum=0.0,
        maximum=1e6,
        description="rate of a Laplace prior of the weights: an L1 penalty of this over the number of training images",
    )
    overfitting: float = option(
        0.0,
        minimum=0.0,
        maximum=10.0,
        description="when the validation loss exceeds its minimum by this fraction, the training returns to its initial"
        " weights, and the prior begins; 0: the prior applies from the first step",
    )
    sleep: float = option(
        0.0, minimum=0.0, maximum=10.0, description="weight of the sleep phase, which the paper lacks"
    )
    z_weight: float = option(
        0.0, minimum=0.0, maximum=10.0, description="weight of log Z² in the objective; the paper has none"
    )


# --- The paper's equations -------------------------------------------------------------------------------------------


def log_bernoulli(t: Float[Tensor, "*#B n"], logits: Float[Tensor, "*#B n"]) -> Float[Tensor, "*B"]:
    """Return log Bernoulli(t; sigmoid(a)) = Σᵢ tᵢaᵢ − log(1 + e^aᵢ) in nats (BiHM §2).

    a is `logits`; i runs over the last axis.
    """
    return bernoulli.log_probability(t, logits)


def log_p_tilde_star(a: PerSample) -> PerImage:
    """Return log p̃*(x) ≃ 2 log (1/K) Σₖ √(p(x, hₖ)/q(hₖ|x)) in nats (BiHM eq. 4).

    `a` is log p(x, hₖ) − log q(hₖ|x) of K samples hₖ ~ q(h|x), in nats.
    """
    return 2.0 * log_mean_exp(0.5 * a)


def log_p(a: PerSample) -> PerImage:
    """Return log p(x) ≃ log (1/K) Σₖ p(x, hₖ)/q(hₖ|x) in nats (BiHM eq. 5).

    `a` is log p(x, hₖ) − log q(hₖ|x) of K samples hₖ ~ q(h|x), in nats.
    """
    return log_mean_exp(a)


def importance_weights(a: PerSample) -> PerSample:
    """Return ω̃ₖ = ωₖ/Σω with ωₖ = √(p(x, hₖ)/q(hₖ|x)), which add up to 1 (BiHM eq. 6).

    `a` is log p(x, hₖ) − log q(hₖ|x) of K samples hₖ ~ q(h|x), in nats.
    """
    return torch.softmax(0.5 * a, dim=1)


def surrogate_objective(log_p: PerSample, log_q: PerSample, *, baseline: bool) -> PerImage:
    """Return numbers whose gradient is an estimate of ∇ log p̃*(x) (BiHM eq. 6, Algorithm 1).

    There is one number per image; the values have no meaning. `log_p` is log p(x, hₖ) and `log_q`
    is log q(hₖ|x). The gradient is Σₖ ω̃ₖ ∇[log p(x, hₖ) + log q(hₖ|x)]; the weights ω̃ₖ are
    treated as constants. With `baseline`, the weights of ∇ log q are ω̃ₖ − 1/K, which lowers the
    variance; the mean stays, as E_q ∇ log q = 0.
    """
    weights = importance_weights((log_p - log_q).detach())
    q_weights = weights - 1.0 / weights.shape[1] if baseline else weights
    return (weights * log_p + q_weights * log_q).sum(1)


def z_squared_log_weight(a_inferred: Float[Tensor, "*B"], a_drawn: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return log √(p(x,h′) q(h|x)/(p(x,h) q(h′|x))) for (x, h) ~ p and h′ ~ q(h′|x) (BiHM eq. 7).

    The mean of its exponential over such draws is Z². `a_inferred` is log p(x, h′) − log q(h′|x),
    and `a_drawn` is log p(x, h) − log q(h|x), in nats.
    """
    return 0.5 * (a_inferred - a_drawn)


# --- Options of the operations ---------------------------------------------------------------------------------------

_BINARIZATION = binarization()
_OUTPUT = option(
    "means", choices=("means", "draws"), description="each pixel's probability given the layer above, or a draw of it"
)
_CANDIDATES = option(8, minimum=2, maximum=64, description="candidates for a layer, its present state among them")
_INNER = option(8, minimum=0, maximum=256, description="samples behind p̃*(x) of each candidate for x; 0 leaves it out")


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`: the distribution, p or p*, the sampling method, and the kind of output.

    `steps` and `candidates` apply to the Gibbs sampler (`source` "p_star"), and `pool` to "block".
    `inner` applies to both: it is the number of samples that estimate p̃*(x) of an image x.
    """

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
    """Options of `inpaint`: how images are binarized, the Gibbs sampler, and the kind of output.

    `pool` is the number of samples drawn from the generative model p. The Gibbs chain starts from
    one of these samples, chosen with probability proportional to its likelihood of the known
    pixels, and does `steps` sweeps. A sweep resamples each layer from `candidates` proposals, of
    which the first is the layer's present state. `inner` is the number of samples that estimate
    p̃*(x) of each proposal for the image x; 0 leaves this factor out of the proposal's weight.
    """

    binarization: str = _BINARIZATION
    output: str = _OUTPUT
    steps: int = option(50, minimum=1, maximum=2000, description="Gibbs sweeps; the paper takes 100")
    candidates: int = _CANDIDATES
    inner: int = _INNER
    pool: int = option(100, minimum=1, maximum=1000, description="draws of p of which the chain starts from one")


GibbsOptions = SampleOptions | InpaintOptions


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`: the layer whose states are given, their binarization, and the output.

    Without `layer`, the states of the top layer are given. `output` is "means" or "draws" of
    pixels.
    """

    layer: int | None = option(
        None, minimum=0, maximum=63, description="which layer's states are given, from the lowest, 0"
    )
    binarization: str = option(
        "draw",
        choices=("draw", "threshold", "none"),
        description="how the states become binary: by a seeded Bernoulli draw (binary ones stay as they are), at 0.5,"
        " or not at all",
    )
    output: str = _OUTPUT


@dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`: how images are binarized, and the number of samples in each mean.

    An estimate of q(hₗ = 1|x) is the mean over `draws` samples of the layers below hₗ.
    """

    binarization: str = _BINARIZATION
    draws: int = option(16, minimum=1, maximum=1000, description="samples of the layers below averaged over")


@dataclass(frozen=True)
class EnergyOptions:
    """Options of `energy`: how images are binarized, and the number of importance samples.

    `k` is the number K of samples h ~ q(h|x) per image (BiHM eq. 4).
    """

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = importance_samples(100, minimum=1, maximum=1000)


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of `log_likelihood`: how images are binarized, and the number K of importance
    samples.

    K is at least two, because the standard error of one sample is undefined.
    """

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = importance_samples(1000)


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A bidirectional Helmholtz machine: the networks of p and q, and the operations of the model.

    `images` are (B, C, H, W) in 0 … 1; an operation binarizes them by its option `binarization`.
    During a training, `training_images` is the number of its images; otherwise it is 1. While
    `prior_active` is False, the loss has no term of `config.prior`. The estimate of log Z and its
    standard error (nats), `log_z` and `log_z_error`, are set by `evaluate` and stored with the
    weights. Before that they are ∞, and `log_likelihood` omits log p*(x).
    """

    CUDA_GRAPH: ClassVar[bool] = True  # `loss` never waits for the device

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
        self.training_images = 1  # set by a training
        self.prior_active = not config.overfitting  # set by a training that overfits
        for name in ("log_z", "log_z_error"):
            self.register_buffer(name, torch.tensor(math.inf, dtype=torch.float64))

    def initialise(self, rows: RowStreams) -> None:
        """Draw the weights by Glorot's rule (BiHM §4), and set every bias to `config.bias`.

        Weights are uniform in ±√(6/(fan-in + fan-out)). With `config.init` = "small" this bound is
        divided by the fan-in, as in the authors' code. `rows` has a single row, whose random
        numbers determine all weights.
        """
        for number, layer in enumerate([*self.q, *self.p]):
            values = 2.0 * rows.uniform(layer.weight.numel(), number) - 1.0
            bound = math.sqrt(6.0 / (layer.in_features + layer.out_features))
            if self.config.init == "small":
                bound /= layer.in_features
            layer.weight.data.copy_(values[0].view_as(layer.weight) * bound)
            layer.bias.data.fill_(self.config.bias)
        self.top.data.fill_(self.config.bias)

    def operations(self) -> dict[str, Any]:
        """Return the description of each operation in the model card's format, keyed by name."""
        described = describe(self)
        top = len(self.config.hidden) - 1
        described["decode"]["options"]["properties"]["layer"].update(type="integer", maximum=top, default=top)
        return described

    # The two directions

    def infer(self, x: ImageSamples, uniform16: RandomIntegers) -> tuple[Layers, PerSample]:
        """Draw h ~ q(h|x), a list of L layers (B, K, nₗ), and return it with log q(h|x) in nats.

        `uniform16` has a uniform 16-bit integer for each unit of all hidden layers. `x` is (B, K,
        D), or (B, 1, D) if all K samples belong to one image; the first layer's logits are then
        computed once.
        """
        h: Layers = []
        log_q = uniform16.new_zeros(uniform16.shape[:2], dtype=torch.float32)
        lower, first = x, 0
        for layer, size in zip(self.q, self.config.hidden, strict=True):
            logits = layer(lower).float()
            sampled = bernoulli_from_int16(uniform16[..., first : first + size], logits.detach().sigmoid())
            log_q = log_q + log_bernoulli(sampled, logits)
            h.append(sampled)
            lower, first = sampled, first + size
        return h, log_q

    def log_joint(self, x: ImageSamples, h: Layers) -> PerSample:
        """Return log p(x, h) = log p(h_L) + Σₗ log p(hₗ₋₁|hₗ) in nats, where h₀ = x.

        `x` is (B, K, D), or (B, 1, D) if all K samples belong to one image.
        """
        total = log_bernoulli(h[-1], self.top)
        for layer, lower, upper in zip(self.p, [x, *h], h, strict=False):
            total = total + log_bernoulli(lower, layer(upper).float())
        return total

    def log_inferred(self, x: ImageSamples, h: Layers) -> PerSample:
        """Return log q(h|x) = Σₗ log q(hₗ|hₗ₋₁) of given layers `h` in nats, where h₀ = x."""
        pairs = zip(self.q, [x, *h], h, strict=False)
        return torch.stack([log_bernoulli(upper, layer(lower).float()) for layer, lower, upper in pairs]).sum(0)

    def ancestral(self, uniform16: RandomIntegers) -> tuple[Float[Tensor, "B K D"], Layers, Float[Tensor, "B K D"]]:
        """Draw an image and its hidden layers, (x, h), from the generative model p.

        The layers are drawn from the top layer down. `uniform16` has a uniform 16-bit integer for
        each unit of the hidden layers and each pixel of x.

        Returns x (B, K, D), the list h of layers (B, K, nₗ), and p(x = 1|h₁) of each pixel (B, K,
        D).
        """
        probability = self.top.float().sigmoid().expand(*uniform16.shape[:2], -1)
        h: Layers = []
        first = 0
        for layer, size in zip(reversed(self.p), reversed(self.config.hidden), strict=True):
            h.append(bernoulli_from_int16(uniform16[..., first : first + size], probability))
            probability = layer(h[-1]).float().sigmoid()
            first += size
        return bernoulli_from_int16(uniform16[..., first:], probability), h[::-1], probability

    def log_weights(self, x: Pixels, rows: RowStreams, first: int, count: int) -> PerSample:
        """Return log p(x, h) − log q(h|x) of `count` importance samples h ~ q(h|x), in nats.

        Each row of `rows` determines a sequence of samples h; the `count` samples from index
        `first` on are used.
        """
        h, log_q = self.infer(x[:, None], rows.uniform_int16(sum(self.config.hidden), first, count, HIDDEN))
        return self.log_joint(x[:, None], h) - log_q

    # Training

    # See docs/decisions.md#the-helmholtz-machine-is-trained-without-a-compiler
    def loss(self, images: Images, rows: RowStreams, epoch: int = 0) -> PerImage:
        """Return −log p̃*(x) of each image in nats (BiHM eq. 4), with the gradient of Algorithm 1.

        K is `config.samples`, or `config.late_samples` from the epoch `config.late_from` on. While
        gradients are recorded, the L1 penalty of `config.l1` and `config.prior` is added, and also
        the gradients of the sleep phase and of −`config.z_weight` log Z².
        """
        late = epoch >= self.config.late_from
        count = self.config.late_samples if late else self.config.samples
        x = images.flatten(1)[:, None]
        h, log_q = self.infer(x, rows.uniform_int16(sum(self.config.hidden), 0, count, HIDDEN))
        log_p_joint = self.log_joint(x, h)
        value = log_p_tilde_star((log_p_joint - log_q).detach())
        surrogate = surrogate_objective(log_p_joint, log_q, baseline=self.config.baseline)
        loss = surrogate.detach() - surrogate - value
        prior = self.config.prior if self.prior_active else 0.0
        l1 = self.config.l1 + prior / self.training_images
        if l1 and torch.is_grad_enabled():
            loss = loss + l1 * sum(layer.weight.abs().sum() for layer in [*self.q, *self.p])
        if self.config.sleep and torch.is_grad_enabled():
            sleep = self.config.sleep * self.sleep_loss(rows)
            loss = loss + sleep - sleep.detach()
        if self.config.z_weight and torch.is_grad_enabled():
            log_z = self.config.z_weight * self.log_z_surrogate(rows)
            loss = loss - (log_z - log_z.detach())
        return loss

    def validation_penalty(self, seed: int) -> float:
        """Return −`config.z_weight` log Z² in nats, the part of the objective that has no image.

        log Z is estimated by `VALIDATION_DRAWS` draws; without a weight the result is 0.
        """
        if not self.config.z_weight:
            return 0.0
        return -2.0 * self.config.z_weight * self.estimate_log_z(seed, VALIDATION_DRAWS)["log_z"]

    def sleep_loss(self, rows: RowStreams) -> PerImage:
        """Return −log q(h|x) in nats, per row the mean of `MODEL_SAMPLES` draws (x, h) ~ p.

        This is the sleep phase of wake-sleep (Hinton et al., 1995); only q has a gradient. The
        gradient makes q(h|x) cover p(h|x) on the images that p draws, which raises Z (BiHM eq. 7).
        """
        with torch.no_grad():
            x, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, MODEL_SAMPLES, VISIBLE))
        return -self.log_inferred(x, h).mean(1)

    def log_z_surrogate(self, rows: RowStreams) -> Float[Tensor, ""]:
        """Return a number whose gradient is an estimate of ∇ log Z² (BiHM eq. 7); its value has no
        meaning.

        With w = √(p(x,h′) q(h|x)/(p(x,h) q(h′|x))) of draws (x, h) ~ p and h′ ~ q(h′|x), the mean
        of w is Z² = Σ √(p(x,h) q(h|x) p(x,h′) q(h′|x)). So ∇ log Z² is the mean of the gradient
        ½∇[log p(x,h) + log q(h|x) + log p(x,h′) + log q(h′|x)], weighted by w over the sum of all
        w. Each row has `MODEL_SAMPLES` draws.
        """
        with torch.no_grad():
            x, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, MODEL_SAMPLES, VISIBLE))
        log_p, log_q = self.log_joint(x, h), self.log_inferred(x, h)
        other, log_q_other = self.infer(x, rows.uniform_int16(sum(self.config.hidden), 0, MODEL_SAMPLES, INNER))
        log_p_other = self.log_joint(x, other)
        log_w = z_squared_log_weight(log_p_other - log_q_other, log_p - log_q).detach()
        weights = torch.softmax(log_w.flatten(), 0).view_as(log_w)
        return 0.5 * (weights * (log_p + log_q + log_p_other + log_q_other)).sum()

    # Sampling

    @torch.inference_mode()
    def sample(self, rows: RowStreams, options: SampleOptions, state: State = None) -> Result:
        """Draw `images` (B, C, H, W) in 0 … 1 from p or p*, as the option `source` says.

        "p" draws from p in one call. "p_star" draws from p* by Gibbs sweeps, one per call. "block"
        draws `pool` samples from p and chooses one by importance weights, so that it is
        approximately a sample from p*; it also returns `effective_sample_size` (B,) of these
        weights, between 1 and `pool`.

        Every call but the last returns a `Continuation`. `state` is None in the first call, later
        the state of the previous `Continuation`.
        """
        if options.source == "block":
            return self._sample_block(rows, options, state)
        if state is None:
            x, h, means = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, 1, VISIBLE))
            chain, done = [x[:, 0], *(layer[:, 0] for layer in h)], 0
            if options.source == "p":
                return {"images": self._to_images(means[:, 0] if options.output == "means" else chain[0])}
        else:
            chain, done = self._unpack(state["chain"]), common_progress(state["done"])
        chain = self._gibbs_sweep(chain, rows, done, options, None)
        if done + 1 < options.steps:
            return self._continuation(chain, done + 1, options.steps)
        return {"images": self._to_images(self._output_pixels(chain, options.output))}

    @torch.inference_mode()
    def inpaint(
        self, images: Images, mask: Images, rows: RowStreams, options: InpaintOptions, state: State = None
    ) -> Result:
        """Draw the pixels where `mask` ≥ 0.5 from p*, given the other pixels (BiHM §2.3).

        Returns `images`, in which the pixels outside the mask are unchanged. The Gibbs chain starts
        from one of `pool` draws of p, chosen by the likelihood of the given pixels, and does one
        sweep per call. Every call but the last returns a `Continuation`. `state` is None in the
        first call, later the state of the previous `Continuation`. Raises ValueError if a mask
        hides no pixel or every pixel.
        """
        hidden = mask.flatten(1) >= 0.5
        share = hidden.float().mean(1)
        if bool((share == 0).any() or (share == 1).any()):
            raise ValueError("the mask hides nothing or everything: hide some pixels (white) and keep some (black)")
        if state is None:
            x = rows.row_zero().binarize(images.flatten(1), options.binarization)
            chain, done = self._start_chain(x, hidden, rows, options.pool), 0
        else:
            chain, done = self._unpack(state["chain"]), common_progress(state["done"])
        chain = self._gibbs_sweep(chain, rows, done, options, hidden)
        if done + 1 < options.steps:
            return self._continuation(chain, done + 1, options.steps)
        filled = torch.where(hidden, self._output_pixels(chain, options.output), images.flatten(1))
        return {"images": self._to_images(filled), "binarization": options.binarization}

    # Encoding and scoring

    @torch.inference_mode()
    def decode(self, codes: Float[Tensor, "B n"], rows: RowStreams, options: DecodeOptions) -> dict[str, Any]:
        """Draw from p(x|hₗ), given the states hₗ = `codes`, l = `layer` + 1; return `images` in 0 …
        1.

        The layers below are drawn from p, from the top down. The option `output` chooses the
        probabilities of the pixels given the lowest layer, or draws.
        """
        state = rows.binarize(codes, options.binarization)
        layer = len(self.config.hidden) - 1 if options.layer is None else options.layer
        for lower in range(layer, 0, -1):
            state = rows.bernoulli(self.p[lower](state).float().sigmoid(), DECODE + lower)
        means = self.p[0](state).float().sigmoid()
        images = means if options.output == "means" else rows.bernoulli(means, OUTPUT)
        return {"images": self._to_images(images), "binarization": options.binarization}

    def code_format(self) -> CodeFormat:
        """Return the format of the latent codes that `decode` reads: the states of one layer.

        A value of a latent code is the state of a unit, 0 or 1, or the probability that the state
        is 1.
        """
        return CodeFormat(self.config.hidden, 0.0, 1.0, "layer")

    @torch.inference_mode()
    def code_activity(self, images: Images, rows: RowStreams) -> CodeActivity:
        """Return the standard deviation over images of q(h = 1|x) of each unit of the top layer.

        The units of the top layer are the values of a latent code.
        """
        parts = [slice(first, first + 500) for first in range(0, len(images), 500)]
        options = EncodeOptions("none")
        encoded = [self.encode(images[part], RowStreams(rows.seed[part], rows.row[part]), options) for part in parts]
        top = torch.cat([layers[f"layers.{len(self.config.hidden) - 1}"] for layers in encoded])
        measure = f"standard deviation of q(h = 1|x) of the top layer over {len(images)} pictures"
        return CodeActivity(top.std(dim=0, correction=0), measure)

    # See docs/decisions.md#layers-of-different-widths-are-numbered-fields
    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """Estimate q(hₗ = 1|x) for each unit of each hidden layer.

        Returns the fields `layers.0`, `layers.1`, … of shape (B, nₗ), where `layers.0` is h₁, the
        layer next to the image. An estimate is the mean over `draws` samples of the layers below
        hₗ, which are drawn from q.
        """
        x = rows.binarize(images.flatten(1), options.binarization)[:, None]
        h, _ = self.infer(x, rows.uniform_int16(sum(self.config.hidden), 0, options.draws, HIDDEN))
        result: dict[str, Any] = {"binarization": options.binarization}
        for number, (layer, lower) in enumerate(zip(self.q, [x, *h], strict=False)):
            result[f"layers.{number}"] = layer(lower).sigmoid().mean(1)
        return result

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: EnergyOptions) -> dict[str, Any]:
        """Return `energies` (B,): −log p̃*(x) in nats, estimated by K = `k` samples (eq. 4)."""
        x = rows.binarize(images.flatten(1), options.binarization)
        energies = -log_p_tilde_star(self.log_weights(x, rows, 0, options.k))
        return {"energies": energies, "unit": "nats", "binarization": options.binarization}

    @torch.inference_mode()
    def log_likelihood(
        self, images: Images, rows: RowStreams, options: LikelihoodOptions, state: State = None
    ) -> Result:
        """Estimate log p(x) (BiHM eq. 5) and log p̃*(x) (eq. 4) with K = `k` samples, in nats.

        Returns, (B,) each: `log_p`, its `standard_error` (by the delta method) and the
        `effective_sample_size` of the weights p/q; and `log_p_tilde_star`, its
        `log_p_tilde_star_standard_error` and the `effective_sample_size_star` of the weights
        √(p/q). If log Z is known, also `log_p_star` and `log_p_star_standard_error`.

        Each call draws at most `SAMPLES_PER_CALL` samples, fewer for many images, and every call
        but the last returns a `Continuation`. `state` is None in the first call, later the state of
        the previous `Continuation`.
        """
        weights = ImportanceWeights.resume(state, len(rows), images.device)
        roots = ImportanceWeights.resume(state, len(rows), images.device, "root_")
        x = rows.binarize(images.flatten(1), options.binarization)
        count = min(samples_per_call(images, SAMPLES_PER_CALL), options.k - weights.done)
        a = self.log_weights(x, rows, weights.done, count)
        weights, roots = weights.add(a), roots.add(0.5 * a)
        if len(rows) and weights.done < options.k:
            return Continuation({**weights.state(), **roots.state("root_")}, weights.done / options.k)
        result: dict[str, Any] = {
            "log_p": weights.log_mean.float(),
            "standard_error": weights.standard_error.float(),
            "effective_sample_size": weights.effective_sample_size.float(),
            "log_p_tilde_star": (2.0 * roots.log_mean).float(),
            "log_p_tilde_star_standard_error": (2.0 * roots.standard_error).float(),
            "effective_sample_size_star": roots.effective_sample_size.float(),
            "k": options.k,
            "unit": "nats",
            "binarization": options.binarization,
        }
        if math.isfinite(float(self.log_z)):
            log_z, error = float(self.log_z), float(self.log_z_error)
            result["log_p_star"] = (2.0 * (roots.log_mean - log_z)).float()
            result["log_p_star_standard_error"] = (2.0 * (roots.standard_error.square() + error**2).sqrt()).float()
            result |= {"log_z": log_z, "log_z_standard_error": error}
        return result

    # Measuring

    # See docs/decisions.md#log-z-is-stored-with-the-helmholtz-machines-weights
    @torch.inference_mode()
    def estimate_log_z(self, seed: int, samples: int, report: Report = no_report) -> dict[str, float]:
        """Estimate log Z in nats by BiHM eq. 7 with `samples` draws of (x, h) ~ p and h′ ~ q(h′|x).

        Returns `log_z`; its `standard_error`, from the means of 50 batches of draws; and `largest`,
        the largest weight divided by the sum of all weights. log Z is biased low, and −2 log Z
        high, by about the squared standard error: publish the error with the estimate. `report` is
        called with the number of draws done.
        """
        device = self.top.device
        size, log_weights = 500, []
        for first in range(0, samples, size):
            row = RowStreams.range(seed, 0, 1, device)
            count = min(size, samples - first)
            x, h, _ = self.ancestral(row.uniform_int16(sum(self.sizes), first, count, VISIBLE))
            a_drawn = self.log_joint(x, h) - self.log_inferred(x, h)
            other, log_q = self.infer(x, row.uniform_int16(sum(self.config.hidden), first, count, HIDDEN))
            a_inferred = self.log_joint(x, other) - log_q
            log_weights.append(z_squared_log_weight(a_inferred, a_drawn)[0].double())
            report(first + count)
        log_w = torch.cat(log_weights)
        log_mean, error, largest = log_mean_batches(log_w[: len(log_w) // 50 * 50], 50)
        return {"log_z": 0.5 * float(log_mean), "standard_error": 0.5 * float(error), "largest": float(largest)}

    @torch.inference_mode()
    def evaluate(
        self,
        images: Images,
        seed: int,
        k: int,
        precision: str = "float32",
        report: Report = no_report,
        *,
        z_samples: int | None = None,
    ) -> Figures:
        """Measure the model on binary `images`; return metrics for its card in nats and percent.

        log Z is first estimated with `z_samples` draws (by default 1000·`k`, at most five million)
        and stored in `log_z`. `k` is the number of importance samples per image. With `precision`
        "bfloat16", matrix products are in bfloat16. `report` is called with the number of images
        done.
        """
        z_samples = min(1000 * k, 5_000_000) if z_samples is None else z_samples
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            z = self.estimate_log_z(seed, z_samples)
            self.log_z.fill_(z["log_z"])
            self.log_z_error.fill_(z["standard_error"])
            results = []
            for first in range(0, len(images), IMAGES_PER_BATCH):
                few = images[first : first + IMAGES_PER_BATCH]
                rows = RowStreams.range(seed, first, len(few), images.device)
                result = self.log_likelihood(few, rows, LikelihoodOptions("none", k))
                while isinstance(result, Continuation):
                    result = self.log_likelihood(few, rows, LikelihoodOptions("none", k), result.state)
                results.append(result)
                report(first + len(few))
        on = f"{len(images)} test images, K = {k}, products in {precision}"
        return _figures(results, z, z_samples, k, on)

    # The Gibbs sampler (§2.3)

    def _gibbs_sweep(
        self, chain: Layers, rows: RowStreams, number: int, options: GibbsOptions, hidden: Tensor | None
    ) -> Layers:
        """Resample every odd layer of a Gibbs chain, then every even one; return the new chain.

        `chain` has the layers x, h₁, …, h_L; each is resampled given its neighbours. Only the
        pixels of x where `hidden` is True change; if `hidden` is None, all pixels change. `number`,
        the index of the sweep in the chain, selects its random numbers.
        """
        chain = list(chain)
        for at in [*range(1, len(chain), 2), *range(0, len(chain), 2)]:
            n = self.sizes[at]
            uniform16 = rows.uniform_int16(n + 3, number * options.candidates, options.candidates, SWEEP + at)
            if at:
                candidates, log_w = self._layer_candidates(at, chain, uniform16)
            else:
                candidates, log_w = self._image_candidates(chain, uniform16, rows, number, options.inner, hidden)
            chosen = resample(log_w, _uniform(uniform16[:, 0, n + 1 :]))
            chain[at] = candidates[torch.arange(len(chosen)), chosen]
        return chain

    # See docs/decisions.md#gibbs-candidates-include-the-current-state
    def _layer_candidates(self, at: int, chain: Layers, uniform16: RandomIntegers) -> tuple[Tensor, PerSample]:
        """Return proposals for the layer hₗ (the first is its present state) and their log weights.

        l is `at`, and `chain` has the present states of x, h₁, …, h_L. The other proposals are
        drawn from ½ p(hₗ|hₗ₊₁) + ½ q(hₗ|hₗ₋₁) by the random integers `uniform16`.

        BiHM §2.3: w = √(p(hₗ|hₗ₊₁) p(hₗ₋₁|hₗ) q(hₗ|hₗ₋₁) q(hₗ₊₁|hₗ)) / (p(hₗ|hₗ₊₁) + q(hₗ|hₗ₋₁)).
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

    def _image_candidates(
        self, chain: Layers, uniform16: RandomIntegers, rows: RowStreams, number: int, inner: int, hidden: Tensor | None
    ) -> tuple[Tensor, PerSample]:
        """Return proposals for x, of which the first is the present x, and their log weights.

        `chain` has the present states of x, h₁, …, h_L. The other proposals are drawn from p(x|h₁)
        by the random integers `uniform16`; if `hidden` is given, pixels where it is False stay. The
        weights are √(p̃*(x) q(h₁|x)/p(x|h₁)) with p̃*(x) estimated by `inner` samples; if `inner`
        is 0, the factor √p̃*(x) is left out. `rows` and the number of the sweep, `number`, select
        the random numbers of these samples.
        """
        count, n = uniform16.shape[1], self.sizes[0]
        logits = self.p[0](chain[1])[:, None]
        candidates = bernoulli_from_int16(uniform16[..., :n], logits.sigmoid().expand(-1, count, -1))
        candidates[:, 0] = chain[0]
        if hidden is not None:
            candidates = torch.where(hidden[:, None], candidates, chain[0][:, None])
        # known pixels add the same number to log p(x|h₁) of every proposal, which cancels
        log_w = 0.5 * (log_bernoulli(chain[1][:, None], self.q[0](candidates)) - log_bernoulli(candidates, logits))
        if inner:
            log_w = log_w + 0.5 * self._log_p_tilde_star(candidates, rows, number * count, inner)
        return candidates, log_w

    def _log_p_tilde_star(self, x: Float[Tensor, "B J D"], rows: RowStreams, first: int, inner: int) -> PerSample:
        """Return log p̃*(x) in nats of J images per row, by BiHM eq. 4 with K = `inner` samples.

        The images of a row are numbered `first`, `first` + 1, …; these numbers select random
        numbers.
        """
        batch, count, _ = x.shape
        uniform16 = rows.uniform_int16(sum(self.config.hidden), first * inner, count * inner, INNER)
        flat = x.reshape(batch * count, 1, -1)
        h, log_q = self.infer(flat, uniform16.reshape(batch * count, inner, -1))
        return log_p_tilde_star(self.log_joint(flat, h) - log_q).view(batch, count)

    def _start_chain(self, x: Pixels, hidden: Tensor, rows: RowStreams, pool: int) -> Layers:
        """Choose one of `pool` draws of p as the start of a Gibbs chain; return x, h₁, …, h_L.

        Each layer is (B, n). The pixels of `x` where `hidden` is False are known: the probability
        of a draw is proportional to its likelihood p(x|h₁) of the known pixels. The layer x has the
        known pixels, and drawn ones elsewhere.
        """
        drawn, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), 0, pool, VISIBLE))
        logits = self.p[0](h[0])
        known = torch.where(hidden[:, None], 0.0, x[:, None] * logits + functional.logsigmoid(-logits))
        chosen = resample(known.sum(-1), rows.uniform(1, CHOICE)[:, 0])
        at = torch.arange(len(chosen))
        return [torch.where(hidden, drawn[at, chosen], x), *(layer[at, chosen] for layer in h)]

    def _sample_block(self, rows: RowStreams, options: SampleOptions, state: State) -> Result:
        """Sample p* by choosing one of `options.pool` draws from p by their weights (BiHM §2.3).

        As in the authors' code, the pool is drawn in several calls. Each call makes at most
        `POOL_PER_CALL` draws and chooses one of them by the weights √(p̃*(x) q(h|x)/p(x, h)). The
        chosen draw replaces the draw kept from earlier calls with the probability (sum of the
        call's weights)/(sum of all weights so far). Every call but the last returns a
        `Continuation`, whose state is the next call's `state`; the last call returns `images` and
        `effective_sample_size`.
        """
        weights = ImportanceWeights.resume(state, len(rows), rows.row.device)
        first = weights.done
        count, inner = min(POOL_PER_CALL, options.pool - first), max(1, options.inner)
        x, h, _ = self.ancestral(rows.uniform_int16(sum(self.sizes), first, count, VISIBLE))
        drawn = self.log_joint(x, h) - self.log_inferred(x, h)
        log_w = 0.5 * (self._log_p_tilde_star(x, rows, first, inner) - drawn)
        new = [layer[torch.arange(len(rows)), resample(log_w, self._choice(rows, 2 * first))] for layer in [x, *h]]
        total = weights.add(log_w)
        chain = new
        if state is not None:
            keep = self._choice(rows, 2 * first + 1).double().log() < weights.log_sum - total.log_sum
            pairs = zip(self._unpack(state["chain"]), new, strict=True)
            chain = [torch.where(keep[:, None], old, fresh) for old, fresh in pairs]
        done = first + count
        if done < options.pool:
            packed = {"chain": torch.cat(chain, dim=1).to(torch.uint8), **total.state()}
            return Continuation(packed, done / options.pool, self._to_images(self._output_pixels(chain, "means")))
        size = total.effective_sample_size.float().round(decimals=1)  # further digits depend on the batch size
        return {"images": self._to_images(self._output_pixels(chain, options.output)), "effective_sample_size": size}

    def _choice(self, rows: RowStreams, number: int) -> PerImage:
        """Return a random number in [0, 1) per row, by which draws are chosen, shape (B,).

        Each row has a sequence of such numbers; the number at index `number` is returned.
        """
        return _uniform(rows.uniform_int16(2, number, 1, CHOICE)[:, 0])

    def _continuation(self, chain: Layers, done: int, steps: int) -> Continuation:
        """Return the continuation of a Gibbs chain after `done` of `steps` sweeps."""
        packed = torch.cat(chain, dim=1).to(torch.uint8)
        counts = torch.full((len(packed),), done, device=packed.device)
        preview = self._to_images(self._output_pixels(chain, "means"))
        return Continuation({"chain": packed, "done": counts}, done / steps, preview)

    def _unpack(self, chain: Tensor) -> Layers:
        """Return the layers x, h₁, …, h_L of a chain that `_continuation` has concatenated."""
        return list(torch.split(chain.float(), list(self.sizes), dim=1))

    def _output_pixels(self, chain: Layers, output: str) -> Pixels:
        """Return p(x = 1|h₁) if `output` is "means", or the layer x of the chain itself."""
        return self.p[0](chain[1]).sigmoid() if output == "means" else chain[0]

    def _to_images(self, x: Pixels) -> Images:
        return x.view(-1, self.config.channels, self.config.height, self.config.width)


def _uniform(uniform16: Int16[Tensor, "B n"]) -> PerImage:
    """Return a uniform number in [0, 1) per row, made of the row's first two signed 16-bit
    integers.
    """
    high, low = (uniform16[:, i].double() + 32768.0 for i in (0, 1))
    return ((high * 65536.0 + low) * 2.0**-32).float().clamp_max(1.0 - 2.0**-24)


def _figures(results: list[dict[str, Any]], z: dict[str, float], z_samples: int, k: int, on: str) -> Figures:
    """Return the metrics of an evaluation as `figures` of the model card.

    `results` are those of `log_likelihood` with `k` samples, one per batch of images. `z` is the
    result of `estimate_log_z` with `z_samples` draws. `on` describes the images in the details of
    each metric.
    """
    bounds = {"log_p_star": "log p*(x)", "log_p": "log p(x) by q's samples", "log_p_tilde_star": "the bound log p~*(x)"}
    sizes = {"effective_sample_size_star": "sqrt(p/q)", "effective_sample_size": "p/q"}
    values = {name: torch.cat([result[name] for result in results]).double() for name in (*bounds, *sizes)}
    z_detail = (
        f"{z_samples} samples of eq. 7; standard error {2.0 * z['standard_error']:.4f} by batch means, largest weight "
        f"{100.0 * z['largest']:.3f} % of all"
    )
    figures = [
        mean_figure(name, values[name], "nats", "higher", f"{what}, mean of {on}") for name, what in bounds.items()
    ]
    figures.append(figure("minus_2_log_z", round(-2.0 * z["log_z"], 3), "nats", "lower", z_detail))
    for name, of in sizes.items():
        share = 100.0 * float(values[name].mean()) / k
        figures.append(figure(name, round(share, 3), "%", "higher", f"of K, weights {of}, mean of {on}"))
    return figures
