"""Bodies of the OpenAI-compatible routes, as OpenAI's API reference describes them."""

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from api.schemas.common import WHOLE, Page, Resource, add_files
from api.schemas.datasets import DatasetForm
from api.schemas.operations import Options, Seed
from api.schemas.trainings import Evaluation, RecipeOverrides
from api.schemas.webhooks import WebhookBody
from core.catalog.validation import whole
from core.datasets.store import NAME

ImageFormat = Literal["png", "jpeg", "webp"]


class OpenAIErrorDetail(Resource):
    """What happened and what would work."""

    message: str
    type: str
    param: str | None = Field(description="The invalid parameter, if the error is about one.")
    code: str | None


class OpenAIError(Resource):
    """An error response."""

    error: OpenAIErrorDetail


class OpenAIModel(Resource):
    """A served model."""

    id: str = Field(description="NAME, or NAME@VERSION if the version was requested.")
    object: Literal["model"]
    created: int = Field(description="Unix time in seconds.")
    owned_by: str
    operations: list[str] = Field(description="What it can do: the routes of /v1 that take it.")


class OpenAIModelList(Resource):
    """All models that the caller may use, sorted by name."""

    object: Literal["list"]
    data: list[OpenAIModel]


# --- images ---


def _not_zero(value: Any) -> Any:
    """Return the value. Raises PydanticCustomError for 0, which pydantic would accept as False."""
    if value == 0 and value is not False:
        raise PydanticCustomError("literal_error", "Input should be False")
    return value


class ImageParameters(BaseModel, extra="allow", strict=True):
    """The fields that OpenAI's image generation and image edit requests share, apart from files.

    Unknown fields are passed to the model as options.
    """

    prompt: str = Field("", max_length=32_000, description="Accepted and not used: the models have no text input.")
    model: str | None = Field(None, description="NAME or NAME@VERSION; by default the first that can.")
    n: Annotated[int, Field(ge=1), WHOLE] | None = Field(None, description="How many images; 1 if left out.")
    size: str | None = Field(
        None,
        description="`auto` or WIDTHxHEIGHT: images are enlarged by the nearest whole factor, without interpolation.",
        json_schema_extra={"pattern": r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"},
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="`url`: links to the images of a job, which last as long as its result."
    )
    output_format: ImageFormat | None = Field(None, description="`png` if left out.")
    output_compression: Annotated[int, Field(ge=0, le=100), WHOLE] | None = Field(
        None, description="Quality of a JPEG or WebP; 100 if left out."
    )
    quality: Literal["auto", "standard"] | None = Field(None, description="There is one quality.")
    background: Literal["auto", "opaque"] | None = Field(None, description="The images are opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="Not used.")
    stream: Annotated[Literal[False], BeforeValidator(_not_zero)] | None = Field(
        None, description="Images are not streamed."
    )
    user: str | None = Field(None, description="Not used: the owner is that of the API key.")
    safety_identifier: str | None = Field(None, description="Not used.")
    seed: Seed = None
    options: Options = {}


class ImageGenerationBody(ImageParameters):
    """A request for samples of a model."""


class ImageEditForm(ImageParameters):
    """A request to fill in the transparent part of an image."""

    model_config = ConfigDict(
        json_schema_extra=add_files(
            image="Of the model's size, or a whole multiple of it.",
            mask="A PNG whose transparent pixels are filled in; by default those of the image.",
        )
    )


class OpenAIImage(Resource):
    """An image: `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str = Field(description="What was drawn instead of the prompt, and how it was enlarged.")


class OpenAIImages(Resource):
    """Images, all of one size and format."""

    created: int = Field(description="Unix time in seconds.")
    data: list[OpenAIImage]
    output_format: ImageFormat
    size: str = Field(description="WIDTHxHEIGHT of the images.")
    background: Literal["opaque"]
    model: str = Field(description="NAME@VERSION.")
    seed: int
    conversions: list[str] | None = None


# --- files ---


def new_file_id() -> str:
    """Return a random file id, which is also a name for a dataset."""
    return f"file-{secrets.token_hex(12)}"


class OpenAIFileForm(DatasetForm):
    """The fields of a file upload."""

    purpose: Literal["fine-tune"] = Field(description="Files are datasets to train on.")
    name: str = Field(
        default_factory=new_file_id,
        pattern=f"^{NAME.pattern}$",
        description="The id of the file, and the name of the dataset; by default a new one.",
    )


class OpenAIFile(Resource):
    """A dataset. Its id is the dataset's name."""

    id: str
    object: Literal["file"]
    bytes: int = Field(description="On the disk, after conversion.")
    created_at: int = Field(description="Unix time in seconds.")
    filename: str
    purpose: Literal["fine-tune"]
    status: Literal["processed"]
    expires_at: int | None
    status_details: str | None


class OpenAIFileList(Page[OpenAIFile]):
    """A page of files."""


class OpenAIDeleted(Resource):
    """A resource that was deleted."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


# --- fine-tuning ---


def _auto_or_number(value: Any) -> Any:
    """Return a number as it is, or "auto". Raises PydanticCustomError for anything else."""
    value = whole(value)
    if (
        value is None
        or value == "auto"
        or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0)
    ):
        return value
    raise PydanticCustomError("number", "must be a positive number, or `auto`")


def _unavailable(reason: str) -> BeforeValidator:
    """Return a validator that accepts only null or an empty list; its error has the `reason`."""

    def validate(value: Any) -> Any:
        if value in (None, []):
            return value
        raise PydanticCustomError("unavailable", reason)

    return BeforeValidator(validate)


class _Parameters(BaseModel, extra="forbid", strict=True):
    """Base class of nested parameters. The error for an unknown parameter lists the known ones."""

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, fields: Any) -> Any:
        """Raise PydanticCustomError for unknown parameters; it lists the known ones."""
        unknown = [name[:60] for name in fields if name not in cls.model_fields] if isinstance(fields, dict) else []
        if unknown:
            names = {"unknown": ", ".join(unknown[:10]), "known": ", ".join(cls.model_fields)}
            raise PydanticCustomError("unknown_parameter", "no such parameter: {unknown}; there are: {known}", names)
        return fields


class Hyperparameters(_Parameters):
    """Hyperparameters of a training. `auto` means the default of the family."""

    n_epochs: Annotated[int | float | Literal["auto"] | None, BeforeValidator(_auto_or_number)] = Field(
        None, description="`training.epochs`"
    )
    batch_size: Annotated[int | float | Literal["auto"] | None, BeforeValidator(_auto_or_number)] = Field(
        None, description="`training.batch_size`"
    )
    learning_rate_multiplier: Annotated[int | float | Literal["auto"] | None, BeforeValidator(_auto_or_number)] = Field(
        None, description="Times the learning rate of the family's recipe."
    )


class SupervisedMethod(_Parameters):
    """Options of the supervised method."""

    hyperparameters: Hyperparameters | None = None


class Method(_Parameters):
    """The method of a training: `supervised` or none.

    The data and the family decide how a model is trained, so other methods are rejected.
    """

    type: Literal["supervised"]
    supervised: SupervisedMethod | None = None


class FineTuningBody(BaseModel):
    """A request to train a model on a file."""

    model_config = ConfigDict(
        extra="allow",
        strict=True,
        json_schema_extra=lambda schema: schema.update(additionalProperties=False),
    )

    model: str = Field(
        min_length=1,
        max_length=120,
        description="A family, or a served model whose family and configuration the new model gets.",
    )
    training_file: str = Field(max_length=80, description="The id of a file: the name of a dataset.")
    validation_file: Annotated[
        None, _unavailable("a file has its own validation split; leave validation_file out, or set it to null")
    ] = Field(None, description="A file has its own validation split.")
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$",
        description="The new model is ft-MODEL-SUFFIX; a training with the same suffix makes its next version.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**62), WHOLE] | None = Field(None, description="Drawn if left out.")
    integrations: Annotated[list[None] | None, _unavailable("there are no integrations; leave them out")] = Field(
        None, max_length=0, description="There are none."
    )
    metadata: dict[str, str] | None = Field(None, max_length=16, description="Returned with the job.")
    recipe: RecipeOverrides | None = Field(None, description="Further changes to the family's recipe.")
    evaluation: Evaluation | None = None
    serve: Literal["if better", "always", "never"] | None = Field(None, description="As in `POST /v1/trainings`.")
    shared: bool | None = None
    gpus: Annotated[int, Field(ge=1, le=64), WHOLE] | None = None
    webhook: WebhookBody | None = Field(None, description="Sent when the training ends, or at other `events`.")


class FineTuningHyperparameters(Resource):
    """The hyperparameters of a training. `auto` means the default of the family."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]


class FineTuningError(Resource):
    """Why a training failed."""

    code: str
    message: str
    param: str | None


class FineTuningJob(Resource):
    """A training, in the form of OpenAI's fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int = Field(description="Unix time in seconds.")
    finished_at: int | None
    estimated_finish: int | None
    model: str = Field(description="The family or model that the request named.")
    fine_tuned_model: str | None = Field(description="NAME@VERSION of the trained model.")
    organization_id: str = Field(description="The owner.")
    result_files: list[str]
    seed: int
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    paused: bool = Field(description="A paused training is `queued`, as OpenAI's status has no word for it.")
    training_file: str
    validation_file: str | None
    trained_tokens: int | None
    hyperparameters: FineTuningHyperparameters
    method: dict[str, Any]
    error: FineTuningError | None
    integrations: list[Any]
    metadata: dict[str, str] | None


class FineTuningJobList(Page[FineTuningJob]):
    """A page of trainings, newest first."""


class FineTuningEvent(Resource):
    """An event of a training."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class FineTuningEventList(Page[FineTuningEvent]):
    """A page of events, newest first."""


class FineTuningMetrics(Resource):
    """The losses of the checkpoint's epoch."""

    step: int
    train_loss: float | None
    valid_loss: float | None


class FineTuningCheckpoint(Resource):
    """A checkpoint that a training has written."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str = Field(
        description="NAME@VERSION of the last checkpoint of a training that has succeeded; the others are not kept."
    )
    fine_tuning_job_id: str
    metrics: FineTuningMetrics
    step_number: int


class FineTuningCheckpointList(Page[FineTuningCheckpoint]):
    """A page of checkpoints, newest first."""
