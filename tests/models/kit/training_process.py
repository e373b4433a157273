"""One process of a distributed training, as on a host of its own; `test_distributed.py` starts
several.

    python -m tests.models.kit.training_process RECIPE FOLDER PORT PORT PORT

with the variables that torchrun sets. It writes the gradients of one step, then trains one epoch,
resumes, and trains until the end. Each of the three parts has a port of its own.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from models.kit import data
from models.kit.recipe import Recipe
from models.kit.train import train
from models.kit.trainer import Trainer


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the gradients of the first step, keyed by the names of parameters."""
    trainer.train_step(trainer.batches(0)[0])
    return {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}


def first_error(recipe: Recipe, images: torch.Tensor) -> str:
    """Return the message of the error with which a training cannot be built; "" if it can."""
    try:
        Trainer(recipe, images)
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    """Run the three parts; the results are files in the folder."""
    recipe, folder = Recipe.from_json(json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2])
    ports = sys.argv[3:]
    images = data.load(recipe.data).images[:400]
    os.environ["MASTER_PORT"] = ports[0]
    trainer = Trainer(recipe, images)
    torch.save(gradients(trainer), folder / "gradients.pt")
    (folder / "error.txt").write_text(first_error(recipe, images[int(os.environ["RANK"]) :]))
    trainer.process_group.shut_down()
    for epochs, port in ((1, ports[1]), (recipe.training.epochs, ports[2])):
        os.environ["MASTER_PORT"] = port
        part = replace(recipe, training=replace(recipe.training, epochs=epochs))
        train(part, images, folder / "run", resume=True)


if __name__ == "__main__":
    main()
