"""`models.kit.memory`: too large networks are rejected by their config, and
the memory limit holds.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.kit.memory import TooLargeError, check_size, min_bytes
from models.kit.recipe import Recipe

ROOT = Path(__file__).parents[3]
DIGITS = ROOT / "tests" / "fixtures" / "digits-images-idx3-ubyte.gz"
HUGE: dict[str, dict[str, Any]] = {
    "vae": {"hidden": [8192] * 9},
    "bihm": {"hidden": [4096] * 40},
    "ebgan": {"size_g": 8192, "layers_g": 16},
    "superres": {"features": 1024, "blocks": 256},
}


def values(family: str, config: dict[str, Any], **training: Any) -> dict[str, Any]:
    """Return the JSON of a recipe."""
    words = {"family": family, "name": "m", "summary": "for tests", "data": str(DIGITS)}
    return {**words, "config": config, "training": {"batch_size": 50, **training}}


def command(folder: Path, name: str, recipe: dict[str, Any], limit: int) -> subprocess.CompletedProcess[str]:
    """Run `python -m models` with a memory limit."""
    (folder / "recipe.json").write_text(json.dumps(recipe))
    words = [name, str(folder / "recipe.json"), "--memory-bytes", str(limit)]
    words += ["--out", str(folder / "run")] if name == "train" else []
    run = [sys.executable, "-m", "models", *words]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_least_memory_is_that_of_weights_and_what_goes_with_each() -> None:
    """The bound counts weights, gradients, two numbers per weight for Adam, none for
    SGD, one for an average.
    """
    small = {"hidden": [16], "latents": 3}
    weights = 4 * (784 * 16 + 16 + 2 * (16 * 3 + 3) + 3 * 16 + 16 + 16 * 784 + 784)
    for training, copies in (({}, 4), ({"optimiser": "sgd"}, 2), ({"optimiser": "adagrad", "average": 0.9}, 4)):
        assert min_bytes(Recipe.from_json(values("vae", small, **training))) == copies * weights


@pytest.mark.parametrize("family", HUGE)
def test_a_huge_network_is_rejected_without_being_allocated(family: str) -> None:
    """A huge network is rejected without being allocated; the message has the memory needed and the
    limit.
    """
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(
        TooLargeError, match=r"takes at least .* MiB of memory for its weights; at most 8192 MiB may be"
    ):
        check_size(Recipe.from_json(values(family, HUGE[family])), 8 << 30)
    assert time.monotonic() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize("name", ["train", pytest.param("estimate", marks=pytest.mark.slow)])
def test_a_process_ends_at_its_limit_with_the_reason(tmp_path: Path, name: str) -> None:
    """A network too large by its weights or by its activations ends the process with status 5."""
    started = time.monotonic()
    done = command(tmp_path, name, values("vae", HUGE["vae"]), 8 << 30)
    assert (done.returncode, "takes at least" in done.stderr) == (5, True), done.stderr
    assert time.monotonic() - started < 60
    wide = values("vae", {"hidden": [64], "samples": 1000}, epochs=1, batch_size=5000)
    done = command(tmp_path, name, wide, 256 << 20)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: it ran out of memory: at most 256 MiB may be held")


def test_more_layers_than_a_network_has_are_refused() -> None:
    """A list of a thousand layers is rejected at once."""
    with pytest.raises(ValueError, match="hidden must have at most 64 items, not 1000"):
        Recipe.from_json(values("vae", {"hidden": [1] * 1000}))
