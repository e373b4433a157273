"""Responses of operations in JSON.

The routes render them as bytes, without these models, for speed; tests compare the two.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from api.schemas.common import Resource

Number = float | None
"""Numbers that are not finite are null."""

Images = Annotated[list[str], Field(description="PNGs as base64.")]


class OperationResponse(Resource):
    """What every operation returns. Per-image values are lists; per-model values are scalars."""

    model: str
    version: str
    seed: int
    conversions: list[str] | None = Field(None, description="What was converted in the pictures that were sent.")
    binarization: Literal["draw", "threshold", "none"] | None = Field(
        None, description="How grey pixels became binary, for a model of binary pixels."
    )


class PicturesResponse(OperationResponse):
    """Generated pictures."""

    images: Images
    energies: list[Number] | None = Field(None, description="The energy of each picture.")
    accepted: list[bool] | None = Field(
        None, description="Of pictures drawn by rejection: whether a proposal met the condition."
    )
    proposals: list[int] | None = Field(
        None, description="Of pictures drawn by rejection: how many proposals each took."
    )
    acceptance_rate: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Accepted over proposed, of all pictures; the header Reverie-Acceptance-Rate too.",
    )
    effective_sample_size: list[Number] | None = Field(
        None, description="Of pictures drawn by importance weights w: (Σw)²/Σw², between 1 and their number."
    )


class SamplesResponse(PicturesResponse):
    """Samples."""


class ManifoldResponse(PicturesResponse):
    """The grid of a two-dimensional latent space, row by row."""


class ReconstructionsResponse(PicturesResponse):
    """The reconstruction of each image."""


class InterpolationsResponse(PicturesResponse):
    """The frames from the first image to the second."""


class InpaintingsResponse(PicturesResponse):
    """Completions: number j of image i is at i·count + j."""


class EncodingsResponse(OperationResponse):
    """The code of each image; which fields there are depends on the family."""

    mean: list[list[Number]] | None = Field(None, description="Of q(z|x), in each dimension.")
    standard_deviation: list[list[Number]] | None = Field(None, description="Of q(z|x), in each dimension.")
    layers: list[list[list[Number]]] | None = Field(
        None, description="Of each layer, bottom up, the probabilities of its units for each image."
    )
    code: list[list[Number]] | None = Field(None, description="The output of an encoder.")


class EnergiesResponse(OperationResponse):
    """The energy of each image."""

    energies: list[Number]
    unit: str | None = None
    percentile: list[Number] | None = Field(None, description="Among the energies of the training images, 0 to 100.")


class LikelihoodsResponse(OperationResponse):
    """The log-likelihood of each image, estimated by importance sampling."""

    log_p: list[Number]
    standard_error: list[Number] | None = None
    effective_sample_size: list[Number] | None = Field(None, description="(Σw)²/Σw² of the importance weights w.")
    k: int | None = Field(None, description="Importance samples per image.")
    unit: str | None = None
    log_p_star: list[Number] | None = None
    log_p_star_standard_error: list[Number] | None = None
    log_p_tilde_star: list[Number] | None = None
    log_p_tilde_star_standard_error: list[Number] | None = None
    effective_sample_size_star: list[Number] | None = None
    log_z: Number = None
    log_z_standard_error: Number = None


class UpscalesResponse(OperationResponse):
    """The enlarged picture."""

    image: str = Field(description="The picture's file as base64.")
    format: Literal["png", "jpeg", "webp"]
    scale: int
    width: int
    height: int


RESPONSES: Mapping[str, type[OperationResponse]] = {
    "samples": SamplesResponse,
    "manifold": ManifoldResponse,
    "encodings": EncodingsResponse,
    "reconstructions": ReconstructionsResponse,
    "interpolations": InterpolationsResponse,
    "inpaintings": InpaintingsResponse,
    "upscales": UpscalesResponse,
    "energies": EnergiesResponse,
    "likelihoods": LikelihoodsResponse,
}
"""By the last part of the operation's route; a new kind of operation has the fields of all until it gets its own."""
