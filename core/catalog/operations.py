"""Define the operations of models, such as samples, for the API and the workers.

A model has an operation if its card lists the operation's method. A new family needs no change
here; a new kind of operation is a new entry of `OPERATIONS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

WHITE = 128  # lowest level of a mask's pixel that counts as white


@dataclass(frozen=True)
class Shared:
    """An input that is one grey image for all rows of a request, such as a mask.

    A request has it in a field of its own (`mask`), not in `images`; it has the size of the model's
    images. `fault(pixels)` returns an error message, or None if the image is valid.
    """

    name: str
    description: str
    fault: Callable[[np.ndarray[Any, Any]], str | None] = lambda _pixels: None


def _mask_fault(pixels: np.ndarray[Any, Any]) -> str | None:
    """Return an error message if a mask hides no pixel or every pixel; None if it is valid."""
    hidden = pixels >= WHITE
    if not hidden.any():
        return f"it hides nothing: no pixel is white ({WHITE} or lighter); paint white what is to be filled in"
    if hidden.all():
        return f"it hides everything: every pixel is white ({WHITE} or lighter); paint black what is to be kept"
    return None


@dataclass(frozen=True)
class Operation:
    """An operation: its route, the model's method, its inputs and the number of rows of a request.

    `path` is the last part of the route. `inputs` are the names of the method's image arguments, in
    order. `shared` are the inputs of which a request has one for all its images, in a field of its
    own. `codes`: the only input is `codes`, latent codes in place of images. `counted`: a request
    may set `count`. `rows(count, images, options)` returns the number of rows of a request with
    this `count`, this number of images or latent codes and these options. `pictures`: the result
    has images, so clients can request PNG. `tiled`: a request has one image of any size, and its
    tiles are the rows.
    """

    path: str
    method: str
    summary: str
    inputs: tuple[str, ...] = ()
    shared: tuple[Shared, ...] = ()
    codes: bool = False
    counted: bool = False
    pictures: bool = False
    tiled: bool = False
    rows: Callable[[int, int, Mapping[str, Any]], int] = lambda _count, images, _options: images

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The names of the inputs that come in the request's field `images`.

        If there is one such input, a request has any number of images for it; if there are several,
        a request has one image for each.
        """
        named = {"codes", *(one.name for one in self.shared)}
        return tuple(name for name in self.inputs if name not in named)

    @property
    def images_needed(self) -> str:
        """The number of images that a request needs, in words, such as "at least one image"."""
        return {0: "no images", 1: "at least one image", 2: "exactly two images"}[len(self.images)]

    def columns(self, per: int) -> int | None:
        """Return how many columns the PNG grid of a response has; None means nearly square.

        `per` is the number of results per input image or latent code. It is the number of columns,
        so that each line of the grid has the results of one input, if the operation has a `count`
        and reads images, or reads latent codes with several results each.
        """
        return per if self.counted and (self.images or (self.codes and per > 1)) else None


OPERATIONS = (
    Operation(
        "samples", "sample", "Draw samples", counted=True, pictures=True, rows=lambda count, _images, _options: count
    ),
    Operation(
        "manifold",
        "manifold",
        "Draw the latent grid of a model with a two-dimensional latent space",
        pictures=True,
        rows=lambda _count, _images, options: int(options["size"]) ** 2,
    ),
    Operation(
        "decodings",
        "decode",
        "Decode codes",
        inputs=("codes",),
        codes=True,
        counted=True,
        pictures=True,
        rows=lambda count, codes, _options: count * codes,
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
    Operation(
        "inpaintings",
        "inpaint",
        "Fill in what a mask hides of images",
        inputs=("images", "mask"),
        shared=(Shared("mask", "A picture of the model's size, for all images: white is hidden.", _mask_fault),),
        counted=True,
        pictures=True,
        rows=lambda count, images, _options: count * images,
    ),
    Operation("upscales", "upscale", "Enlarge a picture", inputs=("images",), pictures=True, tiled=True),
    Operation("energies", "energy", "Score images by their energy", inputs=("images",)),
    Operation("likelihoods", "log_likelihood", "Estimate the log-likelihood of images", inputs=("images",)),
)

BY_METHOD: Mapping[str, Operation] = {operation.method: operation for operation in OPERATIONS}
