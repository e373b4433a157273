"""Bodies of trainings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.fields import WHOLE
from core.catalog.recipes import NAME


class RecipeOverrides(BaseModel):
    """What differs from the family's own recipe."""

    model_config = ConfigDict(extra="forbid", strict=True)

    config: dict[str, Any] = Field({}, description="Of the family's `config`; GET /v1/families has its schema.")
    training: dict[str, Any] = Field({}, description="Of `training`; GET /v1/families has its schema.")
    seed: Annotated[int, Field(ge=0, lt=2**62), WHOLE] = 0


class Evaluation(BaseModel):
    """How the test split is measured at the end."""

    model_config = ConfigDict(extra="forbid", strict=True)

    count: Annotated[int, Field(ge=2, le=100_000), WHOLE] = Field(1000, description="The first so many test pictures.")
    k: Annotated[int, Field(ge=10, le=100_000), WHOLE] = Field(
        100, description="Importance samples per picture, or samples of an adversarial family."
    )


class TrainingBody(BaseModel):
    """A training to be started."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "example": {
                "family": "vae",
                "dataset": "digits",
                "name": "my-digits",
                "recipe": {"config": {"latents": 8}, "training": {"epochs": 5}},
            }
        },
    )

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
    shared: bool | None = Field(
        None, description="Whether everybody may use the model; by default a new one is its owner's alone."
    )
    gpus: Annotated[int, Field(ge=1, le=64), WHOLE] = Field(
        1,
        description="More than one: data-parallel by torchrun; at most the devices of the training workers, "
        "which GET /v1/families lists (`gpus.maximum`).",
    )
