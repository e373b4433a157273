"""A family of 8×8 binary images with nearly every operation, each of which takes almost no time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from models.kit.operations import Continuation, describe
from models.kit.row_streams import BINARIZE, CHOICE, FIRST_FREE, LATENT, RowStreams
from models.kit.sampling import first_accepted
from models.kit.schema import option


@dataclass(frozen=True)
class Config:
    """No parameters."""


@dataclass(frozen=True)
class SampleOptions:
    """The length of the chain, the duration of a step, and the threshold of rejection."""

    steps: int = option(1, minimum=1, maximum=500, description="steps of the chain")
    seconds: float = option(0.0, minimum=0.0, maximum=1.0, description="time that a step sleeps")
    threshold: float | None = option(None, minimum=0.0, maximum=1.0, description="keep what is darker than this")


@dataclass(frozen=True)
class InpaintOptions:
    """The binarization, the inversion, and the length of the chain."""

    binarization: str = option("threshold", choices=("draw", "threshold"), description="how grey pixels become binary")
    inverted: bool = option(False, description="whether dark and light change places in the answer")
    steps: int = option(1, minimum=1, maximum=500, description="steps of the chain")
    seconds: float = option(0.0, minimum=0.0, maximum=1.0, description="time that a step sleeps")


@dataclass(frozen=True)
class EncodeOptions:
    """No parameters."""


@dataclass(frozen=True)
class LikelihoodOptions:
    """The number of importance samples."""

    UNIT: ClassVar[str] = "nats"
    k: int = option(10, minimum=2, maximum=1000, description="importance samples an image")


class Model(nn.Module):
    """A model whose samples brighten with each step, whose hidden pixels are random and whose codes
    are sums of pixels.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(1))

    def operations(self) -> dict[str, Any]:
        """Return the operations of the model."""
        return describe(self)

    def sample(
        self, rows: RowStreams, options: SampleOptions, state: dict[str, torch.Tensor] | None = None
    ) -> dict[str, Any] | Continuation:
        """Return uniformly grey images: with a `threshold`, the first of eight proposals that is
        darker, if any.
        """
        steps = self._stepped(rows, options.seconds, state)
        brightness = rows.uniform(8, LATENT)
        kept = brightness < (2.0 if options.threshold is None else options.threshold)
        index, found, proposals = first_accepted(kept)
        images = brightness.gather(1, index[:, None]).expand(-1, 64).reshape(-1, 1, 8, 8)
        if int(steps[0]) < options.steps:
            done = int(steps[0]) / options.steps
            return Continuation({"steps": steps}, done, images * done)
        answer = {"images": images * self.scale}
        return answer if options.threshold is None else {**answer, "accepted": found, "proposals": proposals}

    def inpaint(
        self,
        images: torch.Tensor,
        mask: torch.Tensor,
        rows: RowStreams,
        options: InpaintOptions,
        state: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, Any] | Continuation:
        """Return the visible pixels, binarized, and random values for the hidden ones, which change
        with each step.
        """
        steps = self._stepped(rows, options.seconds, state)
        turned = rows.uniform(64, FIRST_FREE + int(steps[0]))
        turned = (turned if state is None else turned + state["turned"]).frac()
        pixels = images.flatten(1)
        known = rows.bernoulli(pixels, BINARIZE) if options.binarization == "draw" else (pixels >= 0.5).float()
        filled = torch.where(mask.flatten(1) >= 0.5, (turned < 0.5).float(), known).view_as(images)
        if int(steps[0]) < options.steps:
            return Continuation({"steps": steps, "turned": turned}, int(steps[0]) / options.steps, filled)
        images = 1 - filled if options.inverted else filled
        return {"images": images, "binarization": options.binarization}

    def encode(self, images: torch.Tensor, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """Return two layers of codes: the sums of the image's thirds and of its halves."""
        pixels = images.flatten(1)
        thirds = torch.stack([third.sum(1) for third in pixels.tensor_split(3, 1)], 1)
        halves = torch.stack([half.sum(1) for half in pixels.tensor_split(2, 1)], 1)
        return {"layers.1": halves, "layers.0": thirds}

    def energy(self, images: torch.Tensor, rows: RowStreams, options: EncodeOptions) -> dict[str, Any]:
        """Return the mean pixel of each image.

        In batches below four rows, each seventh row differs in its last bits, as rows of matrix
        products may.
        """
        differs = (rows.row % 7 == 5) & (len(rows) < 4)
        return {"energies": images.flatten(1).mean(1) + 1e-6 * differs}

    def log_likelihood(self, images: torch.Tensor, rows: RowStreams, options: LikelihoodOptions) -> dict[str, Any]:
        """Return per-row numbers, per-model numbers, and one field that is infinite."""
        mean = images.flatten(1).mean(1)
        size = options.k * rows.uniform(1, CHOICE)[:, 0]
        constants = {"log_z": -1.25, "log_z_standard_error": torch.tensor(0.5), "k": options.k}
        return {"log_p": -mean, "log_p_star": -mean / 0.0, "effective_sample_size": size, **constants}

    def _stepped(self, rows: RowStreams, seconds: float, state: dict[str, torch.Tensor] | None) -> torch.Tensor:
        time.sleep(seconds)
        return 1 + (torch.zeros(len(rows), dtype=torch.int64) if state is None else state["steps"])
