"""Request and response bodies of operations.

The routes render JSON responses as bytes, without these models, for speed; tests compare the two.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, FailFast, Field

from api.schemas.common import WHOLE, Resource
from api.schemas.webhooks import WebhookBody

SEED_LIMIT = 2**63
_WholeSeed = Annotated[int, Field(ge=0, lt=SEED_LIMIT), WHOLE]
Seed = Annotated[_WholeSeed | None, Field(description="0 ≤ seed < 2^63; drawn and returned if left out.")]
Options = Annotated[dict[str, Any], Field(description="Options of the operation; the model's card has their schema.")]
Number = float | None  # null if it is not finite
IMAGE_URL = "Where to fetch the picture, an http or https URL of a public address; the request becomes a job."
WEBHOOK = "Sent when the job ends, or at other `events`; a request with a webhook is a job."
Images = Annotated[list[str], Field(description="PNGs as base64.")]


class OperationFields(BaseModel, extra="allow", strict=True):
    """The fields of all operations on images of the model's size, or on codes.

    Any other field is an option, apart from the inputs of single operations.
    """

    model: str = Field(description="Name of a model, or name@version to pin one.", examples=["vae-mnist"])
    count: Annotated[int, WHOLE] = Field(1, description="How many to draw.")
    seed: Seed = None
    images: Annotated[list[str], FailFast()] = Field([], description="PNG, JPEG, WebP, BMP, GIF, TIFF as base64.")
    image_url: str | Annotated[list[str], Field(fail_fast=True)] | None = Field(None, description=IMAGE_URL)
    options: Options = {}
    webhook: WebhookBody | None = Field(None, description=WEBHOOK)


class UpscaleFields(BaseModel, extra="allow", strict=True):
    """The fields of `POST /v1/upscales`, apart from an uploaded image file.

    Any other field is an option.
    """

    model: str | None = Field(None, description="Name of a model, or name@version; by default the first that can.")
    seed: Seed = None
    image: str | None = Field(None, description="The picture as base64 of a PNG, JPEG or WebP file.")
    image_url: str | None = Field(None, description=IMAGE_URL)
    format: Literal["png", "jpeg", "webp"] | None = Field(None, description="By default from `Accept`, or PNG.")
    quality: Annotated[int, Field(ge=1, le=100), WHOLE] = Field(92, description="Of a JPEG or WebP.")
    options: Options = {}
    webhook: WebhookBody | None = Field(None, description=WEBHOOK)


class OperationResponse(Resource):
    """The fields of all operations. Per-image values are lists; per-model values are scalars."""

    model: str
    version: str
    seed: int
    conversions: list[str] | None = Field(None, description="What was converted in the pictures that were sent.")
    binarization: Literal["draw", "threshold", "none"] | None = Field(None, description="How grey became binary.")


class PicturesResponse(OperationResponse):
    """Generated pictures."""

    images: Images
    energies: list[Number] | None = Field(None, description="The energy of each picture.")
    accepted: list[bool] | None = Field(None, description="Rejection sampling: whether a proposal was accepted.")
    proposals: list[int] | None = Field(None, description="Rejection sampling: number of proposals.")
    acceptance_rate: float | None = Field(None, ge=0, le=1, description="Accepted proposals over all proposals.")
    effective_sample_size: list[Number] | None = Field(None, description="(Σw)²/Σw² of the importance weights w.")


class SamplesResponse(PicturesResponse):
    """Samples of a model."""


class ManifoldResponse(PicturesResponse):
    """Pictures on a grid over a two-dimensional latent space, row by row."""


class DecodingsResponse(PicturesResponse):
    """Images decoded from latent codes: result j of code i has the index i·count + j."""


class ReconstructionsResponse(PicturesResponse):
    """The reconstruction of each image."""


class InterpolationsResponse(PicturesResponse):
    """The frames from the first image to the second."""


class InpaintingsResponse(PicturesResponse):
    """Inpainted images: completion j of image i has the index i·count + j."""


class EncodingsResponse(OperationResponse):
    """The latent code of each image. The fields depend on the model's family."""

    mean: list[list[Number]] | None = Field(None, description="Of q(z|x), by dimension.")
    standard_deviation: list[list[Number]] | None = Field(None, description="Of q(z|x), by dimension.")
    layers: list[list[list[Number]]] | None = Field(None, description="Unit probabilities by layer, bottom up.")
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
    """The enlarged picture, as a file."""

    image: str = Field(description="The picture's file as base64.")
    format: Literal["png", "jpeg", "webp"]
    scale: int
    width: int
    height: int


# By the last part of the operation's route. An operation that is not listed has an
# OperationResponse.
RESPONSES: Mapping[str, type[OperationResponse]] = {
    "samples": SamplesResponse,
    "manifold": ManifoldResponse,
    "decodings": DecodingsResponse,
    "encodings": EncodingsResponse,
    "reconstructions": ReconstructionsResponse,
    "interpolations": InterpolationsResponse,
    "inpaintings": InpaintingsResponse,
    "upscales": UpscalesResponse,
    "energies": EnergiesResponse,
    "likelihoods": LikelihoodsResponse,
}
