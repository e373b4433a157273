"""Define the records and limits that all readers share, and read arrays of IDX and NPZ files."""

import errno
import json
import math
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from core.imaging.pictures import Pixels

BATCH_BYTES = 4 << 20  # size of the pieces in which files are read

MAX_LISTED_NAMES = 5  # names that a report or an error lists at most

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # error numbers of a full disk

# What reading a damaged file may raise; zipfile's NotImplementedError is a RuntimeError.
READ_ERRORS = (OSError, EOFError, zlib.error, BadZipFile, RuntimeError, UnicodeError, OverflowError, struct.error)

# Returns an iterator over uint8 (n, C, H, W), from the first image on.
BatchReader = Callable[[], Iterator[Pixels]]


class UploadRejectedError(ValueError):
    """Raised for an uploaded dataset that cannot be used; the message says what would work.

    `field` is the form field with the fault, `status` the HTTP status of the response.
    """

    def __init__(self, detail: str, field: str = "file", status: int = 422) -> None:
        super().__init__(detail)
        self.field = field
        self.status = status


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion, and its limits.

    `format` ("idx", "npz", "zip") and `kind` ("photographs") are those that the client named, or
    "". `resize` is (height, width) in pixels; None keeps the size. `validation` and `test` are
    shares of all images, for splits that the upload does not have. The converted dataset may have
    at most `unpacked_bytes`, and `reserve_bytes` of the disk must stay free.
    """

    format: str = ""
    kind: str = ""
    resize: tuple[int, int] | None = None
    validation: float = 0.1
    test: float = 0.1
    unpacked_bytes: int = 16 << 30
    reserve_bytes: int = 0

    @classmethod
    def from_json(cls, text: str) -> "ConversionOptions":
        """Return the options in a JSON object that has a field for each attribute."""
        values = json.loads(text)
        return cls(**{**values, "resize": tuple(values["resize"]) if values["resize"] else None})


@dataclass(frozen=True)
class SourceSplit:
    """The `count` images of one split of an upload, read in batches by `read_batches()`.

    `split` is None if the upload does not name splits. With `scaled`, pixel values are in 0 … 255.
    Otherwise they may be in 0 … 1: if no split without `scaled` has a value above 1, all their
    values are multiplied by 255; otherwise they are kept. With `grouped`, each batch has all
    patches of one photograph, and they are assigned to the same split. `labels` has one label per
    image; None without labels.
    """

    split: str | None
    count: int
    read_batches: BatchReader
    scaled: bool = False
    grouped: bool = False
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """The content of an upload: its format, the kind and shape of its images, and its splits.

    `kind` is "pictures", "vectors" or "photographs", and `shape` is (C, H, W) of each image.
    `report` is added to the dataset's description. `conversions` has the number of images that were
    converted, keyed by the name of the conversion; it grows while images are read.
    """

    format: str
    kind: str
    shape: tuple[int, int, int]
    splits: Sequence[SourceSplit]
    report: Mapping[str, Any] = field(default_factory=dict)
    # Conversion → number of images, counted while they are read.
    conversions: Counter[str] = field(default_factory=Counter)


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Read and return `size` bytes of a file, or fewer if the file ends before."""
    pieces = []
    while size:
        piece = file.read(size)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@contextmanager
def reject_damage(name: str, field: str = "file") -> Iterator[None]:
    """Convert the errors that a damaged file causes in the block to UploadRejectedError.

    `name` is the name of the uploaded file or member in the message; `field` is the form field with
    the fault. An OSError because of a full disk is raised unchanged.
    """
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        damage = "truncated" if isinstance(error, EOFError) else "damaged"
        raise UploadRejectedError(f"{name} is {damage} ({str(error)[:120]}); save and send it anew", field) from error


def check_free_space(folder: Path, size_bytes: int, options: ConversionOptions) -> None:
    """Raise OSError (ENOSPC) if the disk of `folder` has no space for `size_bytes`.

    The `reserve_bytes` of the options must stay free.
    """
    if shutil.disk_usage(folder).free < size_bytes + options.reserve_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unpacked_size_error(what: str, options: ConversionOptions) -> UploadRejectedError:
    """Return the error (413) for an upload that would be too large once unpacked.

    `what` begins the message and states the size, such as "its members (3) are 9 bytes".
    """
    detail = f"{what} unpacked, more than the {options.unpacked_bytes} that a dataset may have"
    return UploadRejectedError(detail, status=413)


def format_image_size(shape: tuple[int, int, int]) -> str:
    """Return an image shape (C, H, W) in words, such as "3 channels of 32×32"."""
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}×{width}"


def report_skipped(ignored: Sequence[str], hidden: int) -> dict[str, Any]:
    """Return what a dataset's description says of the members of an archive that were skipped.

    `ignored` are the names of visible members that were not used; `hidden` is the number of hidden
    members. The entry for either is left out if there were none.
    """
    names = [name[:200] for name in ignored[:MAX_LISTED_NAMES]]
    return {
        **({"ignored": {"count": len(ignored), "names": names}} if ignored else {}),
        **({"hidden": hidden} if hidden else {}),
    }


# --- arrays of images in IDX and NPZ files: checks by header, and uint8 batches ---


class ArrayHeader(NamedTuple):
    """Shape and dtype of an array of N images in a file, and whether it is in Fortran order."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    @property
    def row_bytes(self) -> int:
        """Size of one image of the array in bytes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def size_bytes(self) -> int:
        """Size of the array's data in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def images_per_batch(self) -> int:
        """Number of images that are read in one batch of about 4 MiB, at least 1."""
        return max(1, BATCH_BYTES // self.row_bytes)

    @property
    def kind(self) -> str:
        """Kind of the dataset: "vectors" for an array (N, D), otherwise "pictures"."""
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
    """Raise UploadRejectedError if an array's dtype or shape cannot be that of images or vectors.

    Also raises it (413) if the array is larger than the options allow. `name` is the array's name
    in the message.
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
        detail = f"{name} has shape {format_shape(shape)}; one or three channels, first or last, would work"
        raise UploadRejectedError(detail)
    if header.size_bytes > options.unpacked_bytes:
        raise unpacked_size_error(f"{name} states {header.size_bytes} bytes", options)


def read_array(file: IO[bytes], header: ArrayHeader, name: str) -> Iterator[Pixels]:
    """Read an array in C order from the current position of a file; yield its images in batches.

    A batch is uint8 (n, C, H, W). `name` is the array's name in messages. Raises
    UploadRejectedError if the data is truncated or a value is out of range.
    """
    total = header.shape[0]
    for first in range(0, total, header.images_per_batch):
        count = min(header.images_per_batch, total - first)
        payload = read_exactly(file, count * header.row_bytes)
        if len(payload) < count * header.row_bytes:
            reached = first * header.row_bytes + len(payload)
            detail = f"{name} is truncated: {reached} bytes of data where its header states {header.size_bytes}"
            raise UploadRejectedError(detail)
        array = np.frombuffer(payload, header.dtype).reshape(count, *header.shape[1:])
        yield to_uint8(array, header, name, first)


def to_uint8(array: np.ndarray, header: ArrayHeader, name: str, first: int) -> Pixels:
    """Return images as uint8 (n, C, H, W); floats 0 … 1 are scaled to 0 … 255.

    Raises UploadRejectedError, which names the array `name` and the first image with a value out of
    range. `first` is the index of the first of these images in the file.
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
