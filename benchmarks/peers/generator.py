"""Shared by all peers: the repository's model and image encoder, from seeds to response bodies.

Imported inside each peer's environment, which holds torch, numpy, Pillow, safetensors and orjson
beside the peer; the repository itself is on ``PYTHONPATH``. As a script it prints what the
benchmark needs to know of a checkpoint.
"""

import argparse
import base64
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import torch

from core.imaging.pictures import png
from models.kit.card import load as load_checkpoint
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams

CHECKPOINT = "PEER_CHECKPOINT"
THREADS = "PEER_THREADS"


class Generator(NamedTuple):
    """A loaded model, and the name and version in its responses."""

    model: Any
    options: Any
    name: str
    version: str


def load() -> Generator:
    """Load the checkpoint folder that the environment names, and warm the model up.

    The folder is .../NAME/VERSION; the warm-up runs batches of 1, 16 and 64 rows.
    """
    torch.set_num_threads(int(os.environ.get(THREADS, "1")))
    folder = Path(os.environ[CHECKPOINT])
    model, _ = load_checkpoint(folder / "model.safetensors")
    generator = Generator(model, options_of(model, "sample")(), folder.parent.name, folder.name)
    for rows in (1, 16, 64):
        pictures(generator, list(range(rows)))
    return generator


@torch.inference_mode()
def pictures(generator: Generator, seeds: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw one sample per seed by one forward pass; return grey levels (B, 1, 28, 28)."""
    seed = torch.tensor(seeds, dtype=torch.int64)
    images = generator.model.sample(RowStreams(seed, torch.zeros_like(seed)), generator.options)["images"]
    return (images * 255).round().to(torch.uint8).numpy()


def run(generator: Generator, seeds: list[int]) -> list[dict[str, Any]]:
    """Return one response body per seed, with the fields of Reverie's responses."""
    return [
        {
            "model": generator.name,
            "version": generator.version,
            "seed": seed,
            "images": [base64.b64encode(png(image)).decode("ascii")],
        }
        for seed, image in zip(seeds, pictures(generator, seeds), strict=True)
    ]


def encoded(generator: Generator, seeds: list[int]) -> list[bytes]:
    """Return the same bodies as JSON text, for peers that pass bytes through."""
    return [orjson.dumps(body) for body in run(generator, seeds)]


def cost_ms(generator: Generator, rows: int, seconds: float) -> dict[str, float]:
    """Return median and minimum milliseconds of one forward pass over `rows` rows, PNG included."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(took) < 5:
        start = time.perf_counter()
        run(generator, list(range(rows)))
        took.append(time.perf_counter() - start)
    return {"median": 1000 * sorted(took)[len(took) // 2], "least": 1000 * min(took)}


def main() -> None:
    """Print response bodies of the first `--bodies` seeds, or the cost of a pass, as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--bodies", type=int, default=0)
    arguments = parser.parse_args()
    generator = load()
    if arguments.bodies:
        print(json.dumps([body for seed in range(arguments.bodies) for body in run(generator, [seed])]))
    else:
        print(json.dumps({rows: cost_ms(generator, rows, 1.0) for rows in (1, 16, 64)}))


if __name__ == "__main__":
    main()
