r"""Auto-Encoding Variational Bayes, Diederik P. Kingma and Max Welling, arXiv:1312.6114v11 (ICLR 2014).

The importance-weighted bound L_K is that of Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders",
arXiv:1509.00519v4 (ICLR 2016); with K = 1 it is the paper's estimator A. Its doubly reparameterized gradient (DReG) is
that of Tucker, Lawson, Gu and Maddison, arXiv:1810.04152v2 (ICLR 2019).

    paper            here                shape      unit   eq.
    x                x                   B D        1      -
    z                z                   B L J      1      -
    ε                noise               B L J      1      4
    μ, log σ²        mean, log_variance  B J        1      9
    log p(x|z)       log_p_x             B L        nats   11, 12
    log p(z)         log_p_z             B L        nats   -
    log q(z|x)       log_q               B L        nats   9
    L̃ᴬ, L̃ᴮ           sgvb_a, sgvb_b      B          nats   6, 7
    L̃(X; Xᴹ)         minibatch           -          nats   8
    −D_KL(q ‖ p)     −kl_to_prior        B          nats   10, app. B
    L_K (IWAE)       iwae_bound    B          nats   IWAE §3
    ∇L_K (DReG)      dreg_bound          B          nats   DReG, eq. 8

L counts samples of one image (K in IWAE) and is axis 1; J latents, D pixels. Losses are −bound, one an image, in nats.

Departs from the paper: any depth and activation (the paper has one tanh layer); Adam beside Adagrad; L_K beside L̃ᴮ as
the objective; grey pictures are binarized by a seeded draw, which the paper leaves open; outside training log
variances are held to ±30, which keeps every estimate finite and the bounds bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.kit.continuation import Continuation
from models.kit.onednn_linear import Linear
from models.kit.operations import describe
from models.kit.row_streams import BINARIZE, LATENT, OUTPUT, RowStreams
from models.kit.sampling import (
    Weights,
    log_mean_error,
    log_mean_exp,
    manifold_coordinates,
    normalised_weights,
    truncated_normal,
)
from models.kit.schema import option
from models.kit.shapes import Float, Tensor

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B"]
PerSample = Float[Tensor, "B L"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
CHUNK = 250  # importance samples of one slice
LOG_VARIANCE_LIMIT = 30.0  # of what is measured and drawn: beyond it float32 overflows in squares of z


@dataclass(frozen=True)
class Config:
    """The networks, the likelihood and the objective; by default MNIST's shape and two layers of 512."""

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels")
    width: int = option(28, minimum=1, maximum=512, description="pixels")
    latents: int = option(50, minimum=1, maximum=4096, description="dimensions of z")
    hidden: tuple[int, ...] = option(
        (512, 512), minimum=1, maximum=8192, description="units of the encoder's layers; the decoder has them reversed"
    )
    activation: str = option("elu", choices=tuple(ACTIVATIONS))
    likelihood: str = option("bernoulli", choices=("bernoulli", "gaussian"))
    init: str = option("torch", choices=("torch", "normal"), description="normal: N(0, 0.1²) for every parameter")
    objective: str = option(
        "sgvb_b",
        choices=("sgvb_a", "sgvb_b", "importance", "importance_dreg"),
        description="maximised: estimator A, estimator B, or the importance-weighted bound, by its plain gradient or by"
        " the doubly reparameterized one",
    )
    samples: int = option(1, minimum=1, maximum=1000, description="L of A and B, K of the importance-weighted bound")
    single_sample_epochs: int = option(0, minimum=0, maximum=100000, description="first epochs with samples = 1")


# --- The paper's equations -------------------------------------------------------------------------------------------


def log_normal(
    z: Float[Tensor, "*#B J"], mean: Float[Tensor, "*#B J"], log_variance: Float[Tensor, "*#B J"]
) -> Float[Tensor, "*B"]:
    """Eq. 9: log N(z; μ, σ²I) = −½ Σⱼ (log 2π + log σⱼ² + (zⱼ − μⱼ)²/σⱼ²)."""
    return -0.5 * (math.log(2.0 * math.pi) + log_variance + (z - mean).square() * (-log_variance).exp()).sum(-1)


def log_prior(z: Float[Tensor, "*B J"]) -> Float[Tensor, "*B"]:
    """§3: log p(z) = log N(z; 0, I) = −½ Σⱼ (log 2π + zⱼ²)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))


def reparameterise(
    mean: Float[Tensor, "B J"], log_variance: Float[Tensor, "B J"], noise: Float[Tensor, "B L J"]
) -> Float[Tensor, "B L J"]:
    """Eq. 4: z = μ + σ ⊙ ε with ε ~ N(0, I)."""
    return torch.addcmul(mean[:, None], (0.5 * log_variance).exp()[:, None], noise)


def score_function(signal: PerSample, log_q: PerSample) -> PerImage:
    """§2.2: a term whose gradient is the naive estimator, ∇_φ E_q[f(z)] ≃ (1/L) Σₗ f(zₗ) ∇_φ log q_φ(zₗ|x).

    `signal` is f, held fixed; `log_q` is taken at samples through which no gradient flows.
    """
    return (signal.detach() * log_q).mean(dim=1)


def sgvb_a(log_p_x: PerSample, log_p_z: PerSample, log_q: PerSample) -> PerImage:
    """Eq. 6: L̃ᴬ = (1/L) Σₗ [log p(x, zₗ) − log q(zₗ|x)]."""
    return (log_p_x + log_p_z - log_q).mean(dim=1)


def sgvb_b(log_p_x: PerSample, kl: PerImage) -> PerImage:
    """Eq. 7: L̃ᴮ = −D_KL(q(z|x) ‖ p(z)) + (1/L) Σₗ log p(x|zₗ)."""
    return log_p_x.mean(dim=1) - kl


def minibatch(bounds: Float[Tensor, "M"], total: int) -> Float[Tensor, ""]:
    """Eq. 8: L(X) ≃ (N/M) Σᵢ L̃(xᵢ); N/M multiplies the reconstruction and the KL term alike."""
    return total / bounds.shape[0] * bounds.sum()


def kl_to_prior(mean: Float[Tensor, "B J"], log_variance: Float[Tensor, "B J"]) -> PerImage:
    """Eq. 10, appendix B: D_KL(q ‖ p) = −½ Σⱼ (1 + log σⱼ² − μⱼ² − σⱼ²)."""
    return -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def log_bernoulli(x: Float[Tensor, "B D"], logits: Float[Tensor, "B L D"]) -> PerSample:
    """Eq. 11: log p(x|z) = Σᵢ xᵢ log yᵢ + (1 − xᵢ) log(1 − yᵢ) = Σᵢ xᵢaᵢ − log(1 + e^aᵢ), where y = sigmoid(a)."""
    return (logits * x[:, None]).sum(-1) - functional.softplus(logits).sum(-1)


def log_gaussian(
    x: Float[Tensor, "B D"], mean: Float[Tensor, "B L D"], log_variance: Float[Tensor, "B L D"]
) -> PerSample:
    """Eq. 12: log p(x|z) = log N(x; μ(z), σ²(z)I), a density on the pixels' scale 0 … 1."""
    return log_normal(x[:, None], mean, log_variance)


def iwae_bound(log_w: Float[Tensor, "B K"]) -> PerImage:
    """IWAE §3: L_K = log (1/K) Σₖ wₖ with wₖ = p(x, zₖ)/q(zₖ|x); E L_K rises with K to log p(x)."""
    return log_mean_exp(log_w)


class _Slopes(torch.autograd.Function):
    """Values as they are, whose gradient comes back multiplied by the factors in `factors`."""

    @staticmethod
    def forward(ctx: Any, z: Float[Tensor, "B K J"], factors: list[Float[Tensor, "B K"]]) -> Float[Tensor, "B K J"]:
        ctx.factors = factors
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *slopes: Float[Tensor, "B K J"]) -> tuple[Tensor | None, ...]:
        (slope,) = slopes
        (factors,) = ctx.factors
        return slope * factors[..., None], None


def dreg_bound(
    log_joint: Callable[[Float[Tensor, "B K J"]], Float[Tensor, "B K"]],
    mean: Float[Tensor, "B J"],
    log_variance: Float[Tensor, "B J"],
    noise: Float[Tensor, "B K J"],
) -> PerImage:
    """L_K with the doubly reparameterized gradient (DReG, eq. 8); `log_joint` is z ↦ log p(x, z), nats.

    The encoder's gradient is Σₖ w̃ₖ² (∂ log wₖ/∂zₖ) (∂zₖ/∂φ) with w̃ₖ = wₖ/Σw, the score term of log q(z|x) left out;
    the decoder's is the plain one, Σₖ w̃ₖ ∂ log p(x, zₖ)/∂θ. Both are unbiased for the gradient of E L_K.
    """
    factors: list[Tensor] = []  # known after log w, which is made of z, and wanted in the backward pass alone
    scaled: Callable[..., Tensor] = _Slopes.apply
    z = scaled(reparameterise(mean, log_variance, noise), factors)
    log_w = log_joint(z) - log_normal(z, mean.detach()[:, None], log_variance.detach()[:, None])
    factors.append(normalised_weights(log_w.detach()))
    return iwae_bound(log_w)


# --- Blocks (appendix C) ---------------------------------------------------------------------------------------------


def trunk(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    """Appendix C: a multi-layer perceptron, an activation after each layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class Gaussian(nn.Module):
    """Appendix C.2: an MLP's mean and log variance of a diagonal normal; `unit` keeps the mean within (0, 1)."""

    def __init__(self, widths: tuple[int, ...], outputs: int, activation: str, *, unit: bool = False) -> None:
        super().__init__()
        self.trunk = trunk(widths, activation)
        self.mean = Linear(widths[-1], outputs)
        self.log_variance = Linear(widths[-1], outputs)
        self.unit = unit

    def forward(self, x: Float[Tensor, "*B I"]) -> tuple[Float[Tensor, "*B O"], Float[Tensor, "*B O"]]:
        """Mean and log variance, both float32 whatever the precision inside.

        Outside training the log variance is held to ±`LOG_VARIANCE_LIMIT`, so that every estimate is finite.
        """
        h = self.trunk(x)
        mean, log_variance = self.mean(h).float(), self.log_variance(h).float()
        if not torch.is_grad_enabled():  # a picture unlike any that was trained on: q stays a distribution, L a bound
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return (mean.sigmoid() if self.unit else mean), log_variance


class Bernoulli(nn.Module):
    """Appendix C.1: an MLP's logits of independent Bernoulli pixels."""

    def __init__(self, widths: tuple[int, ...], outputs: int, activation: str) -> None:
        super().__init__()
        self.trunk = trunk(widths, activation)
        self.logits = Linear(widths[-1], outputs)

    def forward(self, z: Float[Tensor, "*B J"]) -> Float[Tensor, "*B D"]:
        """Logits, float32 whatever the precision inside."""
        logits: Tensor = self.logits(self.trunk(z))
        return logits.float()


# --- Options of the operations ---------------------------------------------------------------------------------------

_BINARIZATION = option(
    "draw",
    choices=("draw", "threshold", "none"),
    description="how grey pixels become binary: by a seeded Bernoulli draw (binary ones stay as they are), at 0.5, or"
    " not at all; of no effect on a model of grey pixels",
)
_OUTPUT = option("means", choices=("means", "draws"), description="the mean of each pixel, or a seeded draw of it")


@dataclass(frozen=True)
class SampleOptions:
    """How to draw from the model."""

    output: str = _OUTPUT
    temperature: float = option(1.0, above=0.0, maximum=2.0, description="standard deviation of the prior")
    truncation: float | None = option(
        None, above=0.0, maximum=8.0, description="draw each latent from the prior given that it lies within ± this"
    )


@dataclass(frozen=True)
class ManifoldOptions:
    """How fine the grid over the latent plane is."""

    size: int = option(20, minimum=1, maximum=64, description="cells a side; row i of the answer is cell i, row-major")


@dataclass(frozen=True)
class EncodeOptions:
    """How pictures are made binary first."""

    binarization: str = _BINARIZATION


@dataclass(frozen=True)
class ReconstructOptions:
    """Which code is decoded and what comes of it."""

    binarization: str = _BINARIZATION
    code: str = option("mean", choices=("mean", "draw"), description="decode the mean of q(z|x), or a seeded draw")
    output: str = _OUTPUT


@dataclass(frozen=True)
class InterpolateOptions:
    """The path between two codes: row i is frame i of `steps`, frame 0 the first picture's."""

    binarization: str = _BINARIZATION
    steps: int = option(8, minimum=2, maximum=256, description="frames, both ends included")


@dataclass(frozen=True)
class EnergyOptions:
    """How the energy −L (estimator B) is averaged."""

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    draws: int = option(16, minimum=1, maximum=1000, description="samples of q(z|x) averaged over")


@dataclass(frozen=True)
class LikelihoodOptions:
    """How many importance samples estimate log p(x); a standard error takes two."""

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = option(1000, minimum=2, maximum=100000, description="importance samples an image")


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """p(x|z)p(z) and q(z|x), and what can be asked of them. `images` hold 0 … 1 and become binary by `binarization`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        pixels = config.channels * config.height * config.width
        inner = (config.latents, *reversed(config.hidden))
        self.encoder = Gaussian((pixels, *config.hidden), config.latents, config.activation)
        self.decoder: Bernoulli | Gaussian = (
            Bernoulli(inner, pixels, config.activation)
            if config.likelihood == "bernoulli"
            else Gaussian(inner, pixels, config.activation, unit=True)
        )

    def warm_start(self, weights: Mapping[str, Tensor]) -> None:
        """Take over all of a model of the same networks; ValueError where its weights are others or of other shapes."""
        try:
            self.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise ValueError(f"a VAE begins with one of the same networks: {error}") from error

    def initialise(self, rows: RowStreams) -> None:
        """§5: every parameter from N(0, 0.1²) where the config says "normal"; else torch's law of fan-in, ±1/√n."""
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(layers):
            for stream, parameter in ((2 * number, layer.weight), (2 * number + 1, layer.bias)):
                if self.config.init == "normal":
                    drawn = 0.1 * rows.normal(parameter.numel(), stream)
                else:
                    drawn = (2.0 * rows.uniform(parameter.numel(), stream) - 1.0) * layer.in_features**-0.5
                parameter.data.copy_(drawn[0].view_as(parameter))

    def operations(self) -> dict[str, Any]:
        """What this model can do; only two latents make a plane for `manifold`."""
        return describe(self, without=() if self.config.latents == 2 else ("manifold",))

    # Sampling and decoding

    @torch.inference_mode()
    def sample(self, rows: RowStreams, options: SampleOptions) -> dict[str, Any]:
        """§3: z ~ p(z), then the pixels' means or a draw from p(x|z); `images` (B, C, H, W) in 0 … 1."""
        if options.truncation is None:
            z = rows.normal(self.config.latents, LATENT)
        else:
            z = truncated_normal(rows.uniform(self.config.latents, LATENT), options.truncation)
        return {"images": self._decoded(z * options.temperature, rows, options.output)}

    @torch.inference_mode()
    def manifold(self, rows: RowStreams, options: ManifoldOptions) -> dict[str, Any]:
        """Appendix A: the pixels' means over the latent plane's grid; the first latent runs along a row of cells."""
        if self.config.latents != 2:
            raise ValueError(f"manifold needs 2 latents, this model has {self.config.latents}")
        if len(rows) and int(rows.row.max()) >= options.size**2:
            raise ValueError(f"a grid of size {options.size} has {options.size**2} cells")
        at = manifold_coordinates(options.size).to(rows.row.device)
        z = torch.stack((at[rows.row % options.size], at[rows.row // options.size]), dim=1)
        return {"images": self._decoded(z, rows, "means")}

    @torch.inference_mode()
    def reconstruct(self, images: Images, rows: RowStreams, options: ReconstructOptions) -> dict[str, Any]:
        """x → z → the pixels' means or a draw; `images` (B, C, H, W) in 0 … 1."""
        mean, log_variance = self.encoder(self._binarized(images, rows, options.binarization))
        z = mean
        if options.code == "draw":
            z = reparameterise(mean, log_variance, rows.normals(self.config.latents, 0, 1, LATENT))[:, 0]
        return {"images": self._decoded(z, rows, options.output), "binarization": options.binarization}

    @torch.inference_mode()
    def interpolate(
        self, first: Images, second: Images, rows: RowStreams, options: InterpolateOptions
    ) -> dict[str, Any]:
        """The straight line between two codes' means: row i is frame i, at i/(steps − 1) of the way.

        Both pictures are binarized by row 0's numbers, so that every frame lies on one line.
        """
        if len(rows) and int(rows.row.max()) >= options.steps:
            raise ValueError(f"a path of {options.steps} steps has no frame {int(rows.row.max())}")
        shared = rows.row_zero()
        start, _ = self.encoder(self._binarized(first, shared, options.binarization))
        end, _ = self.encoder(self._binarized(second, shared, options.binarization))
        way = (rows.row.to(start.dtype) / (options.steps - 1))[:, None]
        images = self._decoded(start + way * (end - start), rows, "means")
        return {"images": images, "binarization": options.binarization}

    # Encoding and scoring

    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """Eq. 9: `mean` and `standard_deviation` of q(z|x), (B, J) each."""
        mean, log_variance = self.encoder(self._binarized(images, rows, options.binarization))
        deviation = (0.5 * log_variance).exp()
        return {"mean": mean, "standard_deviation": deviation, "binarization": options.binarization}

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: EnergyOptions) -> dict[str, Any]:
        """`energies` (B,): minus the lower bound by estimator B with L = `draws`, nats."""
        x = self._binarized(images, rows, options.binarization)
        mean, log_variance = self.encoder(x)
        z = reparameterise(mean, log_variance, rows.normals(self.config.latents, 0, options.draws, LATENT))
        bound = sgvb_b(self.log_p_x(x, z), kl_to_prior(mean, log_variance))
        return {"energies": -bound, "unit": "nats", "binarization": options.binarization}

    @torch.inference_mode()
    def log_likelihood(
        self, images: Images, rows: RowStreams, options: LikelihoodOptions, state: dict[str, Tensor] | None = None
    ) -> dict[str, Any] | Continuation:
        """L_K with K = `k`, `CHUNK` samples a call: a `Continuation` until the last, then `log_p` (B,).

        `standard_error` (B,) is that of log_p by the delta method, in nats; `effective_sample_size` (B,) is
        (Σw)²/Σw², between 1 and K.
        """
        weights = Weights.start(len(rows), images.device) if state is None else Weights.from_state(state)
        done = weights.done if len(rows) else options.k
        x = self._binarized(images, rows, options.binarization)
        weights = weights.add(self.log_weights(x, rows, done, min(CHUNK, options.k - done)))
        done = min(done + CHUNK, options.k)
        if done < options.k:
            return Continuation(weights.state(), done / options.k)
        return {
            "log_p": weights.log_mean.float(),
            "standard_error": weights.error.float(),
            "effective_sample_size": weights.effective_sample_size.float(),
            "k": options.k,
            "unit": "nats",
            "binarization": options.binarization,
        }

    def log_weights(self, x: Float[Tensor, "B D"], rows: RowStreams, first: int, count: int) -> Float[Tensor, "B K"]:
        """log w = log p(x, z) − log q(z|x) of importance samples `first` … `first + count − 1`, nats."""
        mean, log_variance = self.encoder(x)
        noise = rows.normals(self.config.latents, first, count, LATENT)
        return self._log_w(x, mean, log_variance, noise)

    def log_p_x(self, x: Float[Tensor, "B D"], z: Float[Tensor, "B L J"]) -> PerSample:
        """Eq. 11 or 12: log p(x|z) of every sample, nats."""
        if isinstance(self.decoder, Bernoulli):
            return log_bernoulli(x, self.decoder(z))
        return log_gaussian(x, *self.decoder(z))

    # Training

    def loss(self, images: Images, rows: RowStreams, epoch: int = 0) -> PerImage:
        """−bound of each image, as given (binary or grey), by the config's objective; nats."""
        x = images.flatten(1)
        count = 1 if epoch < self.config.single_sample_epochs else self.config.samples
        noise = rows.normals(self.config.latents, 0, count, LATENT)
        mean, log_variance = self.encoder(x)
        if self.config.objective == "sgvb_b":
            z = reparameterise(mean, log_variance, noise)
            return -sgvb_b(self.log_p_x(x, z), kl_to_prior(mean, log_variance))
        if self.config.objective == "importance_dreg":
            return -dreg_bound(lambda z: self.log_p_x(x, z) + log_prior(z), mean, log_variance, noise)
        log_w = self._log_w(x, mean, log_variance, noise)
        return -(log_w.mean(dim=1) if self.config.objective == "sgvb_a" else iwae_bound(log_w))

    # Measuring

    @torch.inference_mode()
    def evaluate(
        self,
        images: Images,
        seed: int,
        k: int,
        precision: str = "float32",
        report: Callable[[int], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """The card's figures on given (binary or grey) pictures: L_K for K = 1, 10, … k, log p(x) and active units.

        L_K for K < k averages over the k/K groups of the same samples, so that all K share their noise. `precision`
        "bfloat16" is that of the decoder's matrix products alone. ValueError where k is not at least 10.
        """
        if k < 10:
            raise ValueError(f"k must be at least 10, not {k}")
        sizes = [size for size in (1, 10, 100, 1000) if size < k and k % size == 0] + [k]
        bounds, errors = [], []
        means, log_variances = self.encoder(images.flatten(1))
        for i, x in enumerate(torch.split(images.flatten(1), 1)):
            row = RowStreams.range(seed, i, 1, images.device)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                log_w = torch.cat(
                    [
                        self._log_w(
                            x,
                            means[i : i + 1],
                            log_variances[i : i + 1],
                            row.normals(self.config.latents, first, min(CHUNK, k - first), LATENT),
                        )
                        for first in range(0, k, CHUNK)
                    ],
                    dim=1,
                ).double()
            bounds.append(torch.stack([_grouped_bound(log_w, size) for size in sizes], dim=1))
            errors.append(log_mean_error(log_w))
            report(i + 1)
        return _figures(sizes, torch.cat(bounds), torch.cat(errors), means, precision)

    def _log_w(
        self,
        x: Float[Tensor, "B D"],
        mean: Float[Tensor, "B J"],
        log_variance: Float[Tensor, "B J"],
        noise: Float[Tensor, "B L J"],
    ) -> PerSample:
        """log p(x, z) − log q(z|x) at z = μ + σ ⊙ ε, where log q needs ε alone; log 2π cancels."""
        z = reparameterise(mean, log_variance, noise)
        log_p_z_over_q = 0.5 * (log_variance.sum(-1)[:, None] + noise.square().sum(-1) - z.square().sum(-1))
        return self.log_p_x(x, z) + log_p_z_over_q

    def _binarized(self, images: Images, rows: RowStreams, how: str) -> Float[Tensor, "B D"]:
        x = images.flatten(1)
        if how == "none" or self.config.likelihood == "gaussian":
            return x
        return rows.bernoulli(x, BINARIZE) if how == "draw" else (x >= 0.5).to(x.dtype)

    def _decoded(self, z: Float[Tensor, "B J"], rows: RowStreams, output: str) -> Images:
        shape = (-1, self.config.channels, self.config.height, self.config.width)
        pixels: Tensor
        if isinstance(self.decoder, Bernoulli):
            pixels = self.decoder(z).sigmoid()
            pixels = rows.bernoulli(pixels, OUTPUT) if output == "draws" else pixels
        else:
            pixels, log_variance = self.decoder(z)
            if output == "draws":
                noise = rows.normal(pixels.shape[1], OUTPUT)
                pixels = torch.addcmul(pixels, (0.5 * log_variance).exp(), noise).clamp(0, 1)
        return pixels.view(shape)


def _grouped_bound(log_w: Float[Tensor, "B k"], size: int) -> PerImage:
    """The mean L_K, K = `size`, of the groups that k samples make."""
    groups = log_w.view(-1, size)
    per_group: Tensor = iwae_bound(groups).view(log_w.shape[0], -1)
    mean: Tensor = per_group.mean(dim=1)
    return mean


def _figures(
    sizes: list[int],
    bounds: Float[Tensor, "N S"],
    errors: Float[Tensor, "N"],
    means: Float[Tensor, "N J"],
    precision: str,
) -> list[dict[str, Any]]:
    """Figures as a card holds them, each with its unit, its better direction and how it was measured."""
    count = len(bounds)
    spread = bounds.std(dim=0) / math.sqrt(count)
    sampling = float(errors.square().sum().sqrt()) / count
    value = [round(float(mean), 3) for mean in bounds.mean(dim=0)]
    on = f"{count} test images, products in {precision}"

    def figure(name: str, number: float, unit: str, better: str, detail: str) -> dict[str, Any]:
        return {"name": name, "value": number, "unit": unit, "better": better, "detail": detail}

    found = [
        figure(
            "nll",
            -value[-1],
            "nats",
            "lower",
            f"-log p(x) by {sizes[-1]} importance samples, mean of {on}; standard error {spread[-1]:.3f} over images, "
            f"{sampling:.4f} of the sampling",
        ),
        figure("bound", value[0], "nats", "higher", f"lower bound (estimator A), mean of {on}; s.e. {spread[0]:.3f}"),
    ]
    for size, mean in list(zip(sizes, value, strict=True))[1:]:
        found.append(figure(f"bound_{size}", mean, "nats", "higher", f"importance-weighted bound, K = {size}, {on}"))
    variance = means.double().var(dim=0)
    active = int((variance > 0.01).sum())
    found.append(figure("active_units", active, "count", "higher", f"of {len(variance)}: Cov_x(E_q[u|x]) > 0.01, {on}"))
    return found
