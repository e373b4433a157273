"""Read NPZ files, in which arrays of images and labels are found by name.

Pickled objects are never loaded.
"""

import math
import tokenize
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from core.datasets.readers import base
from core.datasets.readers.base import ArrayHeader, ConversionOptions, Source, SourceSplit, UploadRejectedError
from core.datasets.readers.zip_archive import member_error
from core.datasets.split_names import arrays_by_split
from core.imaging.pictures import Pixels

_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_WANTED_NAMES = "train (with validation and test, or without), or images"


def open_npz(folder: Path, members: Sequence[zipfile.ZipInfo], hidden: int, options: ConversionOptions) -> Source:
    """Open the NPZ file FOLDER/file, whose visible members are `members`.

    Images are read later, from the returned source. `hidden` is the number of hidden members.
    Raises UploadRejectedError if the arrays cannot be used.
    """
    names = [info.filename.removesuffix(".npy") for info in members]
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise UploadRejectedError(f"the NPZ has more than one array {repeated[0][:60]!r}; save it anew")
    infos = dict(zip(names, members, strict=True))
    images, labels = arrays_by_split(names)
    if not images and len(infos) == 1:
        images = {None: names[0]}
    _check_names(names, images, labels)
    if (folder / "labels").exists():
        raise UploadRejectedError("labels of an NPZ are its arrays labels, or train_labels, test_labels, …", "labels")
    headers = {split: _checked_header(folder, infos[name], options) for split, name in images.items()}
    shapes = {header.image_shape: images[split] for split, header in headers.items()}
    if len(shapes) > 1:
        sizes = "; ".join(f"{name}: {base.format_image_size(shape)}" for shape, name in shapes.items())
        raise UploadRejectedError(f"the arrays' pictures differ in size: {sizes}; one size, please")
    splits = []
    for split, header in headers.items():
        batches = _batch_reader(folder, infos[images[split]], header, options)
        own_labels = _read_labels(folder, infos[labels[split]], header.shape[0]) if labels else None
        scaled = header.dtype.kind == "f"
        splits.append(SourceSplit(split, header.shape[0], batches, scaled=scaled, labels=own_labels))
    ignored = sorted(set(names) - {*images.values(), *labels.values()})
    header = next(iter(headers.values()))
    return Source("npz", header.kind, header.image_shape, splits, base.report_skipped(ignored, hidden))


def _check_names(names: Sequence[str], images: Mapping[str | None, str], labels: Mapping[str | None, str]) -> None:
    """Raise UploadRejectedError unless there is one set of images, or a training split.

    `images` and `labels` are the names of arrays with images and labels, keyed by split; `names`
    are the names of all arrays. Also raises UploadRejectedError if only some images have labels.
    """
    if not images:
        detail = f"the NPZ has no array of pictures; name it {_WANTED_NAMES}. It has {', '.join(names)[:200]}"
        raise UploadRejectedError(detail)
    if None in images and len(images) > 1:
        raise UploadRejectedError(f"the NPZ has both {images[None]!r} and splits; name its arrays {_WANTED_NAMES}")
    if None not in images and "train" not in images:
        raise UploadRejectedError(f"the NPZ has no training pictures; name its arrays {_WANTED_NAMES}")
    if labels and set(labels) != set(images):
        have, need = (", ".join(sorted(arrays.values())) for arrays in (labels, images))
        detail = f"labels for some pictures only: there are {have} beside {need}; send all or none"
        raise UploadRejectedError(detail, "labels")


def _checked_header(folder: Path, info: zipfile.ZipInfo, options: ConversionOptions) -> ArrayHeader:
    """Return the header of a .npy member. Raises UploadRejectedError if it has no images."""
    with _open_member(folder, info) as file:
        header = _read_header(file, info)
    base.check_header(header, info.filename, options)
    return header


def _read_header(file: IO[bytes], info: zipfile.ZipInfo) -> ArrayHeader:
    """Read the header of a .npy file, which then is at the array's data.

    Raises UploadRejectedError if it is damaged, or if the array has Python objects or records.
    """
    try:
        with base.reject_damage(info.filename):
            version = np.lib.format.read_magic(file)
            shape, fortran, dtype = _HEADER_READERS[version](file)
    except UploadRejectedError:
        raise
    except (ValueError, LookupError, SyntaxError, TypeError, tokenize.TokenError) as error:
        raise member_error(info, f"it is no array of NumPy ({str(error)[:120]}); save it with numpy.savez") from error
    if dtype.hasobject:
        raise member_error(info, "it holds pickled objects, which are never loaded; save plain numbers, as uint8")
    if dtype.fields is not None or dtype.subdtype is not None:
        raise member_error(info, f"it holds records ({dtype}); save plain numbers, as uint8")
    return ArrayHeader(shape, dtype, fortran)


@contextmanager
def _open_member(folder: Path, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """Yield a member of FOLDER/file as a file. Raises UploadRejectedError if it is damaged."""
    with zipfile.ZipFile(folder / "file") as archive:
        with base.reject_damage(info.filename):
            file = archive.open(info)
        with file:
            yield file


def _batch_reader(
    folder: Path, info: zipfile.ZipInfo, header: ArrayHeader, options: ConversionOptions
) -> Callable[[], Iterator[Pixels]]:
    """Return the function that yields the images of an array in batches, for a `SourceSplit`."""

    def read_batches() -> Iterator[Pixels]:
        with base.reject_damage(info.filename.removesuffix(".npy")), _open_member(folder, info) as file:
            _read_header(file, info)
            if header.fortran and len(header.shape) > 1:
                yield from _read_fortran_order(folder / "columns", file, header, info.filename, options)
            else:
                yield from base.read_array(file, header, info.filename)
            if file.read(1):  # at the end zipfile compares the checksum
                raise member_error(info, "it goes on after its array; save it anew")

    return read_batches


def _read_fortran_order(
    scratch: Path, file: IO[bytes], header: ArrayHeader, name: str, options: ConversionOptions
) -> Iterator[Pixels]:
    """Yield the images of an array in Fortran order, in uint8 batches (n, C, H, W).

    The values of an image are not adjacent in such a file, so the array is first written to the
    file `scratch`, which is deleted at the end. Raises UploadRejectedError if the array is
    truncated, and OSError if the disk has no space.
    """
    total = header.size_bytes
    base.check_free_space(scratch.parent, total, options)
    with scratch.open("wb") as columns:
        while columns.tell() < total:
            payload = base.read_exactly(file, min(base.BATCH_BYTES, total - columns.tell()))
            if not payload:
                detail = f"{name} is truncated: {columns.tell()} bytes where its header states {total}"
                raise UploadRejectedError(detail)
            columns.write(payload)
    array = np.memmap(scratch, header.dtype, "r", shape=header.shape, order="F")
    step = header.images_per_batch
    for first in range(0, header.shape[0], step):
        yield base.to_uint8(np.ascontiguousarray(array[first : first + step]), header, name, first)
    del array
    scratch.unlink()


def _read_labels(folder: Path, info: zipfile.ZipInfo, count: int) -> np.ndarray:
    """Return the labels in a member, int64 (count,).

    Raises UploadRejectedError if they are not `count` integers.
    """
    with _open_member(folder, info) as file:
        shape, dtype, _ = _read_header(file, info)
        if dtype.kind not in "biu" or math.prod(shape) != shape[0]:
            detail = f"{info.filename} must hold one whole number a picture, not {base.format_shape(shape)}"
            raise UploadRejectedError(detail, "labels")
        if shape[0] != count:
            raise UploadRejectedError(f"{info.filename} has {shape[0]} labels for {count} pictures", "labels")
        payload = base.read_exactly(file, count * dtype.itemsize)
    if len(payload) < count * dtype.itemsize:
        raise UploadRejectedError(f"{info.filename} is truncated", "labels")
    return np.frombuffer(payload, dtype).astype(np.int64)
