"""Request and response bodies of trainings and families."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from api.schemas.common import WHOLE, Page, RequestBody, Resource
from api.schemas.jobs import JobFields, JobLinks, job_fields
from api.schemas.models import SHARED
from api.schemas.webhooks import WebhookBody
from api.wait_estimates import UNKNOWN, WaitEstimate
from core.catalog.recipes import NAME
from core.jobs.records import Job

_CHANGES = {"config": {"latents": 8}, "training": {"epochs": 5}}
_EXAMPLE: dict[str, Any] = {"family": "vae", "dataset": "digits", "name": "my-digits", "recipe": _CHANGES}


class RecipeOverrides(RequestBody):
    """Changes to the default recipe of the family."""

    config: dict[str, Any] = Field({}, description="Of the family's `config`; GET /v1/families has its schema.")
    training: dict[str, Any] = Field({}, description="Of `training`; GET /v1/families has its schema.")
    seed: Annotated[int, Field(ge=0, lt=2**62), WHOLE] = 0


class Evaluation(RequestBody):
    """How the trained model is measured on the test split."""

    count: Annotated[int, Field(ge=2, le=100_000), WHOLE] = Field(1000, description="The first so many test pictures.")
    k: Annotated[int, Field(ge=10, le=100_000), WHOLE] = Field(
        100, description="Importance samples per picture, or samples of an adversarial family."
    )


class TrainingBody(RequestBody, json_schema_extra={"example": _EXAMPLE}):
    """A request to train a model."""

    family: str = Field(max_length=80, description="What to train; GET /v1/families lists them.")
    dataset: str = Field(max_length=80, description="What to train it on; GET /v1/datasets lists them.")
    name: str = Field(max_length=63, pattern=f"^{NAME.pattern}$", description="The model that gets a new version.")
    summary: str = Field("", max_length=200, description="A line for the card.")
    recipe: RecipeOverrides = Field(default_factory=lambda: RecipeOverrides(config={}, training={}, seed=0))
    dry_run: bool = Field(default=False, description="Return what it would take, from a few steps, and train nothing.")
    serve: Literal["if better", "always", "never"] = Field(
        "if better",
        description="Whether to activate the new version at the end: if its first figure is better than that of the "
        "active version, measured on the same pictures; always; never. The first version of a name is always active.",
    )
    evaluation: Evaluation = Field(default_factory=lambda: Evaluation(count=1000, k=100))
    shared: bool | None = Field(None, description=SHARED)
    gpus: Annotated[int, Field(ge=1, le=64), WHOLE] = Field(
        1,
        description="More than one: data-parallel by torchrun; at most the devices of the training workers, "
        "which GET /v1/families lists (`gpus.maximum`).",
    )
    webhook: WebhookBody | None = Field(None, description="Sent when the training ends, or at other `events`.")


class PublicationBody(RequestBody):
    """Options of a publication."""

    webhook: WebhookBody | None = Field(None, description="Sent when the job ends, or at other `events`.")


class TrainingLinks(JobLinks):
    """URL paths of a training."""

    job: str
    metrics: str
    checkpoints: str
    curves: str
    pause: str
    resume: str
    publish: str
    version: str | None = None


class EpochMetrics(Resource):
    """The metrics of one epoch; a family may have more."""

    epoch: int
    train_loss: float | None = None
    validation_loss: float | None = None


class TrainingResponse(JobFields):
    """A training: a job with its recipe and the model version that it has made."""

    object: Literal["training"]
    version: str | None = Field(description="The version of the model that the training became.")
    family: str
    dataset: str
    summary: str | None
    serve: str | None
    evaluation: dict[str, Any] | None
    recipe: dict[str, Any] = Field(description="The whole recipe in force.")
    links: TrainingLinks

    @classmethod
    def of(cls, job: Job, estimate: WaitEstimate = UNKNOWN, **more: Any) -> Self:
        """Return the response body of a training, with the further fields `more`.

        `estimate` says how long the training is going to wait or run.
        """
        fields = job_fields(job, estimate)
        request = fields.pop("request")
        path = f"/v1/trainings/{job.id}"
        parts = ("metrics", "checkpoints", "preview", "previews", "pause", "resume", "publish")
        links = {name: f"{path}/{name}" for name in parts}
        links |= {"self": path, "job": f"/v1/jobs/{job.id}", "curves": f"{path}/curves.png"}
        if job.version:
            links["version"] = f"/v1/models/{job.model}/versions/{job.version}"
        names = ("family", "dataset", "summary", "serve", "evaluation", "recipe")
        fields |= {"object": "training", "version": job.version or None, "links": {**fields["links"], **links}}
        fields |= {name: request.get(name) for name in names}
        return cls.model_validate({**fields, **more})


class TrainingDetailResponse(TrainingResponse):
    """A training with its newest metrics."""

    metrics: EpochMetrics | None = Field(description="Of the last epoch.")


class TrainingPage(Page[TrainingResponse]):
    """A page of trainings, newest first."""


class MetricsPage(Page[EpochMetrics]):
    """The metrics of a training, an item per epoch."""


class CheckpointResponse(Resource):
    """A checkpoint that a training has written."""

    object: Literal["training.checkpoint"]
    step_number: int
    epoch: int
    seconds: float
    metrics: dict[str, float | None] = Field(description="The losses of its epoch.")
    kept: bool = Field(description="Whether its file exists: the last one is kept.")


class CheckpointPage(Page[CheckpointResponse]):
    """The checkpoints of a training, oldest first."""


class PreviewLinks(Resource):
    """URL paths of a preview."""

    image: str


class PreviewResponse(Resource):
    """A preview of what the model of a training generated after an epoch."""

    object: Literal["training.preview"]
    epoch: int = Field(description="The number of finished epochs.")
    bytes: int = Field(description="Of the PNG.")
    links: PreviewLinks


class PreviewPage(Page[PreviewResponse]):
    """The previews of a training, the first epoch first."""


class EstimateResponse(Resource):
    """The memory and time that a training would take, measured by a dry run."""

    parameters: int
    memory_bytes: int = Field(description="The most that the process held while steps were timed.")
    seconds: float = Field(description="Of the whole run.")
    checkpoint_bytes: int | None = None
    steps: int | None = None
    step_seconds: float | None = None
    images_per_second: float | None = None
    recipe: dict[str, Any]


class FamilyResponse(Resource):
    """A family: a kind of model that can be trained."""

    name: str
    summary: str | None = None
    config: dict[str, Any] = Field(description="JSON Schema of the recipe's `config`.")
    training: dict[str, Any] = Field(description="JSON Schema of the recipe's `training`.")
    recipe: dict[str, Any] = Field(description="The family's own recipe.")
    gpus: dict[str, Any] = Field(description="JSON Schema of `gpus`: its maximum is what the workers have.")


class FamilyPage(Page[FamilyResponse]):
    """All families, sorted by name."""
