"""Starting a training from the weights of an earlier model."""

from collections.abc import Mapping

from torch import nn

from models.kit.shapes import Tensor


def warm_start(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights that a training starts from into the model.

    The model's method `warm_start` loads them if there is one; otherwise all weights are loaded.
    Raises ValueError if names or shapes do not fit the model.
    """
    load = getattr(model, "warm_start", None)
    if load is not None:
        load(weights)
        return
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(f"training starts from a model with the same networks: {error}") from error
