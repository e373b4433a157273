r"""Auto-Encoding Variational Bayes, Kingma and Welling, arXiv:1312.6114v11 (ICLR 2014).

The importance-weighted bound (IWAE) L_K is that of Burda, Grosse and Salakhutdinov, "Importance
Weighted Autoencoders", arXiv:1509.00519v4 (ICLR 2016); with K = 1 it equals the estimator SGVB A.
Its doubly reparameterized gradient (DReG) is that of Tucker, Lawson, Gu and Maddison,
arXiv:1810.04152v2 (ICLR 2019).

    paper            here                shape      unit   equation
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
    L_K (IWAE)       iwae_bound          B          nats   IWAE §3
    ∇L_K (DReG)      dreg_bound          B          nats   DReG, eq. 8

L counts the samples of one image (K in IWAE) and is axis 1; J latent dimensions, D pixels. A loss
is minus the bound, one number per image, in nats.

Departs from the paper: any depth and activation (the paper has one tanh layer); Adam beside
Adagrad; L_K as an alternative objective to L̃ᴮ; grey images are binarized by a seeded draw, which
the paper leaves open; outside training log variances are clamped to ±30, so that estimates stay
finite and the bounds stay lower bounds.

This file has more than 400 lines because one paper is one file.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn

from models.kit import bernoulli, sampling
from models.kit.codes import NORMAL_LIMIT, CodeActivity, CodeFormat
from models.kit.figures import Figures, Report, figure, no_report
from models.kit.onednn_linear import Linear
from models.kit.operations import Continuation, Result, State, describe, samples_per_call
from models.kit.row_streams import LATENT, OUTPUT, RowStreams
from models.kit.schema import binarization, importance_samples, option
from models.kit.shapes import Float, Images, PerImage, Tensor

PerSample = Float[Tensor, "B L"]
Pixels = Float[Tensor, "B D"]
Latents = Float[Tensor, "B J"]
LatentSamples = Float[Tensor, "B L J"]

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "softplus": nn.Softplus}
SAMPLES_PER_CALL = 250  # importance samples of one call of `log_likelihood`
LOG_VARIANCE_LIMIT = 30.0  # outside training: beyond it the squares of z overflow float32


@dataclass(frozen=True)
class Config:
    """Configuration of a VAE: image shape, networks, likelihood and objective.

    By default the images have MNIST's shape, and encoder and decoder have two hidden layers of 512
    units each.
    """

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels")
    width: int = option(28, minimum=1, maximum=512, description="pixels")
    latents: int = option(50, minimum=1, maximum=4096, description="dimensions of z")
    hidden: tuple[int, ...] = option(
        (512, 512),
        minimum=1,
        maximum=8192,
        description="units of the encoder's hidden layers; the decoder has them reversed",
    )
    activation: str = option("elu", choices=tuple(ACTIVATIONS))
    likelihood: str = option("bernoulli", choices=("bernoulli", "gaussian"))
    init: str = option("torch", choices=("torch", "normal"), description="normal: N(0, 0.1²) for every parameter")
    objective: str = option(
        "sgvb_b",
        choices=("sgvb_a", "sgvb_b", "importance", "importance_dreg"),
        description="the bound to maximise: estimator SGVB A, SGVB B, or the importance-weighted bound (IWAE) with its"
        " plain or its doubly reparameterized gradient",
    )
    samples: int = option(
        1, minimum=1, maximum=1000, description="L of SGVB A and B, K of the importance-weighted bound"
    )
    single_sample_epochs: int = option(
        0, minimum=0, maximum=100000, description="number of first epochs with samples = 1"
    )


# --- The paper's equations -------------------------------------------------------------------------------------------


def log_normal(
    z: Float[Tensor, "*#B J"], mean: Float[Tensor, "*#B J"], log_variance: Float[Tensor, "*#B J"]
) -> Float[Tensor, "*B"]:
    """Return log N(z; μ, σ²I) = −½ Σⱼ (log 2π + log σⱼ² + (zⱼ − μⱼ)²/σⱼ²) (AEVB eq. 9)."""
    return -0.5 * (math.log(2.0 * math.pi) + log_variance + (z - mean).square() * (-log_variance).exp()).sum(-1)


def log_prior(z: Float[Tensor, "*B J"]) -> Float[Tensor, "*B"]:
    """Return log p(z) = log N(z; 0, I) = −½ Σⱼ (log 2π + zⱼ²) (AEVB §3)."""
    return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2.0 * math.pi))


def reparameterise(mean: Latents, log_variance: Latents, noise: LatentSamples) -> LatentSamples:
    """Return the samples z = μ + σ ⊙ ε with ε = `noise` ~ N(0, I) (AEVB eq. 4)."""
    return torch.addcmul(mean[:, None], (0.5 * log_variance).exp()[:, None], noise)


def score_function(signal: PerSample, log_q: PerSample) -> PerImage:
    """Return numbers whose gradient is the naive estimator of ∇_φ E_q[f(z)] (AEVB §2.2).

    The gradient is (1/L) Σₗ f(zₗ) ∇_φ log q_φ(zₗ|x); the values have no meaning. `signal` is f(zₗ),
    which is treated as constant. `log_q` is log q_φ(zₗ|x), computed at samples zₗ without gradient.
    """
    return (signal.detach() * log_q).mean(dim=1)


def sgvb_a(log_p_x: PerSample, log_p_z: PerSample, log_q: PerSample) -> PerImage:
    """Return the estimator SGVB A (B,), L̃ᴬ = (1/L) Σₗ [log p(x, zₗ) − log q(zₗ|x)] (AEVB eq. 6)."""
    return (log_p_x + log_p_z - log_q).mean(dim=1)


def sgvb_b(log_p_x: PerSample, kl: PerImage) -> PerImage:
    """Return the estimator SGVB B, L̃ᴮ = −D_KL(q(z|x)‖p(z)) + (1/L) Σₗ log p(x|zₗ) (AEVB eq. 7)."""
    return log_p_x.mean(dim=1) - kl


def minibatch(bounds: Float[Tensor, "M"], total: int) -> Float[Tensor, ""]:
    """Return the estimate L(X) ≃ (N/M) Σᵢ L̃(xᵢ) of the bound of a data set (AEVB eq. 8), in nats.

    `bounds` has the bounds L̃ of M images, and N = `total` is the number of images in the data set.
    N/M scales the reconstruction and the KL term alike.
    """
    return total / bounds.shape[0] * bounds.sum()


def kl_to_prior(mean: Latents, log_variance: Latents) -> PerImage:
    """Return D_KL(q ‖ p) = −½ Σⱼ (1 + log σⱼ² − μⱼ² − σⱼ²) in nats (AEVB eq. 10); p is N(0, I)."""
    return -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def log_bernoulli(x: Pixels, logits: Float[Tensor, "B L D"]) -> PerSample:
    """Return log p(x|z) = Σᵢ xᵢ log yᵢ + (1 − xᵢ) log(1 − yᵢ), with y = sigmoid(a) (AEVB eq. 11).

    a is `logits`; the sum runs over the pixels, and is computed as Σᵢ xᵢaᵢ − log(1 + e^aᵢ).
    """
    return bernoulli.log_probability(x[:, None], logits)


def log_gaussian(x: Pixels, mean: Float[Tensor, "B L D"], log_variance: Float[Tensor, "B L D"]) -> PerSample:
    """Return log p(x|z) = log N(x; μ(z), σ²(z)I), a density of pixels in 0 … 1 (AEVB eq. 12)."""
    return log_normal(x[:, None], mean, log_variance)


def iwae_bound(log_w: PerSample) -> PerImage:
    """Return the bound L_K = log (1/K) Σₖ wₖ with wₖ = p(x, zₖ)/q(zₖ|x), in nats (IWAE §3).

    `log_w` is log wₖ. The expectation of L_K rises with K to log p(x).
    """
    return sampling.log_mean_exp(log_w)


class _ScaleGradient(torch.autograd.Function):
    """The identity function, whose backward pass multiplies the gradient by factors.

    `factors` is a list that the caller leaves empty, and to which it appends a tensor (B, K) before
    the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, z: LatentSamples, factors: list[PerSample]) -> LatentSamples:
        ctx.factors = factors
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *gradients: LatentSamples) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        (factors,) = ctx.factors
        return gradient * factors[..., None], None


def dreg_bound(
    log_joint: Callable[[LatentSamples], PerSample], mean: Latents, log_variance: Latents, noise: LatentSamples
) -> PerImage:
    """Return the bound L_K with the doubly reparameterized gradient (DReG eq. 8), in nats.

    The encoder's gradient is Σₖ w̃ₖ² (∂ log wₖ/∂zₖ) (∂zₖ/∂φ) with w̃ₖ = wₖ/Σw; the score term of
    log q(z|x) is left out. The decoder's gradient is the usual Σₖ w̃ₖ ∂ log p(x, zₖ)/∂θ. Both are
    unbiased for the gradient of E L_K. `log_joint` is the function z ↦ log p(x, z), in nats.
    """
    factors: list[Tensor] = []  # filled below: w̃ depends on z, and only the backward pass needs it
    scale_gradient: Callable[..., Tensor] = _ScaleGradient.apply
    z = scale_gradient(reparameterise(mean, log_variance, noise), factors)
    log_w = log_joint(z) - log_normal(z, mean.detach()[:, None], log_variance.detach()[:, None])
    factors.append(sampling.normalised_weights(log_w.detach()))
    return iwae_bound(log_w)


# --- Blocks (appendix C) ---------------------------------------------------------------------------------------------


def hidden_layers(widths: tuple[int, ...], activation: str) -> nn.Sequential:
    """Return the hidden layers of a multi-layer perceptron (AEVB appendix C).

    `widths` has the number of inputs and then the units of each layer. The function `activation`
    follows each linear layer.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [Linear(inputs, outputs), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class Gaussian(nn.Module):
    """A network that returns mean and log variance of a diagonal normal (AEVB appendix C.2).

    With `unit` its means are in (0, 1), as pixels are.
    """

    def __init__(self, widths: tuple[int, ...], outputs: int, activation: str, *, unit: bool = False) -> None:
        super().__init__()
        self.trunk = hidden_layers(widths, activation)
        self.mean = Linear(widths[-1], outputs)
        self.log_variance = Linear(widths[-1], outputs)
        self.unit = unit

    def forward(self, x: Float[Tensor, "*B I"]) -> tuple[Float[Tensor, "*B O"], Float[Tensor, "*B O"]]:
        """Return mean and log variance; they are float32 under autocast, too.

        While gradients are not recorded, the log variance is clamped to ±`LOG_VARIANCE_LIMIT`, so
        that every estimate is finite.
        """
        h = self.trunk(x)
        mean, log_variance = self.mean(h).float(), self.log_variance(h).float()
        if not torch.is_grad_enabled():
            log_variance = log_variance.clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return (mean.sigmoid() if self.unit else mean), log_variance


class Bernoulli(nn.Module):
    """A network that returns the logits of independent Bernoulli pixels (AEVB appendix C.1)."""

    def __init__(self, widths: tuple[int, ...], outputs: int, activation: str) -> None:
        super().__init__()
        self.trunk = hidden_layers(widths, activation)
        self.logits = Linear(widths[-1], outputs)

    def forward(self, z: Float[Tensor, "*B J"]) -> Float[Tensor, "*B D"]:
        """Return the logits of the pixels; they are float32 under autocast, too."""
        logits: Tensor = self.logits(self.trunk(z))
        return logits.float()


# --- Options of the operations ---------------------------------------------------------------------------------------

_BINARIZATION = binarization("; of no effect on a model of grey pixels")
_OUTPUT = option("means", choices=("means", "draws"), description="the mean of each pixel, or a seeded draw of it")


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`: temperature and truncation of the prior, and the kind of output.

    The output is the means of p(x|z) or draws from it.
    """

    output: str = _OUTPUT
    temperature: float = option(1.0, above=0.0, maximum=2.0, description="standard deviation of the prior")
    truncation: float | None = option(
        None, above=0.0, maximum=8.0, description="draw each latent from the prior given that it lies within ± this"
    )


@dataclass(frozen=True)
class ManifoldOptions:
    """Options of `manifold`: the number of cells along each side of the grid."""

    size: int = option(20, minimum=1, maximum=64, description="cells a side; row i of the answer is cell i, row-major")


@dataclass(frozen=True)
class DecodeOptions:
    """Options of `decode`: the kind of output."""

    output: str = _OUTPUT


@dataclass(frozen=True)
class EncodeOptions:
    """Options of `encode`: how images are binarized."""

    binarization: str = _BINARIZATION


@dataclass(frozen=True)
class ReconstructOptions:
    """Options of `reconstruct`: binarization, and whether z and pixels are means or draws."""

    binarization: str = _BINARIZATION
    code: str = option("mean", choices=("mean", "draw"), description="decode the mean of q(z|x), or a seeded draw")
    output: str = _OUTPUT


@dataclass(frozen=True)
class InterpolateOptions:
    """Options of `interpolate`: how images are binarized, and the number of frames.

    Row i of a request is the frame with the index i, from 0, of a path of `steps` frames. The first
    frame decodes the image `first`, and the last frame the image `second`.
    """

    binarization: str = _BINARIZATION
    steps: int = option(8, minimum=2, maximum=256, description="frames, both ends included")


@dataclass(frozen=True)
class EnergyOptions:
    """Options of `energy`, which returns minus the lower bound (SGVB B).

    The options say how images are binarized, and how many samples of q(z|x) are averaged.
    """

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    draws: int = option(16, minimum=1, maximum=1000, description="samples of q(z|x) averaged over")


@dataclass(frozen=True)
class LikelihoodOptions:
    """Options of `log_likelihood`: how images are binarized, and the number of importance samples.

    At least two samples are needed, because the standard error of one sample is undefined.
    """

    UNIT: ClassVar[str] = "nats"
    binarization: str = _BINARIZATION
    k: int = importance_samples(1000)


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A variational auto-encoder: the decoder p(x|z), the encoder q(z|x) and their operations.

    `images` are (B, C, H, W) in 0 … 1; an operation binarizes them by its option `binarization`.
    """

    CUDA_GRAPH: ClassVar[bool] = True  # `loss` never waits for the device

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

    def initialise(self, rows: RowStreams) -> None:
        """Draw every parameter from N(0, 0.1²) (AEVB §5) if `config.init` is "normal".

        Otherwise draw every parameter uniformly from ±1/√fan-in, torch's default. `rows` has a
        single row, whose random numbers determine all parameters.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, nn.Linear)]
        for number, layer in enumerate(layers):
            for stream, parameter in ((2 * number, layer.weight), (2 * number + 1, layer.bias)):
                if self.config.init == "normal":
                    values = 0.1 * rows.normal(parameter.numel(), stream)
                else:
                    values = (2.0 * rows.uniform(parameter.numel(), stream) - 1.0) * layer.in_features**-0.5
                parameter.data.copy_(values[0].view_as(parameter))

    def operations(self) -> dict[str, Any]:
        """Return the description of each operation in the format of the model card, keyed by name.

        The operation `manifold` is only there for a model with two latent dimensions.
        """
        return describe(self, without=() if self.config.latents == 2 else ("manifold",))

    # Sampling and decoding

    @torch.inference_mode()
    def sample(self, rows: RowStreams, options: SampleOptions) -> dict[str, Any]:
        """Draw z ~ p(z) and decode it; return `images` (B, C, H, W) in 0 … 1.

        They are means of p(x|z) or draws from it, as the option `output` says.
        """
        if options.truncation is None:
            z = rows.normal(self.config.latents, LATENT)
        else:
            z = sampling.truncated_normal(rows.uniform(self.config.latents, LATENT), options.truncation)
        return {"images": self._decode(z * options.temperature, rows, options.output)}

    @torch.inference_mode()
    def manifold(self, rows: RowStreams, options: ManifoldOptions) -> dict[str, Any]:
        """Return `images`, the means of p(x|z) on a grid of the latent plane (AEVB appendix A).

        The row with the number i decodes cell i of the grid, whose cells are counted line by line:
        z₁ varies within a line, z₂ from line to line. Raises ValueError if the model does not have
        two latent dimensions, or if a row's number is not below the number of cells.
        """
        if self.config.latents != 2:
            raise ValueError(f"manifold needs 2 latents, this model has {self.config.latents}")
        if len(rows) and int(rows.row.max()) >= options.size**2:
            raise ValueError(f"a grid of size {options.size} has {options.size**2} cells")
        coordinates = sampling.manifold_coordinates(options.size).to(rows.row.device)
        column, line = rows.row % options.size, rows.row // options.size
        z = torch.stack((coordinates[column], coordinates[line]), dim=1)
        return {"images": self._decode(z, rows, "means")}

    @torch.inference_mode()
    def decode(self, codes: Latents, rows: RowStreams, options: DecodeOptions) -> dict[str, Any]:
        """Decode the latent codes z = `codes`; return `images` (B, C, H, W) in 0 … 1.

        The option `output` chooses the means of p(x|z) or draws from it.
        """
        return {"images": self._decode(codes, rows, options.output)}

    def code_format(self) -> CodeFormat:
        """Return the format of the latent codes z that `decode` reads."""
        return CodeFormat((self.config.latents,), -NORMAL_LIMIT, NORMAL_LIMIT)

    @torch.inference_mode()
    def code_activity(self, images: Images, rows: RowStreams) -> CodeActivity:  # noqa: ARG002
        """Return for each latent j the standard deviation of its mean μⱼ over images, (J,).

        It is 0 for a latent that the model does not use.
        """
        means = torch.cat([self.encoder(part.flatten(1))[0] for part in torch.split(images, 500)])
        measure = f"standard deviation of the mean of q(z|x) over {len(images)} pictures"
        return CodeActivity(means.std(dim=0, correction=0), measure)

    @torch.inference_mode()
    def reconstruct(self, images: Images, rows: RowStreams, options: ReconstructOptions) -> dict[str, Any]:
        """Encode images to latent codes and decode these; return `images` (B, C, H, W) in 0 … 1.

        They are means of p(x|z) or draws from it, as the option `output` says.
        """
        mean, log_variance = self.encoder(self._binarize(images, rows, options.binarization))
        z = mean
        if options.code == "draw":
            z = reparameterise(mean, log_variance, rows.normals(self.config.latents, 0, 1, LATENT))[:, 0]
        return {"images": self._decode(z, rows, options.output), "binarization": options.binarization}

    @torch.inference_mode()
    def interpolate(
        self, first: Images, second: Images, rows: RowStreams, options: InterpolateOptions
    ) -> dict[str, Any]:
        """Decode points on the line between the latent codes of two images; return `images`.

        The row with the number i, from 0, decodes the point at the fraction i/(steps − 1) of the
        way from the latent code of `first` to that of `second`. Both images are binarized with the
        random numbers of row 0, so that the frames of all rows are on the same line. Raises
        ValueError if a row's number is not below `steps`.
        """
        if len(rows) and int(rows.row.max()) >= options.steps:
            raise ValueError(f"a path of {options.steps} steps has no frame {int(rows.row.max())}")
        row_zero = rows.row_zero()
        start, _ = self.encoder(self._binarize(first, row_zero, options.binarization))
        end, _ = self.encoder(self._binarize(second, row_zero, options.binarization))
        fraction = (rows.row.to(start.dtype) / (options.steps - 1))[:, None]
        images = self._decode(start + fraction * (end - start), rows, "means")
        return {"images": images, "binarization": options.binarization}

    # Encoding and scoring

    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """Return mean and standard deviation of q(z|x) (AEVB eq. 9).

        The fields are `mean` and `standard_deviation`, (B, J) each.
        """
        mean, log_variance = self.encoder(self._binarize(images, rows, options.binarization))
        deviation = (0.5 * log_variance).exp()
        return {"mean": mean, "standard_deviation": deviation, "binarization": options.binarization}

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: EnergyOptions) -> dict[str, Any]:
        """Return `energies` (B,): minus the lower bound by SGVB B with L = `draws`, in nats."""
        x = self._binarize(images, rows, options.binarization)
        mean, log_variance = self.encoder(x)
        z = reparameterise(mean, log_variance, rows.normals(self.config.latents, 0, options.draws, LATENT))
        bound = sgvb_b(self.log_p_x(x, z), kl_to_prior(mean, log_variance))
        return {"energies": -bound, "unit": "nats", "binarization": options.binarization}

    @torch.inference_mode()
    def log_likelihood(
        self, images: Images, rows: RowStreams, options: LikelihoodOptions, state: State = None
    ) -> Result:
        """Estimate log p(x) by the importance-weighted bound (IWAE) with K = `k` samples, in nats.

        The result has `log_p` (B,), its `standard_error` (B,) by the delta method, both in nats,
        and `effective_sample_size` (B,), which is (Σw)²/Σw² for weights w, between 1 and `k`.

        Each call draws at most `SAMPLES_PER_CALL` samples, fewer for many images, and every call
        but the last returns a `Continuation`. `state` is None in the first call, later the state of
        the previous `Continuation`.
        """
        weights = sampling.ImportanceWeights.resume(state, len(rows), images.device)
        count = min(samples_per_call(images, SAMPLES_PER_CALL), options.k - weights.done)
        x = self._binarize(images, rows, options.binarization)
        weights = weights.add(self.log_weights(x, rows, weights.done, count))
        if len(rows) and weights.done < options.k:
            return Continuation(weights.state(), weights.done / options.k)
        return {
            "log_p": weights.log_mean.float(),
            "standard_error": weights.standard_error.float(),
            "effective_sample_size": weights.effective_sample_size.float(),
            "k": options.k,
            "unit": "nats",
            "binarization": options.binarization,
        }

    def log_weights(self, x: Pixels, rows: RowStreams, first: int, count: int) -> PerSample:
        """Return log p(x, z) − log q(z|x) of `count` importance samples z ~ q(z|x), in nats.

        Each row of `rows` determines a sequence of samples z; the `count` samples from index
        `first` on are used.
        """
        mean, log_variance = self.encoder(x)
        noise = rows.normals(self.config.latents, first, count, LATENT)
        return self._log_w(x, mean, log_variance, noise)

    def log_p_x(self, x: Pixels, z: LatentSamples) -> PerSample:
        """Return log p(x|z) of every sample z, in nats (AEVB eq. 11 or 12)."""
        if isinstance(self.decoder, Bernoulli):
            return log_bernoulli(x, self.decoder(z))
        return log_gaussian(x, *self.decoder(z))

    # Training

    def loss(self, images: Images, rows: RowStreams, epoch: int = 0) -> PerImage:
        """Return minus the lower bound of log p(x) for each image, in nats.

        `config.objective` chooses the bound. Images are not binarized here. Before the epoch
        `config.single_sample_epochs` one sample per image is drawn, from then on `config.samples`.
        """
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
        self, images: Images, seed: int, k: int, precision: str = "float32", report: Report = no_report
    ) -> Figures:
        """Measure the model on `images`; return metrics for its model card.

        They are −log p(x) and the bounds L_K for K = 1, 10, … `k`, in nats, and the number of
        active latent units. For K < k, the k samples of an image are divided into k/K groups, and
        the result is the mean of the groups' bounds. With `precision` "bfloat16", the decoder's
        matrix products are in bfloat16. `report` is called with the number of images done. Raises
        ValueError if `k` is less than 10.
        """
        if k < 10:
            raise ValueError(f"k must be at least 10, not {k}")
        sizes = [size for size in (1, 10, 100, 1000) if size < k and k % size == 0] + [k]
        bounds, errors = [], []
        means, log_variances = self.encoder(images.flatten(1))
        for i, x in enumerate(torch.split(images.flatten(1), 1)):
            row, code = RowStreams.range(seed, i, 1, images.device), (means[i : i + 1], log_variances[i : i + 1])
            parts = []
            for first in range(0, k, SAMPLES_PER_CALL):
                noise = row.normals(self.config.latents, first, min(SAMPLES_PER_CALL, k - first), LATENT)
                with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                    parts.append(self._log_w(x, *code, noise))
            log_w = torch.cat(parts, dim=1).double()
            bounds.append(torch.stack([_grouped_bound(log_w, size) for size in sizes], dim=1))
            errors.append(sampling.log_mean_error(log_w))
            report(i + 1)
        return _figures(sizes, torch.cat(bounds), torch.cat(errors), means, precision)

    def _log_w(self, x: Pixels, mean: Latents, log_variance: Latents, noise: LatentSamples) -> PerSample:
        """Return log p(x, z) − log q(z|x) at the samples z = μ + σ ⊙ ε with ε = `noise`, in nats.

        log p(z) − log q(z|x) is computed at once, so that the terms log 2π cancel.
        """
        z = reparameterise(mean, log_variance, noise)
        log_p_z_over_q = 0.5 * (log_variance.sum(-1)[:, None] + noise.square().sum(-1) - z.square().sum(-1))
        return self.log_p_x(x, z) + log_p_z_over_q

    def _binarize(self, images: Images, rows: RowStreams, binarization: str) -> Pixels:
        """Return the pixels (B, D) of images, binarized unless the likelihood is Gaussian."""
        x = images.flatten(1)
        return x if self.config.likelihood == "gaussian" else rows.binarize(x, binarization)

    def _decode(self, z: Latents, rows: RowStreams, output: str) -> Images:
        """Return images (B, C, H, W): the means of p(x|z), or draws if `output` is "draws"."""
        pixels: Tensor
        if isinstance(self.decoder, Bernoulli):
            pixels = self.decoder(z).sigmoid()
            pixels = rows.bernoulli(pixels, OUTPUT) if output == "draws" else pixels
        else:
            pixels, log_variance = self.decoder(z)
            if output == "draws":
                noise = rows.normal(pixels.shape[1], OUTPUT)
                pixels = torch.addcmul(pixels, (0.5 * log_variance).exp(), noise).clamp(0, 1)
        return pixels.view(-1, self.config.channels, self.config.height, self.config.width)


def _grouped_bound(log_w: Float[Tensor, "B k"], size: int) -> PerImage:
    """Return the mean of L_K over the groups of K = `size` weights of each image, shape (B,)."""
    return iwae_bound(log_w.view(-1, size)).view(len(log_w), -1).mean(dim=1)


def _figures(
    sizes: list[int], bounds: Float[Tensor, "B S"], errors: PerImage, means: Latents, precision: str
) -> Figures:
    """Return the metrics of an evaluation as `figures` of the model card.

    `bounds` (B, S) has the bounds L_K of each image for every K in `sizes`, `errors` (B,) the
    standard errors of the bounds with the last K, and `means` (B, J) the means of q(z|x).
    `precision` is that of the matrix products.
    """
    count = len(bounds)
    errors_of_mean = bounds.std(dim=0) / math.sqrt(count)
    sampling_error = float(errors.square().sum().sqrt()) / count
    value = [round(float(mean), 3) for mean in bounds.mean(dim=0)]
    on = f"{count} test images, products in {precision}"

    nll = (
        f"-log p(x) by {sizes[-1]} importance samples, mean of {on}; standard error {errors_of_mean[-1]:.3f} over "
        f"images, {sampling_error:.4f} of the sampling"
    )
    bound = f"lower bound (estimator A), mean of {on}; s.e. {errors_of_mean[0]:.3f}"
    figures = [figure("nll", -value[-1], "nats", "lower", nll), figure("bound", value[0], "nats", "higher", bound)]
    for size, mean in list(zip(sizes, value, strict=True))[1:]:
        figures.append(figure(f"bound_{size}", mean, "nats", "higher", f"importance-weighted bound, K = {size}, {on}"))
    variance = means.double().var(dim=0)
    active = int((variance > 0.01).sum())
    detail = f"of {len(variance)}: Cov_x(E_q[u|x]) > 0.01, {on}"
    figures.append(figure("active_units", active, "count", "higher", detail))
    return figures
