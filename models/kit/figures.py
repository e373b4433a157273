"""Build the metrics of a model as entries of `figures` in its card."""

import math
from collections.abc import Callable
from typing import Any

from models.kit.shapes import Float, Tensor

Figures = list[dict[str, Any]]
Report = Callable[[int], None]  # is called with the number of images that are measured


def no_report(_done: int) -> None:
    """Do nothing with the number of images done; the default for parameters called `report`."""


def figure(name: str, value: float, unit: str, better: str, detail: str) -> dict[str, Any]:
    """Return one metric as an entry of `figures` in a model card.

    `better` says whether a "higher" or "lower" value is better; `detail` says how it was measured.
    """
    return {"name": name, "value": value, "unit": unit, "better": better, "detail": detail}


def mean_figure(
    name: str, values: Float[Tensor, "N"], unit: str, better: str, detail: str, *, digits: int = 3, correction: int = 1
) -> dict[str, Any]:
    """Return the mean of `values` as a metric for a model card, rounded to `digits` decimal places.

    The standard error of the mean is appended to `detail`. `correction` is that of the standard
    deviation: 1 for a sample, 0 for a population. `better` is "higher" or "lower".
    """
    values = values.double()
    error = float(values.std(correction=correction)) / math.sqrt(len(values))
    return figure(name, round(float(values.mean()), digits), unit, better, f"{detail}; s.e. {error:.{digits}f}")
