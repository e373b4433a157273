r"""Energy-based Generative Adversarial Network, Zhao, Mathieu and LeCun, arXiv:1609.03126v4 (ICLR 2017).

The baseline `objective` "gan" is that of Goodfellow et al., "Generative Adversarial Networks", arXiv:1406.2661v1.

    paper              here                  shape      unit      eq.
    x, G(z)            x, fake               B C H W    -1 … 1    -
    z                  z                     B J        1         -
    S, Enc(x)          code                  B S        1         §2.4
    D(x)               energy                B          norm      §2.3
    L_D                discriminator_loss    B          norm      1
    [m − D(G(z))]⁺     hinge                 B          norm      1
    L_G                generator_loss        B          norm      2
    f_PT               pulling_away          B          1         §2.4

The energy is the Euclidean norm (not its square, not a mean) of the reconstruction's error over all C·H·W pixels of one
picture, pixels in −1 … 1. The unit "norm" is that: for 28 × 28 pixels an energy lies in 0 … 56, one of a digit that is
reconstructed well in 3 … 6, so that the paper's margin m = 10 can be reached and is not always. The hinge is taken for
each picture and then averaged. f_PT comes as row means, so that the mean over the batch is the paper's; the plain GAN's
losses and its energy −log D(x) are in nats.

Departs from the paper: z is normal, and the generator's turn plays the same z against the discriminator just moved;
the convolutional variant is ours, for small pictures, and its decoder mirrors the encoder; batch normalisation is in
the generator alone, where sampling uses statistics fixed after training; a narrow linear code and a decoder of several
layers are possible; the plain GAN's generator descends −log D(G(z)), which the slides leave open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from models.kit.continuation import Continuation
from models.kit.operations import describe
from models.kit.optimizer_step import OptimizerStep
from models.kit.row_streams import FIRST_FREE, LATENT, RowStreams
from models.kit.sampling import first_accepted
from models.kit.schema import option
from models.kit.shapes import Float, Tensor

Images = Float[Tensor, "B C H W"]
PerImage = Float[Tensor, "B"]
Code = Float[Tensor, "B S"]

_NORMALISED = {"batch_norm": {"const": True}}
SMALLEST_BATCHES = [
    {
        "pictures": 2,
        "when": {"properties": {**_NORMALISED, "architecture": {"const": "mlp"}, "layers_g": {"minimum": 2}}},
    },
    {
        "pictures": 2,
        "when": {
            "properties": {
                **_NORMALISED,
                "architecture": {"const": "conv"},
                "height": {"maximum": 7},
                "width": {"maximum": 7},
            }
        },
    },
]
"""What `Model.smallest_batch` says, for those who have no torch: JSON Schemas of the config."""

QUANTILES = 1001  # of the training set's energies
SLICE = 16  # candidates a row of one slice of sampling
SLOPE = 0.2  # of the convolutional discriminator's activations below zero


@dataclass(frozen=True)
class Config:
    """The two players and their game; by default the paper's, of a size for small machines."""

    channels: int = option(1, minimum=1, maximum=4)
    height: int = option(28, minimum=1, maximum=512, description="pixels; a multiple of four for conv")
    width: int = option(28, minimum=1, maximum=512, description="pixels; a multiple of four for conv")
    objective: str = option("ebgan", choices=("ebgan", "gan"))
    architecture: str = option("mlp", choices=("mlp", "conv"))
    latents: int = option(100, minimum=1, maximum=4096, description="dimensions of z")
    layers_g: int = option(3, minimum=1, maximum=16, description="layers of the generator (mlp)")
    size_g: int = option(400, minimum=1, maximum=8192, description="units a layer (mlp), channels at half size (conv)")
    layers_d: int = option(2, minimum=2, maximum=16, description="layers of Enc and Dec together (mlp)")
    layers_dec: int = option(1, minimum=1, maximum=15, description="of them Dec's; one in the paper (mlp)")
    size_d: int = option(128, minimum=1, maximum=8192, description="units a layer (mlp), channels at half size (conv)")
    code: int = option(
        0,
        minimum=0,
        maximum=8192,
        description="units of a narrow linear code; 0: size_d units, rectified in mlp",
    )
    batch_norm: bool = option(default=True, description="normalise the generator's hidden layers over the batch")
    dropout: float = option(0.0, minimum=0.0, below=1.0, description="share of the encoder's units left out")
    margin: float = option(10.0, above=0.0, maximum=1e6, description="m, an energy")
    pulling_away: float = option(0.0, minimum=0.0, maximum=1e6, description="weight of f_PT; EBGAN-PT has 0.1")


# --- The paper's equations -------------------------------------------------------------------------------------------


def energy(x: Images, reconstruction: Images) -> PerImage:
    """§2.3: D(x) = ‖Dec(Enc(x)) − x‖, the Euclidean norm over one picture's pixels; its gradient at 0 is 0."""
    norms: Tensor = torch.linalg.vector_norm((reconstruction - x).flatten(1), dim=1)
    return norms


def hinge(fake: PerImage, margin: float) -> PerImage:
    """Eq. 1: [m − D(G(z))]⁺ of each sample; beyond the margin it is 0 and so is its gradient."""
    return (margin - fake).clamp_min(0.0)


def discriminator_loss(real: PerImage, fake: PerImage, margin: float) -> PerImage:
    """Eq. 1: L_D(x, z) = D(x) + [m − D(G(z))]⁺."""
    return real + hinge(fake, margin)


def generator_loss(fake: PerImage) -> PerImage:
    """Eq. 2: L_G(z) = D(G(z))."""
    return fake


def pulling_away(code: Code) -> PerImage:
    """§2.4: row i is 1/(N − 1) Σ_{j≠i} (SᵢᵀSⱼ / ‖Sᵢ‖‖Sⱼ‖)², so that the mean over rows is f_PT.

    A code of zeros counts as orthogonal to all others and has no gradient.
    """
    unit = code / torch.linalg.vector_norm(code, dim=1, keepdim=True).clamp_min(1e-6)
    squares = (unit @ unit.T).square()
    others: Tensor = squares.sum(dim=1) - squares.diagonal()
    return others / max(1, len(code) - 1)


def gan_discriminator_loss(real: PerImage, fake: PerImage) -> PerImage:
    """Goodfellow et al., eq. 1, negated: −log D(x) − log(1 − D(G(z))), where D = sigmoid of the given logits."""
    return functional.softplus(-real) + functional.softplus(fake)


def gan_generator_loss(fake: PerImage) -> PerImage:
    """Goodfellow et al., §3: −log D(G(z)), whose gradient does not vanish where the discriminator is sure."""
    return functional.softplus(-fake)


# --- Blocks ----------------------------------------------------------------------------------------------------------


def perceptron(inputs: int, size: int, layers: int, outputs: int, *, batch_norm: bool) -> nn.Sequential:
    """`layers` linear layers with ReLU between them, normalised over the batch before it where asked."""
    widths = (inputs, *[size] * (layers - 1))
    made: list[nn.Module] = []
    for one, next_one in pairwise(widths):
        norms = [nn.BatchNorm1d(next_one)] if batch_norm else []
        made += [nn.Linear(one, next_one, bias=not batch_norm), *norms, nn.ReLU()]
    return nn.Sequential(*made, nn.Linear(widths[-1], outputs))


def squashed(a: Float[Tensor, "B *D"]) -> Float[Tensor, "B *D"]:
    """Tanh a = 2 sigmoid(2a) − 1 in float32: on a CPU a tenth of the time of torch's own tanh."""
    return 2.0 * (2.0 * a.float()).sigmoid() - 1.0


def upwards(inputs: int, config: Config, size: int, *, batch_norm: bool) -> nn.Sequential:
    """A code as a picture: linear to a quarter of its height and width, then twice a transposed convolution 4c2s."""
    height, width = config.height // 4, config.width // 4
    bias = not batch_norm  # which takes the mean away
    inner = [nn.Linear(inputs, 2 * size * height * width, bias=bias), nn.Unflatten(1, (2 * size, height, width))]
    between = [nn.ConvTranspose2d(2 * size, size, 4, 2, 1, bias=bias)]
    norms = [[nn.BatchNorm2d(channels)] if batch_norm else [] for channels in (2 * size, size)]
    outer = nn.ConvTranspose2d(size, config.channels, 4, 2, 1)
    return nn.Sequential(*inner, *norms[0], nn.ReLU(), *between, *norms[1], nn.ReLU(), outer)


class Generator(nn.Module):
    """G: z (B, J) to pictures in −1 … 1."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = (config.channels, config.height, config.width)
        self.layers = (
            upwards(config.latents, config, config.size_g, batch_norm=config.batch_norm)
            if config.architecture == "conv"
            else perceptron(
                config.latents, config.size_g, config.layers_g, math.prod(self.shape), batch_norm=config.batch_norm
            )
        )

    def forward(self, z: Float[Tensor, "B J"]) -> Images:
        """Tanh of the last layer, float32 whatever the precision inside."""
        return squashed(self.layers(z)).view(-1, *self.shape)


class Encoder(nn.Module):
    """Enc: pictures in −1 … 1 to codes (B, S), units left out as a row's numbers say."""

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
        """The code with all of its units, and with some left out (the same where there is no dropout, or no rows)."""
        code = kept = x
        for number, stage in enumerate(self.stages):
            code = stage(kept)
            kept = code if rows is None else self._dropped(code, rows, stream + number)
        return code.float(), kept

    def _dropped(self, h: Tensor, rows: RowStreams, stream: int) -> Tensor:
        if not self.dropout:
            return h
        keep = rows.bernoulli(torch.full_like(h.flatten(1), 1.0 - self.dropout, dtype=torch.float32), stream)
        return h * keep.view_as(h) / (1.0 - self.dropout)


class AutoEncoder(nn.Module):
    """D: the energy of pictures, and their codes."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = (config.channels, config.height, config.width)
        self.encoder = Encoder(config)
        self.decoder = (
            upwards(self.encoder.units, config, config.size_d, batch_norm=False)
            if config.architecture == "conv"
            else perceptron(
                self.encoder.units, config.size_d, config.layers_dec, math.prod(self.shape), batch_norm=False
            )
        )

    def forward(self, x: Images, rows: RowStreams | None = None, stream: int = FIRST_FREE) -> tuple[PerImage, Code]:
        """D(x) in float32 whatever the precision inside, and the code."""
        code, kept = self.encoder(x, rows, stream)
        return energy(x, self.decoded(kept)), code

    def decoded(self, code: Code) -> Images:
        """Dec: a code as a picture in −1 … 1."""
        return squashed(self.decoder(code)).view(-1, *self.shape)


class Critic(nn.Module):
    """The plain GAN's D: the logit that a picture is real, and the last hidden layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.logit = nn.Linear(self.encoder.units, 1)

    def forward(self, x: Images, rows: RowStreams | None = None, stream: int = FIRST_FREE) -> tuple[PerImage, Code]:
        """Logits in float32 whatever the precision inside, and the last hidden layer."""
        code, kept = self.encoder(x, rows, stream)
        logits: Tensor = self.logit(kept).float()[:, 0]
        return logits, code


# --- Options of the operations ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleOptions:
    """How to draw: as they come, the best of some, or only those under an energy."""

    best_of: int = option(
        1, minimum=1, maximum=1024, description="candidates a row, of which the lowest energy is kept"
    )
    below: float | None = option(
        None, minimum=0.0, maximum=1e6, description="keep a row's first candidate whose energy is below this"
    )
    proposals: int = option(
        256, minimum=1, maximum=4096, description="candidates a row at most for `below`; then the lowest energy is kept"
    )


@dataclass(frozen=True)
class EnergyOptions:
    """There is nothing to choose."""


@dataclass(frozen=True)
class EncodeOptions:
    """There is nothing to choose."""


@dataclass(frozen=True)
class ReconstructOptions:
    """There is nothing to choose."""


# --- Model -----------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """G and D, and what can be asked of them. `images` hold 0 … 1; inside pixels lie in −1 … 1."""

    OPTIMIZED_MODULES: ClassVar[tuple[str, ...]] = ("discriminator", "generator")

    quantiles: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.architecture == "conv" and (config.height % 4 or config.width % 4):
            raise ValueError(f"conv needs multiples of four, not {config.height} × {config.width} pixels")
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
        """What energies are in."""
        return "norm" if self.config.objective == "ebgan" else "nats"

    def smallest_batch(self) -> int:
        """Two pictures where a layer is normalised over the batch alone: it has one value for each of them."""
        config = self.config
        conv = config.architecture == "conv"
        alone = (config.height // 4) * (config.width // 4) == 1 if conv else config.layers_g > 1
        return 2 if config.batch_norm and alone else 1

    def initialise(self, rows: RowStreams) -> None:
        """Weights from N(0, 1/n), n being a unit's inputs; biases zero."""
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
        for number, layer in enumerate(layers):
            weight = layer.weight
            fan_in = weight.shape[0] * 4 if isinstance(layer, nn.ConvTranspose2d) else weight[0].numel()
            drawn = rows.normal(weight.numel(), number)[0] * (1.0 / fan_in) ** 0.5
            weight.data.copy_(drawn.view_as(weight))
            if layer.bias is not None:
                layer.bias.data.zero_()

    def operations(self) -> dict[str, Any]:
        """What this model can do; the plain GAN's discriminator reconstructs nothing."""
        described = describe(self, without=() if self.config.objective == "ebgan" else ("reconstruct",))
        described["energy"]["unit"] = self.unit
        return described

    # Sampling

    @torch.inference_mode()
    def sample(
        self, rows: RowStreams, options: SampleOptions, state: dict[str, Tensor] | None = None
    ) -> dict[str, Any] | Continuation:
        """G(z); of several candidates the one of lowest energy, or the first below an energy, `SLICE` of them a call.

        `images` (B, C, H, W) in 0 … 1; with several candidates their `energies` (B,) too; with `below` also whether
        each was `accepted` (B,) and after how many `proposals` (B,). A row that none of its candidates would serve has
        the one of lowest energy. ValueError where both ways are asked for, or the rows are not equally far.
        """
        if options.below is None and options.best_of == 1:
            return {"images": self._drawn(rows, 0)}
        if options.below is not None and options.best_of > 1:
            raise ValueError("choose best_of or below, not both")
        total = options.best_of if options.below is None else options.proposals
        found = self._nothing(rows) if state is None else state
        done = int(found["done"][0]) if len(rows) else total
        if len(rows) and not bool((found["done"] == done).all()):
            raise ValueError("the rows of a batch must be equally far")
        count = min(SLICE, total - done)
        found = self._considered(found, rows, done, count, -math.inf if options.below is None else options.below)
        done += count
        if done < total and not bool(found["accepted"].all()):
            return Continuation({**found, "done": torch.full_like(rows.row, done)}, done / total)
        if options.below is None:
            return {"images": found["images"], "energies": found["energies"]}
        return {name: found[name] for name in ("images", "energies", "accepted", "proposals")}

    def _nothing(self, rows: RowStreams) -> dict[str, Tensor]:
        """The state before the first candidate."""
        none = torch.zeros_like(rows.row)
        shape = (len(rows), self.config.channels, self.config.height, self.config.width)
        images = torch.zeros(shape, device=none.device)
        energies = torch.full((len(rows),), math.inf, device=none.device)
        return {"images": images, "energies": energies, "accepted": none.bool(), "proposals": none, "done": none}

    def _considered(
        self, found: dict[str, Tensor], rows: RowStreams, first: int, count: int, below: float
    ) -> dict[str, Tensor]:
        """The state after `count` more candidates a row; one that has accepted a candidate looks at no other.

        Each candidate is a pass over the rows as `sample` makes it, so that its bits are those of any other call.
        """
        images = torch.stack([self._drawn(rows, candidate) for candidate in range(first, first + count)], dim=1)
        energies = torch.stack([self.energies(drawn) for drawn in images.unbind(1)], dim=1)
        index, accepted, taken = first_accepted(energies < below)
        chosen = torch.where(accepted, index, energies.argmin(dim=1))
        at = torch.arange(len(rows), device=chosen.device)
        searching = ~found["accepted"]
        better = searching & (accepted | (energies[at, chosen] < found["energies"]))
        return {
            "images": torch.where(better[:, None, None, None], images[at, chosen], found["images"]),
            "energies": torch.where(better, energies[at, chosen], found["energies"]),
            "accepted": found["accepted"] | accepted,
            "proposals": found["proposals"] + searching * taken,
        }

    def _drawn(self, rows: RowStreams, candidate: int) -> Images:
        z = rows.normals(self.config.latents, candidate, 1, LATENT)[:, 0]
        images: Tensor = (self.generator(z) + 1.0) * 0.5
        return images

    # Scoring and encoding

    @torch.inference_mode()
    def energy(self, images: Images, rows: RowStreams, options: EnergyOptions) -> dict[str, Any]:  # noqa: ARG002
        """`energies` (B,) and their `percentile` (B,) among the training pictures', 0 … 100: high ones are unusual."""
        energies = self.energies(images)
        return {"energies": energies, "percentile": self.percentile(energies), "unit": self.unit}

    @torch.inference_mode()
    def encode(self, images: Images, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:  # noqa: ARG002
        """`code` (B, S): Enc(x), or the plain GAN's last hidden layer."""
        code, _ = self.discriminator.encoder(images * 2.0 - 1.0)
        return {"code": code}

    @torch.inference_mode()
    def reconstruct(self, images: Images, rows: RowStreams, options: ReconstructOptions) -> dict[str, Any]:  # noqa: ARG002
        """Dec(Enc(x)); `images` (B, C, H, W) in 0 … 1. ValueError for a plain GAN."""
        if not isinstance(self.discriminator, AutoEncoder):
            raise ValueError("the discriminator of a plain GAN reconstructs nothing")  # noqa: TRY004
        code, _ = self.discriminator.encoder(images * 2.0 - 1.0)
        return {"images": (self.discriminator.decoded(code) + 1.0) * 0.5}

    def energies(self, images: Images) -> PerImage:
        """D(x) of pictures in 0 … 1; −log D(x) for the plain GAN."""
        scores: Tensor = self.discriminator(images * 2.0 - 1.0)[0]
        return scores if self.config.objective == "ebgan" else gan_generator_loss(scores)

    def percentile(self, energies: PerImage) -> PerImage:
        """The share of training pictures with less energy, percent, linear between the stored quantiles."""
        above = torch.searchsorted(self.quantiles, energies.contiguous(), right=True).clamp(1, QUANTILES - 1)
        low, high = self.quantiles[above - 1], self.quantiles[above]
        within = ((energies - low) / (high - low).clamp_min(1e-12)).clamp(0.0, 1.0)
        return (above - 1 + within) * (100.0 / (QUANTILES - 1))

    # Training

    def training_steps(self, images: Images, rows: RowStreams, epoch: int = 0) -> Iterator[OptimizerStep]:  # noqa: ARG002
        """One step of the game: the discriminator's turn, then the generator's against it, on the same G(z)."""
        x = images * 2.0 - 1.0
        fake = self.generator(rows.normal(self.config.latents, LATENT))
        streams = [FIRST_FREE + number * len(self.discriminator.encoder.stages) for number in range(3)]
        real_score, _ = self.discriminator(x, rows, streams[0])
        fake_score, _ = self.discriminator(fake.detach(), rows, streams[1])
        yield OptimizerStep(
            "discriminator", self.discriminator_losses(real_score, fake_score), self._facts(real_score, fake_score)
        )
        score, code = self.discriminator(fake, rows, streams[2])
        yield OptimizerStep("generator", self.generator_losses(score, code))

    def discriminator_losses(self, real: PerImage, fake: PerImage) -> PerImage:
        """Eq. 1 or the plain GAN's."""
        if self.config.objective == "gan":
            return gan_discriminator_loss(real, fake)
        return discriminator_loss(real, fake, self.config.margin)

    def generator_losses(self, fake: PerImage, code: Code) -> PerImage:
        """Eq. 2 or the plain GAN's, and the pulling-away term, which no other loss has."""
        losses = gan_generator_loss(fake) if self.config.objective == "gan" else generator_loss(fake)
        return losses + self.config.pulling_away * pulling_away(code) if self.config.pulling_away else losses

    def _facts(self, real: PerImage, fake: PerImage) -> dict[str, PerImage]:
        """What the metrics tell of a step: D(x), D(G(z)), and the share of hinges that are active."""
        if self.config.objective == "gan":
            return {"d_real": real.sigmoid(), "d_fake": fake.sigmoid()}
        return {"d_real": real, "d_fake": fake, "active_hinges": (fake < self.config.margin).float()}

    @torch.no_grad()
    def finalize(self, images: Callable[[], Iterator[Images]], rows: Callable[[int, int], RowStreams]) -> None:
        """After training: fix the statistics of batch normalisation, then store the training set's energy quantiles.

        `images()` runs over the training pictures in 0 … 1, `rows(first, count)` are rows that nothing else draws.
        """
        norms = [module for module in self.generator.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        self.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of all batches
        for first in range(0, 10000 if norms else 0, 500):
            self.generator(rows(first, 500).normal(self.config.latents, LATENT))
        self.eval()
        energies = torch.cat([self.energies(batch) for batch in images()]).double()
        at = torch.linspace(0.0, 1.0, QUANTILES, dtype=torch.float64, device=energies.device)
        self.quantiles.copy_(torch.quantile(energies, at))
        for norm in norms:
            norm.momentum = 0.1
        self.train()

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
        """The card's figures on given pictures and on `k` samples: energies, and how alike codes are.

        ValueError where there are fewer than two pictures or samples, or another precision than float32.
        """
        if k < 2 or len(images) < 2:
            raise ValueError(f"{len(images)} pictures and {k} samples: it takes two of each")
        if precision != "float32":
            raise ValueError("energies are measured in float32")
        real = torch.cat([self.energies(part) for part in torch.split(images, 500)]).double()
        report(len(images))
        samples = torch.cat([self._drawn(RowStreams.range(seed, at, min(500, k - at)), 0) for at in range(0, k, 500)])
        fake = torch.cat([self.energies(part) for part in torch.split(samples, 500)]).double()
        alike = [pulling_away(self.discriminator.encoder(part * 2.0 - 1.0)[0]) for part in torch.split(samples, 500)]
        named = (
            ("energy", real, self.unit, "lower", f"D(x), mean of {len(images)} test pictures"),
            ("sample_energy", fake, self.unit, "lower", f"D(G(z)), mean of {k} samples"),
            ("pulling_away", torch.cat(alike), "1", "lower", f"f_PT of the codes of {k} samples, 500 at a time"),
        )
        return [_figure(*told) for told in named]


def _figure(name: str, values: Float[Tensor, "N"], unit: str, better: str, detail: str) -> dict[str, Any]:
    """A figure as a card holds it: a mean with its standard error."""
    error = float(values.double().std()) / math.sqrt(len(values))
    value = round(float(values.double().mean()), 4)
    return {"name": name, "value": value, "unit": unit, "better": better, "detail": f"{detail}; s.e. {error:.4f}"}
