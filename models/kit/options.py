"""Options that several families share. Their schemas are in checkpoint cards, so keep the text."""

from typing import Any

from models.kit.schema import option


def binarization(note: str = "") -> Any:
    """Return the option that says how grey pixels become binary; `note` ends its description."""
    return option(
        "draw",
        choices=("draw", "threshold", "none"),
        description="how grey pixels become binary: by a seeded Bernoulli draw (binary ones stay as they are), at 0.5,"
        f" or not at all{note}",
    )


def importance_samples(default: int, minimum: int = 2, maximum: int = 100_000) -> Any:
    """Return the option `k`, the number of importance samples of each image."""
    return option(default, minimum=minimum, maximum=maximum, description="importance samples an image")
