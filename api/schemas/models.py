"""Request and response bodies of models and their versions."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from api.schemas.common import Page, RequestBody, Resource, add_files
from api.schemas.webhooks import WebhookBody

SHARED = "Whether everybody may use the model; by default a new one is its owner's alone."


class ImageSize(Resource):
    """The size of a model's images."""

    channels: int
    height: int
    width: int


class Figure(Resource):
    """A metric of a model, such as its log-likelihood on the test split."""

    name: str
    value: float
    better: Literal["lower", "higher"]
    unit: str | None = None
    detail: str | None = None


class CodeFormatResponse(Resource):
    """The length of the latent codes that an operation takes, and the range of their numbers."""

    sizes: list[int] = Field(description="The length; with `option`, one for each value of this option, from 0 on.")
    minimum: float
    maximum: float
    option: str | None = Field(None, description="The option that decides the length, such as `layer`.")


class ModelOperationResponse(Resource):
    """An operation of a model."""

    options: dict[str, Any] = Field(description="JSON Schema of the operation's options.")
    inputs: list[str] | None = None
    codes: CodeFormatResponse | None = Field(None, description="Of decodings: what a code looks like.")
    unit: str | None = None


class ActiveCode(Resource):
    """One number of a model's latent codes, and how much it matters for the images."""

    index: int = Field(description="Its place in a code, from 0.")
    activity: float = Field(description="By the `measure`; larger means more.")


class CodesResponse(Resource):
    """The numbers of a model's latent codes that matter most for its images.

    If the model has several layers of codes, the numbers are those of the top layer.
    """

    active: list[ActiveCode] = Field(description="The most active numbers first, at most 64.")
    measure: str | None = Field(None, description="What the activity is, and of how many pictures.")


class ModelResponse(Resource):
    """A model: its card, its versions, and links to its operations."""

    format: int | None = Field(None, description="Of the card.")
    name: str
    version: str = Field(description="The active version, or the one that was asked for.")
    family: str
    summary: str | None = None
    created_at: str | None = None
    config: dict[str, Any] | None = None
    image: ImageSize
    operations: dict[str, ModelOperationResponse] = Field(description="By the last part of their route.")
    codes: CodesResponse | None = Field(None, description="Which numbers of a code matter most; null if unknown.")
    figures: list[Figure] = Field(description="Measured quality.")
    provenance: dict[str, Any] = Field(description="How it was trained, on which data.")
    license: str | None = None
    versions: list[str]
    owner: str | None = Field(description="Its owner's key; null for those who may not change it.")
    shared: bool
    links: dict[str, str]


class ModelPage(Page[ModelResponse]):
    """All models, sorted by name."""


class ModelChange(RequestBody, json_schema_extra={"example": {"version": "1"}, "minProperties": 1}):
    """A change of a model; at least one field is required."""

    version: str | None = Field(None, max_length=40, description="The one of the model's `versions` to activate.")
    shared: bool | None = Field(None, description="Whether everybody may use the model, or its owner alone.")

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        """Raise ValueError if neither field is set."""
        if self.version is None and self.shared is None:
            raise ValueError("send `version`, `shared` or both")
        return self


class VersionLinks(Resource):
    """URL paths of a version."""

    self: str
    file: str
    preview: str
    model: str
    training: str | None = None


class VersionResponse(Resource):
    """A version of a model."""

    object: Literal["version"]
    model: str
    version: str
    serves: bool = Field(description="Whether this is the active version.")
    card: ModelResponse
    links: VersionLinks


class VersionPage(Page[VersionResponse]):
    """All versions of a model, oldest first."""


class VersionForm(RequestBody, strict=False, json_schema_extra=add_files(file="A safetensors file with a card.")):
    """The fields that come with an imported checkpoint file.

    They are form fields if the file is in a form, and query parameters if the file is the body
    itself.
    """

    shared: bool | None = Field(None, description=SHARED)
    webhook: WebhookBody | None = Field(None, description="As JSON; sent when the job that imports it ends.")
