r"""Energy-based Generative Adversarial Network, Zhao et al., arXiv:1609.03126v4 (ICLR 2017).

The baseline `objective` "gan" is that of Goodfellow et al., "Generative Adversarial Networks",
arXiv:1406.2661v1.

    paper              here                  shape      unit      equation
    x, G(z)            x, fake               B C H W    -1 … 1    -
    z                  z                     B J        1         -
    S, Enc(x)          code                  B S        1         §2.4
    D(x)               energy                B          norm      §2.3
    L_D                discriminator_loss    B          norm      1
    [m − D(G(z))]⁺     hinge                 B          norm      1
    L_G                generator_loss        B          norm      2
    f_PT               pulling_away          B          1         §2.4

The energy is the Euclidean norm (not squared, not a mean) of the reconstruction error over all
C·H·W pixels of an image, pixels in −1 … 1. That is the unit "norm": for 28 × 28 pixels energies lie
in 0 … 56, and a well reconstructed digit has 3 … 6, so the paper's margin m = 10 is reachable and
not always exceeded. The hinge is taken per image and then averaged. f_PT is returned as row means,
whose mean over the batch is the paper's. The plain GAN's losses and its energy −log D(x) are in
nats.

Departs from the paper: z is normal; the generator's step uses the same z as the discriminator's,
against the updated discriminator; the convolutional variant is ours, for small images, and its
decoder mirrors the encoder; only the generator has batch normalisation, and sampling uses
statistics fixed after training; a narrow linear code and a decoder of several layers are possible;
the plain GAN's generator minimises −log D(G(z)); with `best_of` > 1, as in the shipped models, a
sample is the one of several draws G(z) that has the lowest energy; with `contrast` > 0 the
discriminator also raises the energy of blank and faint pictures, which no generator makes.

This file has more than 400 lines because one paper is one file.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.kit.codes import NORMAL_LIMIT, CodeActivity, CodeFormat
from models.kit.figures import Figures, Report, mean_figure, no_report
from models.kit.operations import Continuation, Result, State, describe
from models.kit.optimizers import OptimizerStep
from models.kit.row_streams import FIRST_FREE, LATENT, RowStreams
from models.kit.sampling import common_progress, first_accepted
from models.kit.schema import option
from models.kit.shapes import Float, Images, PerImage, Tensor

Code = Float[Tensor, "B S"]

# The rule of `Model.smallest_batch` as JSON Schemas of the config, for the API, which has no torch.
_ONE_VALUE_PER_IMAGE: list[dict[str, Any]] = [
    {"architecture": {"const": "mlp"}, "layers_g": {"minimum": 2}},
    {"architecture": {"const": "conv"}, "height": {"maximum": 7}, "width": {"maximum": 7}},
]
SMALLEST_BATCHES = [
    {"pictures": 2, "when": {"properties": {"batch_norm": {"const": True}, **case}}} for case in _ONE_VALUE_PER_IMAGE
]

QUANTILES = 1001  # of the training set's energies
CANDIDATES_PER_CALL = 16  # candidates per row in one call of `sample`
SLOPE = 0.2  # of the convolutional discriminator's leaky ReLU
CONTRAST = 64  # stream of the contrast pictures
CONTRAST_MARGIN = 2.0  # hinge of the contrast pictures, in margins: real images may have energies above one
FAINTEST = 0.3  # most that a faint picture keeps of an image's brightness


@dataclass(frozen=True)
class Config:
    """Configuration of an EBGAN: image shape, generator, discriminator and objective.

    The defaults follow the paper, with networks small enough for a small machine.
    """

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels; a multiple of four for conv")
    width: int = option(28, minimum=1, maximum=512, description="pixels; a multiple of four for conv")
    objective: str = option("ebgan", choices=("ebgan", "gan"))
    architecture: str = option("mlp", choices=("mlp", "conv"))
    latents: int = option(100, minimum=1, maximum=4096, description="dimensions of z")
    layers_g: int = option(3, minimum=1, maximum=16, description="layers of the generator (mlp)")
    size_g: int = option(400, minimum=1, maximum=8192, description="units a layer (mlp), channels at half size (conv)")
    layers_d: int = option(2, minimum=2, maximum=16, description="layers of Enc and Dec together (mlp)")
    layers_dec: int = option(1, minimum=1, maximum=15, description="layers of Dec among them; one in the paper (mlp)")
    size_d: int = option(128, minimum=1, maximum=8192, description="units a layer (mlp), channels at half size (conv)")
    code: int = option(
        0, minimum=0, maximum=8192, description="units of a narrow linear code; 0: size_d units, with ReLU in mlp"
    )
    batch_norm: bool = option(default=True, description="batch normalisation of the generator's hidden layers")
    dropout: float = option(0.0, minimum=0.0, below=1.0, description="dropout probability of the encoder's units")
    margin: float = option(10.0, above=0.0, maximum=1e6, description="m, an energy")
    pulling_away: float = option(
        0.0, minimum=0.0, maximum=1e6, description="weight of the pulling-away term; EBGAN-PT has 0.1"
    )
    best_of: int = option(1, minimum=1, maximum=1024, description="default of the option `best_of` of samples")
    contrast: float = option(
        0.0,
        minimum=0.0,
        maximum=1e3,
        description="weight of the hinge on blank and faint pictures, which the paper lacks",
    )


# --- The paper's equations -------------------------------------------------------------------------------------------


def energy(x: Images, reconstruction: Images) -> PerImage:
    """Return D(x) = ‖Dec(Enc(x)) − x‖, the Euclidean norm over all pixels of an image (EBGAN §2.3).

    `reconstruction` is Dec(Enc(x)). The gradient is 0 where the two images are equal.
    """
    norms: Tensor = torch.linalg.vector_norm((reconstruction - x).flatten(1), dim=1)
    return norms


def hinge(fake: PerImage, margin: float) -> PerImage:
    """Return [m − D(G(z))]⁺ of each generated image (EBGAN eq. 1), with m = `margin`.

    `fake` has the energies D(G(z)). Above the margin, the hinge and its gradient are 0.
    """
    return (margin - fake).clamp_min(0.0)


def discriminator_loss(real: PerImage, fake: PerImage, margin: float) -> PerImage:
    """Return L_D(x, z) = D(x) + [m − D(G(z))]⁺ (EBGAN eq. 1), with m = `margin`.

    `real` has the energies D(x) of real images, and `fake` the energies D(G(z)) of generated ones.
    """
    return real + hinge(fake, margin)


def contrast_pictures(images: Images, uniform: Float[Tensor, "B 2"]) -> Images:
    """Return images (in 0 … 1) made black or very dark, as images without structure (not in the
    paper).

    If the first of an image's two uniform numbers is below ½, the result is black. Otherwise its
    pixels are multiplied by `FAINTEST` times the second number.
    """
    brightness = torch.where(uniform[:, 0] < 0.5, 0.0, FAINTEST * uniform[:, 1])
    return images * brightness[:, None, None, None]


def generator_loss(fake: PerImage) -> PerImage:
    """Return L_G(z) = D(G(z)) (EBGAN eq. 2); `fake` has the energies D(G(z)) of generated images."""
    return fake


def pulling_away(code: Code) -> PerImage:
    """Return the pulling-away term of each of N encoder codes S = `code` (EBGAN §2.4).

    For code i it is 1/(N − 1) Σ_{j≠i} (SᵢᵀSⱼ / ‖Sᵢ‖‖Sⱼ‖)²; the mean over i is f_PT. A code of zeros
    counts as orthogonal to all others and has no gradient.
    """
    unit = code / torch.linalg.vector_norm(code, dim=1, keepdim=True).clamp_min(1e-6)
    squares = (unit @ unit.T).square()
    others: Tensor = squares.sum(dim=1) - squares.diagonal()
    return others / max(1, len(code) - 1)


def gan_discriminator_loss(real: PerImage, fake: PerImage) -> PerImage:
    """Return −log D(x) − log(1 − D(G(z))) in nats (Goodfellow et al., eq. 1, negated).

    `real` has the logits of real images x, and `fake` those of generated images G(z); D is the
    sigmoid of a logit.
    """
    return functional.softplus(-real) + functional.softplus(fake)


def gan_generator_loss(fake: PerImage) -> PerImage:
    """Return −log D(G(z)) in nats (Goodfellow et al., §3).

    `fake` has the logits of generated images G(z); D is the sigmoid of a logit. The gradient does
    not vanish while the discriminator is confident.
    """
    return functional.softplus(-fake)


# --- Blocks ----------------------------------------------------------------------------------------------------------


def perceptron(inputs: int, size: int, layers: int, outputs: int, *, batch_norm: bool) -> nn.Sequential:
    """Return a multi-layer perceptron of `layers` linear layers with ReLU between them.

    It maps vectors of length `inputs` to vectors of length `outputs`; hidden layers have `size`
    units. With `batch_norm` there is batch normalisation before each ReLU.
    """
    widths = (inputs, *[size] * (layers - 1))
    modules: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        norms = [nn.BatchNorm1d(n_out)] if batch_norm else []
        modules += [nn.Linear(n_in, n_out, bias=not batch_norm), *norms, nn.ReLU()]
    return nn.Sequential(*modules, nn.Linear(widths[-1], outputs))


def fast_tanh(a: Float[Tensor, "B *D"]) -> Float[Tensor, "B *D"]:
    """Return tanh a = 2 sigmoid(2a) − 1 in float32.

    On a CPU this takes a tenth of the time of `torch.tanh`.
    """
    return 2.0 * (2.0 * a.float()).sigmoid() - 1.0


def decoder_layers(inputs: int, config: Config, size: int, *, batch_norm: bool) -> nn.Sequential:
    """Return layers that map vectors of length `inputs` to images of the config's shape.

    A linear layer makes maps of a quarter of the image's height and width, with 2·`size` channels.
    Two transposed convolutions (4×4, stride 2) double height and width, with `size` channels
    between them. With `batch_norm` there is batch normalisation before each ReLU.
    """
    height, width = config.height // 4, config.width // 4
    bias = not batch_norm  # batch normalisation subtracts the mean anyway
    inner = [nn.Linear(inputs, 2 * size * height * width, bias=bias), nn.Unflatten(1, (2 * size, height, width))]
    between = [nn.ConvTranspose2d(2 * size, size, 4, 2, 1, bias=bias)]
    norms = [[nn.BatchNorm2d(channels)] if batch_norm else [] for channels in (2 * size, size)]
    outer = nn.ConvTranspose2d(size, config.channels, 4, 2, 1)
    return nn.Sequential(*inner, *norms[0], nn.ReLU(), *between, *norms[1], nn.ReLU(), outer)


def pixel_layers(config: Config, inputs: int, size: int, layers: int, *, batch_norm: bool) -> nn.Sequential:
    """Return the layers that map z, or an encoder code, to an image's pixels before the final tanh.

    `inputs` is the length of z or of the code. With the architecture "conv" the layers are
    transposed convolutions, and `size` is their number of channels. Otherwise they are a perceptron
    of `layers` layers with `size` hidden units. With `batch_norm` the hidden layers have batch
    normalisation.
    """
    if config.architecture == "conv":
        return decoder_layers(inputs, config, size, batch_norm=batch_norm)
    pixels = config.channels * config.height * config.width
    return perceptron(inputs, size, layers, pixels, batch_norm=batch_norm)


class Generator(nn.Module):
    """The generator G, which maps z (B, J) to images (B, C, H, W) in −1 … 1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = (config.channels, config.height, config.width)
        norm = config.batch_norm
        self.layers = pixel_layers(config, config.latents, config.size_g, config.layers_g, batch_norm=norm)

    def forward(self, z: Float[Tensor, "B J"]) -> Images:
        """Return the images G(z) in −1 … 1; they are float32 under autocast, too."""
        return fast_tanh(self.layers(z)).view(-1, *self.shape)


class Encoder(nn.Module):
    """The encoder Enc, which maps images in −1 … 1 to encoder codes (B, S).

    Its dropout is drawn from the random streams of each row, so it does not depend on the batch.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        channels, size = config.channels, config.size_d
        self.units = config.code or size
        if config.architecture == "conv":
            flat = 2 * size * (config.height // 4) * (config.width // 4)
            stages: list[nn.Module] = [
                nn.Sequential(nn.Conv2d(channels, size, 4, 2, 1), nn.LeakyReLU(SLOPE)),
                nn.Sequential(nn.Conv2d(size, 2 * size, 4, 2, 1), nn.LeakyReLU(SLOPE)),
                nn.Sequential(nn.Flatten(), nn.Linear(flat, self.units)),
            ]
        else:
            inner = [size] * (config.layers_d - config.layers_dec - 1)
            widths = (channels * config.height * config.width, *inner, self.units)
            stages = [nn.Sequential(nn.Flatten(), nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)]
            if config.code:
                stages[-1] = nn.Sequential(nn.Flatten(), nn.Linear(widths[-2], widths[-1]))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Images, rows: RowStreams | None = None, stream: int = FIRST_FREE) -> tuple[Code, Code]:
        """Return the encoder codes (B, S) twice: before and after the last layer's dropout.

        Layer i draws its dropout from the stream `stream` + i of `rows`. Without `rows` there is no
        dropout, and both results are equal.
        """
        code = kept = x
        for number, stage in enumerate(self.stages):
            code = stage(kept)
            kept = code if rows is None else self._dropout(code, rows, stream + number)
        return code.float(), kept

    def _dropout(self, h: Tensor, rows: RowStreams, stream: int) -> Tensor:
        """Return `h` after dropout, which is drawn from the stream `stream` of `rows`."""
        if not self.dropout:
            return h
        keep = rows.bernoulli(torch.full_like(h.flatten(1), 1.0 - self.dropout, dtype=torch.float32), stream)
        return h * keep.view_as(h) / (1.0 - self.dropout)


class AutoEncoder(nn.Module):
    """The discriminator D of an EBGAN: an auto-encoder that returns energies and encoder codes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = (config.channels, config.height, config.width)
        self.encoder = Encoder(config)
        self.decoder = pixel_layers(config, self.encoder.units, config.size_d, config.layers_dec, batch_norm=False)

    def forward(self, x: Images, rows: RowStreams | None = None, stream: int = FIRST_FREE) -> tuple[PerImage, Code]:
        """Return the energies D(x) (B,), and the encoder codes (B, S) before the last layer's
        dropout.

        The energies are float32 under autocast, too. Layer i draws its dropout from the stream
        `stream` + i of `rows`; without `rows` there is no dropout.
        """
        code, kept = self.encoder(x, rows, stream)
        return energy(x, self.decode(kept)), code

    def decode(self, code: Code) -> Images:
        """Return Dec(code), images (B, C, H, W) in −1 … 1."""
        return fast_tanh(self.decoder(code)).view(-1, *self.shape)


class Critic(nn.Module):
    """The discriminator D of a plain GAN: maps images to the logits that they are real."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.logit = nn.Linear(self.encoder.units, 1)

    def forward(self, x: Images, rows: RowStreams | None = None, stream: int = FIRST_FREE) -> tuple[PerImage, Code]:
        """Return the logits (B,), and the last hidden layer (B, S) before its dropout.

        The logits are float32 under autocast, too. Layer i draws its dropout from the stream
        `stream` + i of `rows`; without `rows` there is no dropout.
        """
        code, kept = self.encoder(x, rows, stream)
        logits: Tensor = self.logit(kept).float()[:, 0]
        return logits, code


# --- Options of the operations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleOptions:
    """Options of `sample`: single draws G(z), or draws chosen by energy among several candidates."""

    best_of: int | None = option(
        None, minimum=1, maximum=1024, description="candidates a row, of which the lowest energy is kept"
    )
    below: float | None = option(
        None, minimum=0.0, maximum=1e6, description="keep a row's first candidate whose energy is below this"
    )
    # See docs/decisions.md#rejection-sampling-has-a-budget-of-proposals
    proposals: int = option(
        256, minimum=1, maximum=4096, description="candidates a row at most for `below`; then the lowest energy is kept"
    )


@dataclass(frozen=True)
class NoOptions:
    """Empty record: `decode`, `energy`, `encode` and `reconstruct` have no options."""


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """An EBGAN or a plain GAN: generator, discriminator, and the operations on them.

    `images` are (B, C, H, W) in 0 … 1; the networks work on −1 … 1.
    """

    OPTIMIZED_MODULES: ClassVar[tuple[str, ...]] = ("discriminator", "generator")

    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.architecture == "conv" and (config.height % 4 or config.width % 4):
            raise ValueError(f"conv needs multiples of four, not {config.height} × {config.width} pixels")
        if config.contrast and config.objective != "ebgan":
            raise ValueError("contrast pictures have a hinge of energies, which a plain GAN lacks")
        if config.layers_dec >= config.layers_d:
            raise ValueError(f"layers_d = {config.layers_d} with layers_dec = {config.layers_dec} leaves no encoder")
        self.config = config
        self.generator = Generator(config)
        self.discriminator: AutoEncoder | Critic = (
            AutoEncoder(config) if config.objective == "ebgan" else Critic(config)
        )
        self.register_buffer("quantiles", torch.zeros(QUANTILES))

    @property
    def unit(self) -> str:
        """The unit of energies: "norm" with the objective "ebgan", otherwise "nats"."""
        return "norm" if self.config.objective == "ebgan" else "nats"

    def smallest_batch(self) -> int:
        """Return the minimum number of images in a batch of a training step: 2 or 1.

        Returns 2 if batch normalisation applies to a layer that has one value per image and
        channel: its variance needs two images.
        """
        config = self.config
        conv = config.architecture == "conv"
        one_value_per_image = (config.height // 4) * (config.width // 4) == 1 if conv else config.layers_g > 1
        return 2 if config.batch_norm and one_value_per_image else 1

    def initialise(self, rows: RowStreams) -> None:
        """Draw every weight from N(0, 1/fan-in), and set every bias to zero.

        `rows` has a single row, whose random numbers determine all weights.
        """
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        for number, layer in enumerate(layers):
            weight = layer.weight
            fan_in = weight.shape[0] * 4 if isinstance(layer, nn.ConvTranspose2d) else weight[0].numel()
            values = rows.normal(weight.numel(), number)[0] * (1.0 / fan_in) ** 0.5
            weight.data.copy_(values.view_as(weight))
            if layer.bias is not None:
                layer.bias.data.zero_()

    def operations(self) -> dict[str, Any]:
        """Return the description of each operation in the format of the model card, keyed by name.

        The operation `reconstruct` is missing for a plain GAN.
        """
        described = describe(self, without=() if self.config.objective == "ebgan" else ("reconstruct",))
        described["energy"]["unit"] = self.unit
        described["sample"]["options"]["properties"]["best_of"].update(type="integer", default=self.config.best_of)
        return described

    # Sampling

    @torch.inference_mode()
    def sample(self, rows: RowStreams, options: SampleOptions, state: State = None) -> Result:
        """Return `images` (B, C, H, W) in 0 … 1: plain samples G(z), or samples chosen by energy.

        With the option `best_of`, whose default is the config's, each row keeps the candidate of
        the lowest energy, of `best_of` candidates. With the option `below`, each row keeps the
        first candidate whose energy is less than `below`, or the candidate of the lowest energy if
        none of `proposals` candidates is accepted; the config's `best_of` does not apply then. Both
        options also return `energies` (B,). `below` also returns `accepted` (B,), whether a
        candidate was accepted, and `proposals` (B,), the number of candidates up to the accepted
        one, or of all.

        Each call tries `CANDIDATES_PER_CALL` candidates; every call but the last returns a
        `Continuation`. `state` is None in the first call, later the state of the previous
        `Continuation`. Raises ValueError if both options are set, or if `state` has rows with
        different numbers of candidates. A `best_of` equal to the config's counts as not set,
        because the service fills in defaults.
        """
        best_of = options.best_of or self.config.best_of
        if options.below is None and best_of == 1:
            return {"images": self._generate(rows, 0)}
        if options.below is not None and best_of not in (1, self.config.best_of):
            raise ValueError("choose best_of or below, not both")
        total = best_of if options.below is None else options.proposals
        best = self._initial_state(rows) if state is None else state
        done = common_progress(best["done"]) if len(rows) else total
        count = min(CANDIDATES_PER_CALL, total - done)
        best = self._add_candidates(best, rows, done, count, -math.inf if options.below is None else options.below)
        done += count
        if done < total and not bool(best["accepted"].all()):
            return Continuation({**best, "done": torch.full_like(rows.row, done)}, done / total)
        if options.below is None:
            return {"images": best["images"], "energies": best["energies"]}
        return {name: best[name] for name in ("images", "energies", "accepted", "proposals")}

    def _initial_state(self, rows: RowStreams) -> dict[str, Tensor]:
        """Return the state of the operation `sample` before the first candidate, one entry per row.

        "images" and "energies" are those of the best candidate so far, "accepted" says whether a
        candidate was accepted, "proposals" counts the candidates up to the accepted one, and "done"
        counts all candidates.
        """
        zeros = torch.zeros_like(rows.row)
        shape = (len(rows), self.config.channels, self.config.height, self.config.width)
        images = torch.zeros(shape, device=zeros.device)
        energies = torch.full((len(rows),), math.inf, device=zeros.device)
        return {"images": images, "energies": energies, "accepted": zeros.bool(), "proposals": zeros, "done": zeros}

    def _add_candidates(
        self, best: dict[str, Tensor], rows: RowStreams, first: int, count: int, below: float
    ) -> dict[str, Tensor]:
        """Return the state of the operation `sample` after `count` more candidates per row.

        The returned state lacks "done". `best` is the previous state; `_initial_state` describes
        its fields. `first` is the number of the first new candidate. A candidate is accepted if its
        energy is less than `below`; after that, its row changes no more. Each candidate is a
        forward pass over all rows, so that its image is bit-identical to a plain sample's.
        """
        images = torch.stack([self._generate(rows, candidate) for candidate in range(first, first + count)], dim=1)
        energies = torch.stack([self.energies(candidates) for candidates in images.unbind(1)], dim=1)
        index, accepted, proposals = first_accepted(energies < below)
        chosen = torch.where(accepted, index, energies.argmin(dim=1))
        at = torch.arange(len(rows), device=chosen.device)
        searching = ~best["accepted"]
        better = searching & (accepted | (energies[at, chosen] < best["energies"]))
        return {
            "images": torch.where(better[:, None, None, None], images[at, chosen], best["images"]),
            "energies": torch.where(better, energies[at, chosen], best["energies"]),
            "accepted": best["accepted"] | accepted,
            "proposals": best["proposals"] + searching * proposals,
        }

    def _generate(self, rows: RowStreams, candidate: int) -> Images:
        """Return G(z) in 0 … 1 for the z of each row's candidate with the number `candidate`."""
        return self._decode(rows.normals(self.config.latents, candidate, 1, LATENT)[:, 0])

    def _decode(self, z: Float[Tensor, "B J"]) -> Images:
        """Return the images G(z) in 0 … 1."""
        images: Tensor = (self.generator(z) + 1.0) * 0.5
        return images

    @torch.inference_mode()
    def decode(self, codes: Float[Tensor, "B J"], rows: RowStreams, options: NoOptions) -> dict[str, Any]:  # noqa: ARG002
        """Return `images` (B, C, H, W) in 0 … 1: G(z) of the latent codes z = `codes`."""
        return {"images": self._decode(codes)}

    def code_format(self) -> CodeFormat:
        """Return the format of the latent codes that `decode` reads.

        A latent code is z, not a code of the discriminator's encoder.
        """
        return CodeFormat((self.config.latents,), -NORMAL_LIMIT, NORMAL_LIMIT)

    @torch.no_grad()
    def code_activity(self, images: Images, rows: RowStreams) -> CodeActivity:  # noqa: ARG002
        """Return the Euclidean norm of each zⱼ's weights in the generator's first layer, (J,).

        No encoder finds the latent code z of an image, so `images` and `rows` have no effect.
        """
        first = next(self.generator.layers.parameters())  # (units, J)
        return CodeActivity(torch.linalg.vector_norm(first, dim=0), "norm of the generator's first weights")

    # Scoring and encoding

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: NoOptions) -> dict[str, Any]:  # noqa: ARG002
        """Return `energies` (B,), their `unit`, and `percentile` (B,) in 0 … 100.

        The percentile is the percentage of training images that have less energy; a high percentile
        marks an unusual image.
        """
        energies = self.energies(images)
        return {"energies": energies, "percentile": self.percentile(energies), "unit": self.unit}

    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: NoOptions) -> dict[str, Any]:  # noqa: ARG002
        """Return `code` (B, S): Enc(x), or for a plain GAN the last hidden layer of D."""
        code, _ = self.discriminator.encoder(images * 2.0 - 1.0)
        return {"code": code}

    @torch.inference_mode()
    def reconstruct(self, images: Images, rows: RowStreams, options: NoOptions) -> dict[str, Any]:  # noqa: ARG002
        """Return `images` (B, C, H, W) in 0 … 1: the reconstructions Dec(Enc(x)).

        Raises ValueError for a plain GAN, which has no decoder.
        """
        if not isinstance(self.discriminator, AutoEncoder):
            raise ValueError("the discriminator of a plain GAN cannot reconstruct images")  # noqa: TRY004
        code, _ = self.discriminator.encoder(images * 2.0 - 1.0)
        return {"images": (self.discriminator.decode(code) + 1.0) * 0.5}

    def energies(self, images: Images) -> PerImage:
        """Return the energies D(x) (B,) of images in 0 … 1; for a plain GAN −log D(x), in nats."""
        scores: Tensor = self.discriminator(images * 2.0 - 1.0)[0]
        return scores if self.config.objective == "ebgan" else gan_generator_loss(scores)

    def percentile(self, energies: PerImage) -> PerImage:
        """Return, for each energy, the percentage of training images that have less energy (B,).

        The percentage is interpolated between quantiles of the training images' energies, which are
        stored with the weights at the end of a training.
        """
        above = torch.searchsorted(self.quantiles, energies.contiguous(), right=True).clamp(1, QUANTILES - 1)
        low, high = self.quantiles[above - 1], self.quantiles[above]
        within = ((energies - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        return (above - 1 + within) * (100.0 / (QUANTILES - 1))

    # Training

    def training_steps(self, images: Images, rows: RowStreams, epoch: int = 0) -> Iterator[OptimizerStep]:  # noqa: ARG002
        """Yield the optimizer step of the discriminator, then the step of the generator.

        Both use the same generated images. The losses of the generator's step are computed with the
        updated discriminator, so apply the first step before you request the second.
        """
        x = images * 2.0 - 1.0
        fake = self.generator(rows.normal(self.config.latents, LATENT))
        streams = [FIRST_FREE + number * len(self.discriminator.encoder.stages) for number in range(3)]
        real_score, _ = self.discriminator(x, rows, streams[0])
        fake_score, _ = self.discriminator(fake.detach(), rows, streams[1])
        losses, metrics = self.discriminator_losses(real_score, fake_score), self._metrics(real_score, fake_score)
        if self.config.contrast:
            contrast = contrast_pictures(images, rows.uniform(2, CONTRAST)) * 2.0 - 1.0
            contrast_score, _ = self.discriminator(contrast)
            losses = losses + self.config.contrast * hinge(contrast_score, CONTRAST_MARGIN * self.config.margin)
            metrics["d_contrast"] = contrast_score
        yield OptimizerStep("discriminator", losses, metrics)
        score, code = self.discriminator(fake, rows, streams[2])
        yield OptimizerStep("generator", self.generator_losses(score, code))

    def discriminator_losses(self, real: PerImage, fake: PerImage) -> PerImage:
        """Return the discriminator's loss for each image (B,): EBGAN eq. 1, or a plain GAN's.

        `real` and `fake` are the energies of real and generated images; for a plain GAN, their
        logits.
        """
        if self.config.objective == "gan":
            return gan_discriminator_loss(real, fake)
        return discriminator_loss(real, fake, self.config.margin)

    def generator_losses(self, fake: PerImage, code: Code) -> PerImage:
        """Return the generator's loss for each generated image (B,): EBGAN eq. 2, or a plain GAN's.

        `fake` has the energies of the images (for a plain GAN, their logits), and `code` their
        encoder codes. The pulling-away term is added with the weight `config.pulling_away`.
        """
        losses = gan_generator_loss(fake) if self.config.objective == "gan" else generator_loss(fake)
        return losses + self.config.pulling_away * pulling_away(code) if self.config.pulling_away else losses

    def _metrics(self, real: PerImage, fake: PerImage) -> dict[str, PerImage]:
        """Return metrics of a training step, (B,) each: `d_real` = D(x) and `d_fake` = D(G(z)).

        `real` and `fake` are the energies of real and generated images; for a plain GAN their
        logits, of which D is the sigmoid. An EBGAN also has `active_hinges`: 1 where D(G(z)) is
        below the margin, otherwise 0.
        """
        if self.config.objective == "gan":
            return {"d_real": real.sigmoid(), "d_fake": fake.sigmoid()}
        return {"d_real": real, "d_fake": fake, "active_hinges": (fake < self.config.margin).float()}

    @torch.no_grad()
    def finalize(self, images: Callable[[], Iterator[Images]], rows: Callable[[int, int], RowStreams]) -> None:
        """Fix the statistics of batch normalisation after a training, and store energy quantiles.

        The statistics become averages over new generated images. The quantiles are those of the
        energies of the training images, which `images()` iterates over, in 0 … 1. `rows(first,
        count)` returns `count` rows of random streams, from row `first` on, that the training has
        not used.
        """
        norms = [module for module in self.generator.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        self.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # average all batches equally
        for first in range(0, 10000 if norms else 0, 500):
            self.generator(rows(first, 500).normal(self.config.latents, LATENT))
        self.eval()
        self.store_quantiles(images())
        for norm in norms:
            norm.momentum = 0.1
        self.train()

    @torch.no_grad()
    def store_quantiles(self, images: Iterable[Images]) -> None:
        """Compute the quantiles of the training images' energies, and store them in the model.

        `percentile` reads these quantiles, which are in the buffer `quantiles`, from the minimum to
        the maximum at equal steps of probability. `images` yields batches of the training images,
        in 0 … 1.
        """
        energies = torch.cat([self.energies(batch) for batch in images]).double()
        levels = torch.linspace(0.0, 1.0, QUANTILES, dtype=torch.float64, device=energies.device)
        self.quantiles.copy_(torch.quantile(energies, levels))

    # Measuring

    @torch.inference_mode()
    def evaluate(
        self, images: Images, seed: int, k: int, precision: str = "float32", report: Report = no_report
    ) -> Figures:
        """Measure the model on `images` and on `k` samples; return metrics for its model card.

        They are the mean energies of the images and of the samples, and the mean pulling-away term
        f_PT (EBGAN §2.4) of the samples' codes. These samples are single draws: `best_of` does not
        apply. `report` is called with the number of images done. Raises ValueError if `images` or
        `k` are fewer than two, or if `precision` is not "float32".
        """
        if k < 2 or len(images) < 2:
            raise ValueError(f"{len(images)} images and {k} samples: at least two of each are needed")
        if precision != "float32":
            raise ValueError("energies are measured in float32")
        real = torch.cat([self.energies(part) for part in torch.split(images, 500)]).double()
        report(len(images))
        rows = [RowStreams.range(seed, first, min(500, k - first), images.device) for first in range(0, k, 500)]
        samples = [self._generate(part, 0) for part in rows]
        fake = torch.cat([self.energies(part) for part in samples]).double()
        similarity = [pulling_away(self.discriminator.encoder(part * 2.0 - 1.0)[0]) for part in samples]
        figures = (
            ("energy", real, self.unit, "lower", f"D(x), mean of {len(images)} test pictures"),
            ("sample_energy", fake, self.unit, "lower", f"D(G(z)), mean of {k} single draws"),
            (
                "pulling_away",
                torch.cat(similarity),
                "1",
                "lower",
                f"f_PT of the codes of {k} single draws, 500 at a time",
            ),
        )
        return [mean_figure(*figure, digits=4) for figure in figures]
