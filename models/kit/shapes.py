"""Define annotations of tensors' shapes by jaxtyping; without jaxtyping they are plain `Tensor`.

`Images` are grey or colour images with values in 0 … 1, `ByteImages` those in 0 … 255; `PerImage`
has one number per image. Tests check the shapes at run time with beartype (see
`tests/models/conftest.py`).
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
            """A replacement for jaxtyping's types if that is not installed.

            `Float[Tensor, "B C"]` then is `Tensor`.
            """

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Complex128 = Float = Float64 = Int = Int16 = Int64 = UInt8 = _Unchecked

Images = Float[Tensor, "B C H W"]
ByteImages = UInt8[Tensor, "N C H W"]
PerImage = Float[Tensor, "B"]

__all__ = ["Bool", "Complex128", "Float", "Float64", "Int", "Int16", "Int64", "Tensor", "UInt8"]
__all__ += ["ByteImages", "Images", "PerImage"]
