"""Shape annotations by jaxtyping; without jaxtyping installed they are plain `Tensor`.

Tests check them at run time with beartype (see `tests/models/conftest.py`).
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Complex128, Float, Float64, Int, Int16, Int64, UInt8
else:
    try:
        from jaxtyping import Bool, Complex128, Float, Float64, Int, Int16, Int64, UInt8
    except ModuleNotFoundError:

        class _Unchecked:
            """Makes `Float[Tensor, "B C"]` plain `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Complex128 = Float = Float64 = Int = Int16 = Int64 = UInt8 = _Unchecked

__all__ = ["Bool", "Complex128", "Float", "Float64", "Int", "Int16", "Int64", "Tensor", "UInt8"]
