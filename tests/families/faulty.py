"""A family that fails on request, for tests of how the service handles it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.kit.operations import Continuation, describe
from models.kit.row_streams import RowStreams
from models.kit.schema import option

RAISES, REFUSES, KILLS = 13, 14, 666
HANGS, HANGS_LOCKED = 667, 668
"""Seeds whose forward pass does not return: it sleeps without the interpreter lock, as a kernel
does, or with it, as a faulty extension does.
"""


@dataclass(frozen=True)
class Config:
    """No parameters."""


@dataclass(frozen=True)
class SampleOptions:
    """The duration of a forward pass."""

    seconds: float = option(0.0, minimum=0.0, maximum=10.0, description="time that a pass sleeps")


@dataclass(frozen=True)
class LikelihoodOptions:
    """The number of slices and the duration of each."""

    k: int = option(3, minimum=1, maximum=10_000, description="steps")
    seconds: float = option(0.0, minimum=0.0, maximum=1.0, description="time that a step sleeps")


class Model(nn.Module):
    """A model of uniform noise: seed 13 raises RuntimeError, 14 ValueError, 666 kills the process,
    667 and 668 hang.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(1))

    def operations(self) -> dict[str, Any]:
        """Return the operations of the model."""
        return describe(self)

    def sample(self, rows: RowStreams, options: SampleOptions) -> dict[str, Any]:
        """Return noise, unless the seed requests a failure."""
        if options.seconds:
            time.sleep(options.seconds)
        _obey(rows)
        return {"images": rows.uniform(64).view(-1, 1, 8, 8) * self.scale}

    def log_likelihood(
        self,
        images: torch.Tensor,
        rows: RowStreams,
        options: LikelihoodOptions,
        state: dict[str, torch.Tensor] | None = None,
    ) -> dict[str, Any] | Continuation:
        """Return the mean pixel of each image after `k` slices."""
        time.sleep(options.seconds)
        _obey(rows)
        steps = 1 + (torch.zeros(len(rows)) if state is None else state["steps"])
        if int(steps[0]) < options.k:
            return Continuation({"steps": steps}, float(steps[0]) / options.k)
        return {"log_p": images.flatten(1).mean(1), "k": options.k}


def _obey(rows: RowStreams) -> None:
    seeds = set(rows.seed.tolist())
    if KILLS in seeds:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANGS in seeds:
        time.sleep(3600)
    if HANGS_LOCKED in seeds:
        ctypes.PyDLL(None).sleep(3600)
    if RAISES in seeds:
        raise RuntimeError("seed 13 brings bad luck")
    if REFUSES in seeds:
        raise ValueError("seed 14 is not for this model")
