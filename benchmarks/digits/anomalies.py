"""Make images that are not digits from test images, and measure how a score separates them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from models.kit import data  # noqa: E402

KINDS = {
    "fashion": "Fashion-MNIST's test pictures",
    "joined": "the left half of a digit and the right half of the next one",
    "stacked": "the upper half of a digit and the lower half of the next one",
    "upside_down": "digits upside down (top and bottom swapped)",
    "turned": "digits turned by half a circle (a 6 is then a 9)",
    "blank": "a black picture",
}


def joined(images: torch.Tensor) -> torch.Tensor:
    """Return the left half of each image beside the right half of the next one."""
    middle = images.shape[3] // 2
    return torch.cat((images[:, :, :, :middle], images.roll(-1, 0)[:, :, :, middle:]), dim=3)


def stacked(images: torch.Tensor) -> torch.Tensor:
    """Return the upper half of each image above the lower half of the next one."""
    middle = images.shape[2] // 2
    return torch.cat((images[:, :, :middle], images.roll(-1, 0)[:, :, middle:]), dim=2)


def auroc(normal: torch.Tensor, unusual: torch.Tensor) -> float:
    """Return the probability that an anomaly scores higher than a normal image; ties count half."""
    both = torch.cat((normal, unusual)).double()
    _, inverse, counts = both.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2.0)[inverse]
    above = float(ranks[len(normal) :].sum()) - len(unusual) * (len(unusual) + 1) / 2
    return above / (len(normal) * len(unusual))


def auroc_error(normal: torch.Tensor, unusual: torch.Tensor) -> float:
    """Return the standard error of `auroc`, by DeLong's method for independent images.

    A single anomaly has no variance: the error is then over the normal images alone.
    """

    def variance(these: torch.Tensor, others: torch.Tensor) -> float:
        """Return the variance of the mean over `these` of each one's share of lower `others`."""
        ordered = others.sort().values
        shares = (torch.searchsorted(ordered, these) + torch.searchsorted(ordered, these, right=True)).double()
        return float((shares / (2.0 * len(others))).var()) / len(these) if len(these) > 1 else 0.0

    return math.sqrt(variance(normal, unusual) + variance(unusual, normal))


def principal(images: torch.Tensor, components: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean (D,) and the first principal directions (D,
    components) of training images.
    """
    x = images.flatten(1).double()
    mean = x.mean(dim=0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    return mean, vectors[:, -components:]


def residual(images: torch.Tensor, mean: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return each image's distance to the principal subspace, the Euclidean norm (N,)."""
    x = images.flatten(1).double() - mean
    return (x - (x @ directions) @ directions.T).norm(dim=1)


def sets(folder: Path = ROOT / "data") -> dict[str, torch.Tensor]:
    """Return the MNIST test images ("digits") and each kind of anomaly, (N, 1, 28, 28) in 0 … 1."""
    digits = data.grey(data.load("mnist", "test", folder).images)
    fashion = data.grey(data.load("fashion-mnist", "test", folder).images)
    made = {"joined": joined(digits), "stacked": stacked(digits), "upside_down": digits.flip(2)}
    made |= {"turned": digits.flip(2, 3), "blank": torch.zeros_like(digits[:1])}
    return {"digits": digits, "fashion": fashion, **made}
