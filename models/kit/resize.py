"""Reduce images by antialiased bicubic downsampling U, and apply its adjoint and right inverse.

U is separable: U(y) = A y Bᵀ with a matrix for each axis.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch

from models.kit.onednn_linear import linear
from models.kit.shapes import Float, Images, Tensor

_NEGLIGIBLE = 1e-20  # of an entry of a right inverse, whose largest entries are about 1


@dataclass(frozen=True)
class Downsampling:
    """The downsampling U(y) = A y Bᵀ of images y, and its adjoint Uᵀ(x) = Aᵀ x B.

    The attributes `rows` and `columns` are the matrices A and B.
    """

    rows: Float[Tensor, "h H"]
    columns: Float[Tensor, "w W"]

    def __call__(self, high: Images) -> Float[Tensor, "B C h w"]:
        """Return the downsampling U(y) of the images y = `high`."""
        return linear(linear(high, self.columns).mT, self.rows).mT

    def adjoint(self, low: Float[Tensor, "B C h w"]) -> Images:
        """Return the adjoint Uᵀ(x) of the images x = `low`."""
        return _separable_product(self.rows.T, low, self.columns.T)

    def norm_squared(self) -> float:
        """Return the squared norm of this operator U, the largest eigenvalue of UᵀU."""
        norms = [float(torch.linalg.matrix_norm(one.double(), 2)) for one in (self.rows, self.columns)]
        return (norms[0] * norms[1]) ** 2


@dataclass(frozen=True)
class Projection:
    """The projection of y onto the images whose downsampling is x: y + U⁺(x − U(y)).

    U is the downsampling `u`, and U⁺ = Uᵀ(UUᵀ)⁻¹. Of all these images, the result is the nearest to
    y.
    """

    u: Downsampling
    rows: Float[Tensor, "H h"]
    columns: Float[Tensor, "W w"]

    def __call__(self, high: Images, low: Float[Tensor, "B C h w"]) -> Images:
        """Return the image nearest to `high` whose downsampling is `low`.

        Its values may be slightly outside 0 … 1.
        """
        return high + _separable_product(self.rows, low - self.u(high), self.columns)


@lru_cache(maxsize=32)
def bicubic(height: int, width: int, scale: int, device: torch.device | str = "cpu") -> Downsampling:
    """Return the bicubic downsampling by the factor `scale` to images of `height` × `width`.

    Results are cached.
    """
    with torch.inference_mode(mode=False):
        return Downsampling(*(_bicubic_matrix(size, scale).float().to(device) for size in (height, width)))


@lru_cache(maxsize=32)
def projection(height: int, width: int, scale: int, device: torch.device | str = "cpu") -> Projection:
    """Return the projection onto the images whose bicubic downsampling by `scale` is a given image.

    `height` and `width` are those of the given image, which has the low resolution. Results are
    cached.
    """
    with torch.inference_mode(mode=False):
        inverses = [_right_inverse(_bicubic_matrix(size, scale)).to(device) for size in (height, width)]
        return Projection(bicubic(height, width, scale, device), *inverses)


def _separable_product(
    rows: Float[Tensor, "H h"], low: Float[Tensor, "B C h w"], columns: Float[Tensor, "W w"]
) -> Float[Tensor, "B C H W"]:
    """Return R x Cᵀ for each channel x of `low`, with the matrices R = `rows` and C = `columns`."""
    return linear(linear(low.mT, rows).mT, columns)


def _right_inverse(a: Float[Tensor, "n m"]) -> Float[Tensor, "m n"]:
    """Return Aᵀ(AAᵀ)⁻¹, the right inverse of the matrix A = `a`, in float32.

    Entries below `_NEGLIGIBLE` are zero. They shrink exponentially with the distance from the
    diagonal; most would be denormal numbers, with which products take up to 30 times as long.
    """
    inverse: Tensor = torch.linalg.solve(a @ a.T, a).T
    return inverse.where(inverse.abs() > _NEGLIGIBLE, 0.0).float()


def _bicubic_matrix(size: int, scale: int) -> Float[Tensor, "n m"]:
    """Return the matrix (size, size·scale) of bicubic downsampling by `scale` along one axis.

    Keys' cubic filter (a = −½) is stretched by the scale, truncated at the border and renormalised,
    as in Pillow.
    """
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    pixels = torch.arange(size * scale, dtype=torch.float64) + 0.5
    d = (pixels - centres[:, None]).abs() / scale
    near, far = (1.5 * d - 2.5) * d * d + 1.0, ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    weights = torch.where(d < 1.0, near, torch.where(d < 2.0, far, torch.zeros_like(d)))
    return weights / weights.sum(1, keepdim=True)
