"""Arrays of images in IDX and NPZ files: checks by header, and uint8 batches."""

import math
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from core.datasets.readers import base
from core.datasets.readers.base import ConversionOptions, UploadRejectedError
from core.imaging.pictures import Pixels


class ArrayHeader(NamedTuple):
    """Shape and dtype of an array in a file, and whether it is in Fortran order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    @property
    def row_bytes(self) -> int:
        """Size of one image in bytes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """Size of the array's data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def images_per_batch(self) -> int:
        """Number of images that are read in one batch."""
        return max(1, base.BATCH_BYTES // self.row_bytes)

    @property
    def kind(self) -> str:
        """Kind of the dataset: vectors or pictures."""
        return "vectors" if len(self.shape) == 2 else "pictures"

    @property
    def channels_last(self) -> bool:
        """Whether the array has the shape (N, H, W, C) and not (N, C, H, W)."""
        return len(self.shape) == 4 and self.shape[3] in {1, 3} and self.shape[1] > 4

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        shape = self.shape
        if len(shape) == 2:
            return 1, 1, shape[1]
        if len(shape) == 3:
            return 1, shape[1], shape[2]
        return (shape[3], shape[1], shape[2]) if self.channels_last else (shape[1], shape[2], shape[3])


def check_header(header: ArrayHeader, name: str, options: ConversionOptions) -> None:
    """Raise UploadRejectedError if an array cannot be images, by its type and shape, or is too
    large.

    `name` is the array's name in the message.
    """
    shape, dtype, _ = header
    if dtype.kind not in "biuf":
        raise UploadRejectedError(f"{name} holds {dtype}; pictures are whole numbers 0 … 255, floats 0 … 1 or booleans")
    if len(shape) not in {2, 3, 4} or min(shape) < 1:
        raise UploadRejectedError(
            f"{name} has shape {format_shape(shape)}; "
            "pictures are (N, H, W), (N, H, W, C), (N, C, H, W), vectors (N, D)"
        )
    if len(shape) == 4 and header.image_shape[0] not in {1, 3}:
        raise UploadRejectedError(
            f"{name} has shape {format_shape(shape)}; one or three channels, first or last, would work"
        )
    if header.size_bytes > options.unpacked_bytes:
        raise base.unpacked_size_error(f"{name} states {header.size_bytes} bytes", options)


def read_array(file: IO[bytes], header: ArrayHeader, name: str) -> Iterator[Pixels]:
    """Yield the next array of a file, in C order, as uint8 batches (n, C, H, W).

    `name` is the array's name in messages. Raises UploadRejectedError if the data is truncated or a
    value is out of range.
    """
    total = header.shape[0]
    for first in range(0, total, header.images_per_batch):
        count = min(header.images_per_batch, total - first)
        payload = base.read_exactly(file, count * header.row_bytes)
        if len(payload) < count * header.row_bytes:
            reached = first * header.row_bytes + len(payload)
            raise UploadRejectedError(
                f"{name} is truncated: {reached} bytes of data where its header states {header.size_bytes}"
            )
        array = np.frombuffer(payload, header.dtype).reshape(count, *header.shape[1:])
        yield to_uint8(array, header, name, first)


def to_uint8(array: np.ndarray, header: ArrayHeader, name: str, first: int) -> Pixels:
    """Return images as uint8 (n, C, H, W); floats 0 … 1 are scaled to 0 … 255.

    Raises UploadRejectedError, which names the array `name` and the first image with a value out of
    range. `first` is the number of the first image.
    """
    real = array.dtype.kind == "f"
    highest, allowed = (
        (1, "floats must be 0 … 1 (or send levels as whole numbers)")
        if real
        else (255, "whole numbers must be 0 … 255")
    )
    valid = (array >= 0) & (array <= highest)  # false for NaN, too
    if not valid.all():
        index = np.unravel_index(np.argmin(valid), valid.shape)
        raise UploadRejectedError(f"{name} holds {array[index]} in picture {first + int(index[0])}; {allowed}")
    images = (np.rint(array * 255) if real else array).astype(np.uint8)
    if header.channels_last:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images).reshape(len(images), *header.image_shape)


def format_shape(shape: Sequence[int]) -> str:
    """Return a shape in parentheses, such as "(28, 28)"."""
    return f"({', '.join(map(str, shape))})"
