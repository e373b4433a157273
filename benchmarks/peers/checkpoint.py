"""Write a VAE with random weights as a checkpoint, to serve a model of any
cost without training.
"""

import argparse
import math
from datetime import UTC, datetime
from pathlib import Path

import torch

from models import vae
from models.kit import card


def write(folder: Path, name: str, hidden: tuple[int, ...]) -> Path:
    """Write the checkpoint of a random decoder of these widths.

    Its images differ between seeds. The path is `folder`/NAME/1/model.safetensors.
    """
    config = vae.Config(hidden=hidden)
    model = vae.Model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            deviation = math.sqrt(2 / parameter.shape[-1]) if parameter.ndim > 1 else 0.0
            parameter.normal_(0.0, deviation, generator=generator)
    path = folder / name / "1" / "model.safetensors"
    described = {
        "format": card.FORMAT,
        "name": name,
        "version": "1",
        "family": "vae",
        "summary": f"A VAE with random weights and layers of {hidden}, to measure serving with.",
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "config": {**vars(config), "hidden": list(hidden)},
        "image": {key: getattr(config, key) for key in ("channels", "height", "width")},
        "operations": model.operations(),
        "figures": [],
        "provenance": {"note": "random weights"},
        "license": "MIT",
    }
    card.save(path, model, described)
    return path


def main() -> None:
    """Write a checkpoint of the given widths."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("hidden", type=int, nargs="+")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.name, tuple(arguments.hidden))


if __name__ == "__main__":
    main()
