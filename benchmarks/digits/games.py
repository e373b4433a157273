"""Train adversarial models for a benchmark, and score the digits they generate."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(folder))

import torch  # noqa: E402

from digits.classifier import Classifier, probabilities  # noqa: E402
from digits.scores import Scores, scores  # noqa: E402
from models import ebgan  # noqa: E402
from models.kit.recipe import Recipe  # noqa: E402
from models.kit.row_streams import RowStreams  # noqa: E402
from models.kit.train import train, weights  # noqa: E402

SAMPLES = 10_000


@dataclass(frozen=True)
class Game:
    """A finished training: the model, its metrics per epoch, how it ended and how long it took."""

    model: ebgan.Model
    metrics: list[dict[str, Any]]
    reason: str
    seconds: float


def recipe(name: str, seed: int, config: dict[str, Any], training: dict[str, Any]) -> Recipe:
    """Return a recipe for grey MNIST digits, batches of 128, bfloat16, with the given changes."""
    common = {"batch_size": 128, "binarization": "none", "precision": "bfloat16", "save_every_s": 86400.0}
    return Recipe.from_json(
        {
            "family": "ebgan",
            "name": name,
            "summary": "for a benchmark",
            "data": "mnist",
            "seed": seed,
            "config": config,
            "training": {**common, **training},
        }
    )


def played(chosen: Recipe, images: torch.Tensor) -> Game | None:
    """Train a recipe on the given images; return None if the loss becomes NaN."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        ended = train(chosen, images, out)
        if ended.reason == "not a number":
            return None
        if ended.reason == "interrupted":
            raise KeyboardInterrupt
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        tensors, _, _ = weights(out)
    model = ebgan.Model(chosen.config)
    model.load_state_dict(tensors)
    return Game(model.eval(), metrics, ended.reason, ended.seconds)


def drawn(model: ebgan.Model, count: int = SAMPLES, best_of: int | None = None) -> torch.Tensor:
    """Return the first `count` samples of seed 1, (count, 1, 28, 28) in 0 … 1.

    A sample is the best of `best_of` ≤ 16 draws; None takes the model's own number.
    """
    parts = [RowStreams.range(1, at, min(500, count - at)) for at in range(0, count, 500)]
    return torch.cat([model.sample(rows, ebgan.SampleOptions(best_of))["images"] for rows in parts])


def scored(model: ebgan.Model, classifier: Classifier, count: int = SAMPLES, best_of: int | None = None) -> Scores:
    """Return the scores of `count` samples, see `drawn`."""
    return scores(probabilities(classifier, drawn(model, count, best_of)))
