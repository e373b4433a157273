"""`models.kit.shapes`: annotations are checked in tests and cost nothing elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import vae

ROOT = Path(__file__).parents[3]


def test_a_wrong_shape_is_caught_here() -> None:
    """While these tests run, a tensor whose shape contradicts the signature raises an error."""
    with pytest.raises(Exception, match="Type-check error"):
        vae.kl_to_prior(torch.zeros(2, 3), torch.zeros(2, 4))


def test_models_import_without_jaxtyping() -> None:
    """The models can be imported and run without jaxtyping installed."""
    code = (
        "import sys; sys.modules['jaxtyping'] = None; import models.kit.train, models.vae as vae;"
        "from models.kit.row_streams import RowStreams; model = vae.Model(vae.Config(hidden=(8,), latents=2)).eval();"
        "assert model.sample(RowStreams.range(0, 0, 3), vae.SampleOptions())['images'].shape == (3, 1, 28, 28)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
