"""Shape annotations that tests check, and that cost nothing where jaxtyping is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float64, Int, Int16, Int64, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float64, Int, Int16, Int64, UInt8
    except ModuleNotFoundError:

        class _Unchecked:
            """`Float[Tensor, "B C"]` is then simply `Tensor`."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Float64 = Int = Int16 = Int64 = UInt8 = _Unchecked

__all__ = ["Bool", "Float", "Float64", "Int", "Int16", "Int64", "Tensor", "UInt8"]
