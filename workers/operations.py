"""What can be asked of a model: one row per operation, shared by the API and the worker.

A model has an operation if its card lists the method. A new family needs nothing here; a new *kind* of
operation is one more row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Operation:
    """One operation: its route, the model's method, what it reads and how many rows a request makes.

    `inputs` names the model's image arguments in order. `rows(count, images, options)` is the number of rows, where
    `count` is the request's count and `images` how many pictures came with it. `pictures` says that the answer holds
    `images`, so that it can be had as PNG.
    """

    path: str
    method: str
    summary: str
    inputs: tuple[str, ...] = ()
    counted: bool = False
    pictures: bool = False
    rows: Callable[[int, int, Mapping[str, Any]], int] = lambda _count, images, _options: images

    @property
    def images_needed(self) -> str:
        """How many images a request must bring, in words."""
        return {0: "no images", 1: "at least one image", 2: "exactly two images"}[len(self.inputs)]


OPERATIONS = (
    Operation(
        "samples",
        "sample",
        "Draw samples",
        counted=True,
        pictures=True,
        rows=lambda count, _images, _options: count,
    ),
    Operation(
        "manifold",
        "manifold",
        "Draw the latent grid of a model with a two-dimensional latent space",
        pictures=True,
        rows=lambda _count, _images, options: int(options["size"]) ** 2,
    ),
    Operation("encodings", "encode", "Encode images", inputs=("images",)),
    Operation("reconstructions", "reconstruct", "Reconstruct images", inputs=("images",), pictures=True),
    Operation(
        "interpolations",
        "interpolate",
        "Walk from the first image to the second",
        inputs=("first", "second"),
        pictures=True,
        rows=lambda _count, _images, options: int(options["steps"]),
    ),
    Operation("energies", "energy", "Score images by their energy", inputs=("images",)),
    Operation("likelihoods", "log_likelihood", "Estimate the log-likelihood of images", inputs=("images",)),
)

BY_METHOD: Mapping[str, Operation] = {operation.method: operation for operation in OPERATIONS}
