"""Describe the latent codes that the operation `decode` reads, and which values matter most.

The API validates latent codes by the `CodeFormat` in the model card. `CodeActivity` depends on the
weights, so it is measured for each version of a model.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from models.kit.row_streams import RowStreams
from models.kit.shapes import Float, Images, Tensor

NORMAL_LIMIT = 16.0  # bound of latent codes whose prior is N(0, 1)
MAX_LISTED = 64  # values of a latent code that a model card lists

_SEED = 1  # of the encoder's draws


@dataclass(frozen=True)
class CodeFormat:
    """The length of a latent code, and the range of its values.

    `sizes` has the length. If the length depends on the integer option `option` of `decode`,
    `sizes` has one length for each value of that option, from 0 on.
    """

    sizes: tuple[int, ...]
    minimum: float
    maximum: float
    option: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the format as the JSON object in a model card."""
        fields = {**asdict(self), "sizes": list(self.sizes)}
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class CodeActivity:
    """How much each value of a latent code matters, measured in the way that the family defines.

    `values` (J,) has one number per value of the code; a larger number means that the value matters
    more. `measure` says in words what the numbers are.
    """

    values: Float[Tensor, "J"]
    measure: str


def describe_activity(model: nn.Module, images: Images) -> dict[str, Any] | None:
    """Return which values of a model's latent codes matter most, as JSON for the model card.

    At most `MAX_LISTED` values are listed by `index` and `activity`, the largest activity first.
    The family's method `code_activity` measures the activity on `images`; without this method the
    result is None.
    """
    measured = getattr(model, "code_activity", None)
    if measured is None:
        return None
    activity: CodeActivity = measured(images, RowStreams.range(_SEED, 0, len(images)))
    order = activity.values.argsort(descending=True, stable=True)[:MAX_LISTED].tolist()
    active = [{"index": index, "activity": round(float(activity.values[index]), 4)} for index in order]
    return {"active": active, "measure": activity.measure}
