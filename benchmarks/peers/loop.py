"""A bare torch loop that draws as many samples as one bulk request.

Each row has a stream of its own; the samples are stored as NPZ.
"""

import argparse
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from generator import CHECKPOINT, THREADS

from models.kit.card import load
from models.kit.operations import options_of
from models.kit.row_streams import RowStreams


def main() -> None:
    """Print the seconds of each repetition for each batch size."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--batches", type=int, nargs="+", required=True)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get(THREADS, "1")))
    model, card = load(Path(os.environ[CHECKPOINT]) / "model.safetensors")
    options = options_of(model, "sample")()
    took: dict[int, list[float]] = {batch: [] for batch in arguments.batches}
    for _ in range(arguments.repeat):
        for batch in arguments.batches:
            model.sample(RowStreams.range(0, 0, batch), options)
            start = time.perf_counter()
            pieces = []
            for first in range(0, arguments.count, batch):
                rows = RowStreams.range(arguments.seed, first, min(batch, arguments.count - first))
                pieces.append((model.sample(rows, options)["images"] * 255).round().to(torch.uint8).numpy())
            buffer = io.BytesIO()
            np.savez(
                buffer,
                model=card["name"],
                version=card["version"],
                seed=np.int64(arguments.seed),
                images=np.concatenate(pieces),
            )
            took[batch].append(time.perf_counter() - start)
    if arguments.out:
        arguments.out.write_bytes(buffer.getvalue())
    print(json.dumps(took))


if __name__ == "__main__":
    main()
