"""Define recipes, which have everything that determines the result of a training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from models.kit.card import family
from models.kit.schema import from_json, option, to_json

MAX_EPOCHS = 100000
MAX_BATCH_SIZE = 65536


@dataclass(frozen=True)
class Training:
    """The settings of a training: optimizer, learning rate, batches, epochs, validation and more.

    The family's `Config` has the settings of the model and of its objective.
    """

    epochs: int = option(20, minimum=1, maximum=MAX_EPOCHS, description="passes over the training images")
    steps: int = option(
        0,
        minimum=0,
        maximum=10**9,
        description="optimizer steps at least: sets `epochs` by the size of the data; 0 = as `epochs` says",
    )
    min_epochs: int = option(
        0,
        minimum=0,
        maximum=MAX_EPOCHS,
        description="epochs at least, with `steps`: `batch_size` grows with the size of the data; 0 = it does not",
    )
    batch_size: int = option(100, minimum=1, maximum=MAX_BATCH_SIZE, description="images per step")
    optimiser: str = option("adam", choices=("adam", "adagrad", "sgd"))
    learning_rate: float = option(1e-3, above=0.0, maximum=10.0)
    player_optimisers: tuple[str, ...] = option(
        (),
        choices=("adam", "adagrad", "sgd"),
        description="one for each trained submodule, in their order; empty: `optimiser` for all",
    )
    player_rates: tuple[float, ...] = option(
        (),
        above=0.0,
        maximum=10.0,
        description="a learning rate for each trained submodule; empty: `learning_rate` for all",
    )
    beta1: float = option(0.9, minimum=0.0, below=1.0, description="Adam's β₁")
    beta2: float = option(0.999, minimum=0.0, below=1.0, description="Adam's β₂")
    epsilon: float = option(1e-8, above=0.0, maximum=1.0, description="Adam's and Adagrad's ε")
    warmup_steps: int = option(
        0, minimum=0, maximum=10**9, description="steps over which the learning rate rises from zero"
    )
    decay: str = option(
        "constant",
        choices=("constant", "cosine", "drop", "linear"),
        description="learning rate after the warm-up: cosine ends at zero; drop is `drop_to` from epoch `drop_from` on;"
        " linear falls from that epoch to zero at the end",
    )
    drop_from: int = option(
        0, minimum=0, maximum=10**9, description="the epoch, from 0, at which drop or linear begins to change the rate"
    )
    drop_to: float = option(3e-4, above=0.0, maximum=10.0, description="learning rate after the drop")
    grad_clip: float = option(
        0.0, minimum=0.0, maximum=1e9, description="maximum norm of the gradient; 0 = no clipping"
    )
    weight_prior: bool = option(default=False, description="add -log N(w; 0, 1) of all weights to the data set's loss")
    average: float = option(
        0.0, minimum=0.0, below=1.0, description="decay of the exponential moving average of the weights; 0 = none"
    )
    precision: str = option("float32", choices=("float32", "bfloat16"), description="of the matrix products")
    compile: bool = option(default=False, description="torch.compile the loss: slow first steps, then faster ones")
    binarization: str = option("dynamic", choices=("dynamic", "static", "none"))
    pictures: int = option(0, minimum=0, maximum=10**9, description="use only the first images of the data; 0 = all")
    validation: int = option(
        0, minimum=0, maximum=10**9, description="number of last images held back to choose the best epoch"
    )
    patience: int = option(
        0, minimum=0, maximum=100000, description="epochs without improvement before an early stop; 0 = never"
    )
    save_every_s: float = option(
        20.0, minimum=0.0, maximum=86400.0, description="minimum seconds between two checkpoints"
    )


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the result of a training: equal recipes give the same weights.

    `config` is an instance of the family's class `Config`; `data` is the name or path of a data
    set; `summary` describes the model in its card.
    """

    family: str
    name: str
    summary: str
    data: str
    seed: int
    config: Any
    training: Training

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from JSON values.

        Raises ValueError, which names the first field that is unknown, missing or invalid.
        """
        text_fields = {"family", "name", "summary", "data"}
        unknown = sorted(set(values) - text_fields - {"seed", "config", "training"})
        missing = sorted(text_fields - set(values))
        if unknown or missing:
            raise ValueError(f"a recipe {f'has no field {unknown[0]!r}' if unknown else f'needs {missing[0]!r}'}")
        mistyped = [name for name in sorted(text_fields) if not isinstance(values[name], str)]
        seed = values.get("seed", 0)
        seed = int(seed) if isinstance(seed, float) and seed.is_integer() else seed
        if mistyped or not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
            raise ValueError(f"{mistyped[0]} must be a string" if mistyped else "seed must be an integer in [0, 2^62)")
        return cls(
            **{name: values[name] for name in text_fields},
            seed=seed,
            config=from_json(family(values["family"]).Config, values.get("config", {})),
            training=from_json(Training, values.get("training", {})),
        )

    def fitted(self, images: int) -> "Recipe":
        """Return the recipe with the epochs and batch size that `training.steps` and `min_epochs` ask for.

        The batch size is the smallest, from `training.batch_size` on, with which `training.steps`
        steps are `training.min_epochs` epochs of `images` training images. The number of epochs is
        the smallest with at least that many steps. The result has `steps` = 0 and `min_epochs` = 0;
        a recipe with `steps` = 0 is returned unchanged.
        """
        training = self.training
        if not training.steps:
            return self
        size = max(training.batch_size, min(math.ceil(images * training.min_epochs / training.steps), MAX_BATCH_SIZE))
        epochs = min(math.ceil(training.steps * size / max(1, images)), MAX_EPOCHS)
        return replace(self, training=replace(training, epochs=epochs, batch_size=size, steps=0, min_epochs=0))

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values, including all fields that have their default."""
        fields = {name: getattr(self, name) for name in ("family", "name", "summary", "data", "seed")}
        return {**fields, "config": to_json(self.config), "training": to_json(self.training)}
