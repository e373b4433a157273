"""Read images and labels in IDX files (the format of MNIST), gzipped or not."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.readers import base
from core.datasets.readers.base import ConversionOptions, Source, SourceSplit, UploadRejectedError
from core.imaging.pictures import Pixels

GZIP_MAGIC = b"\x1f\x8b"
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def open_idx(folder: Path, options: ConversionOptions) -> Source:
    """Open an IDX file of images, FOLDER/file, and FOLDER/labels if it exists.

    Images are read later, from the returned source. Raises UploadRejectedError if a header is not
    valid.
    """
    path = folder / "file"
    header, start = _read_header(path, "file")
    if len(header.shape) == 1:
        raise UploadRejectedError(
            "the file holds one number each (labels, as it seems); send the pictures as `file` and these as `labels`"
        )
    base.check_header(header, "the file", options)
    labels = read_labels(folder, header.shape[0])

    def read_batches() -> Iterator[Pixels]:
        with base.reject_damage("the file"), _open_unpacked(path) as file:
            file.read(start)
            yield from base.read_array(file, header, "the file")
            if file.read(1):
                raise UploadRejectedError("the file is too long: it goes on after what its header states; save it anew")

    split = SourceSplit(None, header.shape[0], read_batches, scaled=header.dtype.kind == "f", labels=labels)
    return Source("idx", header.kind, header.image_shape, [split])


def read_labels(folder: Path, count: int) -> np.ndarray | None:
    """Return the labels in FOLDER/labels, int64 (count,); None if there is no such file.

    Raises UploadRejectedError if they are damaged, not integers, or not one per image.
    """
    path = folder / "labels"
    if not path.exists():
        return None
    if not path.stat().st_size:
        detail = "the labels are empty; send an IDX file, one number a picture, or leave them out"
        raise UploadRejectedError(detail, "labels")
    (shape, dtype, _), start = _read_header(path, "labels")
    if len(shape) != 1 or dtype.kind not in "iu":
        raise UploadRejectedError("labels are an IDX file of one whole number a picture", "labels")
    if shape[0] != count:
        detail = f"{shape[0]} labels for {count} pictures; send one a picture, in their order"
        raise UploadRejectedError(detail, "labels")
    with base.reject_damage("the labels", "labels"), _open_unpacked(path) as file:
        payload = file.read(start + count * dtype.itemsize + 1)[start:]
    if len(payload) != count * dtype.itemsize:
        fault = "truncated" if len(payload) < count * dtype.itemsize else "too long"
        raise UploadRejectedError(f"the labels are {fault}: their header states {count} of them", "labels")
    return np.frombuffer(payload, dtype).astype(np.int64)


def _read_header(path: Path, field: str) -> tuple[base.ArrayHeader, int]:
    """Return the header of an IDX file, and the offset of its data in bytes.

    Raises UploadRejectedError, which names the form field `field`, if the header is not valid.
    """
    with base.reject_damage(f"the {field}", field), _open_unpacked(path) as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
            raise UploadRejectedError(f"the {field} is not IDX: it begins with {magic.hex() or 'nothing'}", field)
        sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise UploadRejectedError(f"the {field} is truncated within its header; send it whole", field)
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if 0 in shape:
        raise UploadRejectedError(f"the {field} is empty: its header says {'×'.join(map(str, shape))}", field)
    return base.ArrayHeader(shape, np.dtype(_DTYPES[magic[2]])), 4 + len(sizes)


def _open_unpacked(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]
