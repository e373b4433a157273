"""Records, limits and helper functions that all readers share."""

import errno
import json
import os
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
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
    """An uploaded dataset that cannot be used; the message says why and what would work.

    `field` is the form field with the fault, `status` the HTTP status.
    """

    def __init__(self, detail: str, field: str = "file", status: int = 422) -> None:
        super().__init__(detail)
        self.field = field
        self.status = status


@dataclass(frozen=True)
class ConversionOptions:
    """Options of a conversion, and its limits.

    `format` and `kind` are those that the client named, or "". `resize` is (height, width) in
    pixels. `validation` and `test` are shares of all images, for splits that the upload does not
    have. The converted dataset may have at most `unpacked_bytes`, and `reserve_bytes` of the disk
    must stay free.
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
        """Return the options whose `asdict` was written as this JSON text."""
        values = json.loads(text)
        return cls(**{**values, "resize": tuple(values["resize"]) if values["resize"] else None})


@dataclass(frozen=True)
class SourceSplit:
    """The images of one split of an upload, read in batches by `read_batches()`.

    `split` is None if the upload does not name splits. With `scaled`, pixel values are in 0 … 255;
    otherwise they are taken as 0 … 1 if no unscaled split has a value above 1. With `grouped`, each
    batch has all patches of one photograph, and they are assigned to the same split. `labels` has
    one label per image.
    """

    split: str | None
    count: int
    read_batches: BatchReader
    scaled: bool = False
    grouped: bool = False
    labels: np.ndarray | None = None


@dataclass(frozen=True)
class Source:
    """The content of an upload.

    `shape` is (C, H, W) of each image. `report` is added to the dataset's description.
    `conversions` counts conversions of images while they are read.
    """

    format: str
    kind: str
    shape: tuple[int, int, int]
    splits: Sequence[SourceSplit]
    report: Mapping[str, Any] = field(default_factory=dict)
    # Conversion → number of images, counted while they are read.
    conversions: Counter[str] = field(default_factory=Counter)


def read_exactly(file: IO[bytes], size: int) -> bytes:
    """Return `size` bytes, or fewer at the end of the file."""
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
    """Raise UploadRejectedError for the errors in the block that a damaged file may cause.

    `name` is the name of the uploaded file or member in the message; `field` is the form field with
    the fault. OSError because of a full disk is not changed.
    """
    try:
        yield
    except READ_ERRORS as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        damage = "truncated" if isinstance(error, EOFError) else "damaged"
        raise UploadRejectedError(f"{name} is {damage} ({str(error)[:120]}); save and send it anew", field) from error


def check_free_space(folder: Path, size_bytes: int, options: ConversionOptions) -> None:
    """Raise OSError (ENOSPC) if the disk has no space for `size_bytes` and
    `options.reserve_bytes`.
    """
    if shutil.disk_usage(folder).free < size_bytes + options.reserve_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unpacked_size_error(what: str, options: ConversionOptions) -> UploadRejectedError:
    """Return the rejection (413) of an upload that would be too large once unpacked.

    `what` begins the message: it says what has how many bytes.
    """
    return UploadRejectedError(
        f"{what} unpacked, more than the {options.unpacked_bytes} that a dataset may have", status=413
    )


def format_image_size(shape: tuple[int, int, int]) -> str:
    """Return an image shape (C, H, W) in words."""
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}×{width}"


def report_skipped(ignored: Sequence[str], hidden: int) -> dict[str, Any]:
    """Return the entries `ignored` and `hidden` of a report, each only if there were such members.

    `ignored` are names of members; `hidden` is a number of members.
    """
    names = [name[:200] for name in ignored[:MAX_LISTED_NAMES]]
    return {
        **({"ignored": {"count": len(ignored), "names": names}} if ignored else {}),
        **({"hidden": hidden} if hidden else {}),
    }
