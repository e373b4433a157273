"""Read ZIP files of images: pictures of one size, or photographs, which are cut into patches."""

import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from core.datasets.readers import base
from core.datasets.readers.base import BatchReader, ConversionOptions, Source, SourceSplit, UploadRejectedError
from core.datasets.readers.idx import read_labels
from core.datasets.readers.zip_archive import member_error, path_of
from core.datasets.split_names import splits_of_paths
from core.imaging.decode import open_picture
from core.imaging.pictures import Pixels, UnusableImageError, decode

PATCH = 96  # edge of the patches that photographs are cut into, in pixels

MIN_PHOTOGRAPHS = 3
MAX_PIXELS = 64_000_000  # of one image, before it is resized or cut

MAX_MEMBER_BYTES = 256 << 20
# Kinds of conversions that are counted separately; further ones count as "other".
_MAX_CONVERSION_KINDS = 20

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_GREY_MODES = {"1", "L", "LA", "La"}


@dataclass(frozen=True)
class ZipImage:
    """An image in a ZIP, with its size in pixels and Pillow's mode, as its header states them."""

    info: zipfile.ZipInfo
    height: int
    width: int
    mode: str


def open_zip_images(
    folder: Path, members: Sequence[zipfile.ZipInfo], hidden: int, options: ConversionOptions
) -> Source:
    """Open the ZIP file of images FOLDER/file, whose visible members are `members`.

    Pixels are decoded later, from the returned source. `hidden` is the number of hidden members.
    Raises UploadRejectedError if an image cannot be used, if there is none, or if sizes, labels or
    options do not fit.
    """
    files = [info for info in members if info.filename.lower().endswith(SUFFIXES)]
    if not files:
        raise _no_images_error(members, hidden)
    ignored = sorted({info.filename for info in members} - {info.filename for info in files})
    files.sort(key=lambda info: info.filename.replace("\\", "/"))
    with zipfile.ZipFile(folder / "file") as archive:
        images = [_read_header(archive, info) for info in files]
    pixels = sum(image.width * image.height for image in images)
    if pixels > options.unpacked_bytes:
        raise base.unpacked_size_error(f"its pictures ({len(images)}) are {pixels} pixels", options)
    names = Counter(path_of(image.info) for image in images)
    report = {**base.report_skipped(ignored, hidden), "duplicate_names": sum(times - 1 for times in names.values())}
    return (_open_photographs if options.kind == "photographs" else _open_pictures)(folder, images, options, report)


def _no_images_error(members: Sequence[zipfile.ZipInfo], hidden: int) -> UploadRejectedError:
    content = ", ".join(info.filename[:60] for info in members[: base.MAX_LISTED_NAMES]) or "nothing"
    beside = f", and {hidden} files that are hidden or in hidden, cache or bin folders" if hidden else ""
    return UploadRejectedError(f"the ZIP holds no picture ({', '.join(SUFFIXES)}); it holds {content}{beside}")


def _read_header(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> ZipImage:
    """Read the header of an image in a ZIP: size and mode, without decoding its pixels.

    Raises UploadRejectedError if the member is not a usable image, or is too large.
    """
    data = _read_member(archive, info)
    try:
        picture = open_picture(data)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            detail = f"{info.filename[:200]!r}: {width}×{height} pixels are more than {MAX_PIXELS}"
            raise UploadRejectedError(detail, status=413)
        return ZipImage(info, height, width, picture.mode)
    except UnusableImageError as error:
        raise member_error(info, f"it is no picture that can be used: {error}; or leave it out") from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Decompress a member in bounded memory and return its bytes.

    Raises UploadRejectedError if it is too large or damaged.
    """
    if info.file_size > MAX_MEMBER_BYTES:
        detail = f"{info.filename[:200]!r}: {info.file_size} bytes are too many for a picture"
        raise UploadRejectedError(detail, status=413)
    try:
        with archive.open(info) as file:
            return file.read(info.file_size + 1)  # only with a length is decompression bounded
    except base.READ_ERRORS as error:
        raise member_error(info, f"it is damaged ({str(error)[:120]}); pack it anew") from error


def _images_by_split(images: Sequence[ZipImage]) -> dict[str | None, list[int]]:
    """Return the indices of the images of each split, keyed by split.

    Folders name the split; the only key is None if no folder names one. Raises UploadRejectedError
    if only some images are in a split, or if there are no training images.
    """
    indices: dict[str | None, list[int]] = {}
    for index, split in enumerate(splits_of_paths([path_of(image.info)[:-1] for image in images])):
        indices.setdefault(split, []).append(index)
    if None in indices and len(indices) > 1:
        outside = images[indices[None][0]].info.filename[:200]
        detail = f"some pictures lie in folders train, validation or test, but {outside!r} in none of them"
        raise UploadRejectedError(detail)
    if None not in indices and "train" not in indices:
        raise UploadRejectedError("no picture lies in a folder train, though some lie in validation or test")
    return indices


def _decode(
    archive: zipfile.ZipFile, image: ZipImage, shape: tuple[int, int, int], conversions: Counter[str]
) -> Pixels:
    """Decode an image of a ZIP to uint8 of `shape` (C, H, W).

    It is scaled to cover this size and cropped at the centre. If it was converted, this is counted
    in `conversions`. Raises UploadRejectedError if the image cannot be decoded.
    """
    channels, height, width = shape
    try:
        pixels, notes = decode(_read_member(archive, image.info), channels, image.height, image.width)
    except UnusableImageError as error:
        raise member_error(image.info, str(error)) from error
    if notes is not None:
        conversions[notes if notes in conversions or len(conversions) < _MAX_CONVERSION_KINDS else "other"] += 1
    if (image.height, image.width) == (height, width):
        return pixels
    picture = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    array = np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS))
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))


# --- pictures of one size ---


def _open_pictures(
    folder: Path, images: Sequence[ZipImage], options: ConversionOptions, report: dict[str, Any]
) -> Source:
    """Return the source of pictures of one size: that of the option `resize`, or of all images."""
    sizes = Counter((image.height, image.width) for image in images)
    if options.resize is None and len(sizes) > 1:
        raise _mixed_sizes_error(images, sizes)
    channels = 1 if all(image.mode in _GREY_MODES for image in images) else 3
    shape = (channels, *(options.resize or next(iter(sizes))))
    labels = read_labels(folder, len(images))
    conversions: Counter[str] = Counter()
    if options.resize is not None:
        report["resized"] = sum(times for size, times in sizes.items() if size != options.resize)
    splits = []
    for split, indices in _images_by_split(images).items():
        batches = _picture_reader(folder, [images[index] for index in indices], shape, conversions)
        own_labels = None if labels is None else labels[indices]
        splits.append(SourceSplit(split, len(indices), batches, scaled=True, labels=own_labels))
    return Source("zip", "pictures", shape, splits, report, conversions)


def _mixed_sizes_error(images: Sequence[ZipImage], sizes: Counter[tuple[int, int]]) -> UploadRejectedError:
    first = {(image.height, image.width): image.info.filename[:80] for image in reversed(images)}
    listed = [f"{times} of {h}×{w} (as {first[h, w]!r})" for (h, w), times in sizes.most_common(base.MAX_LISTED_NAMES)]
    more = f" and {len(sizes) - base.MAX_LISTED_NAMES} more sizes" if len(sizes) > base.MAX_LISTED_NAMES else ""
    return UploadRejectedError(
        f"the pictures differ in size (height×width): {', '.join(listed)}{more}; give resize=HxW to scale each until "
        f"it covers that size and cut it at the centre, or kind=photographs to cut patches of {PATCH}×{PATCH}",
        "resize",
    )


def _picture_reader(
    folder: Path, images: Sequence[ZipImage], shape: tuple[int, int, int], conversions: Counter[str]
) -> BatchReader:
    """Return the function that yields pictures of `shape` in batches, for a `SourceSplit`."""
    step = max(1, base.BATCH_BYTES // math.prod(shape))

    def read_batches() -> Iterator[Pixels]:
        with zipfile.ZipFile(folder / "file") as archive:
            for first in range(0, len(images), step):
                yield np.stack([_decode(archive, image, shape, conversions) for image in images[first : first + step]])

    return read_batches


# --- photographs ---


def _open_photographs(
    folder: Path, images: Sequence[ZipImage], options: ConversionOptions, report: dict[str, Any]
) -> Source:
    """Return the source of photographs, whose images are patches of PATCH × PATCH pixels."""
    if options.resize is not None:
        detail = f"resize is for pictures; photographs are cut into patches of {PATCH}×{PATCH}"
        raise UploadRejectedError(detail, "resize")
    if (folder / "labels").exists():
        raise UploadRejectedError("labels are for pictures; patches of photographs have none", "labels")
    small = next((image for image in images if min(image.width, image.height) < PATCH), None)
    if small is not None:
        raise member_error(
            small.info, f"{small.height}×{small.width} pixels hold no patch of {PATCH}×{PATCH}; leave it out"
        )
    if len(images) < MIN_PHOTOGRAPHS:
        raise UploadRejectedError(f"{len(images)} photographs are too few to split; send {MIN_PHOTOGRAPHS} or more")
    report["photographs"] = len(images)
    conversions: Counter[str] = Counter()
    splits = [
        _photograph_split(folder, split, [images[index] for index in indices], conversions)
        for split, indices in _images_by_split(images).items()
    ]
    return Source("zip", "photographs", (3, PATCH, PATCH), splits, report, conversions)


def _photograph_split(
    folder: Path, split: str | None, images: Sequence[ZipImage], conversions: Counter[str]
) -> SourceSplit:
    """Return a split of photographs; its batches have the patches of one photograph each."""

    def read_batches() -> Iterator[Pixels]:
        with zipfile.ZipFile(folder / "file") as archive:
            for image in images:
                yield _cut_patches(_decode(archive, image, (3, image.height, image.width), conversions))

    count = sum((image.height // PATCH) * (image.width // PATCH) for image in images)
    return SourceSplit(split, count, read_batches, scaled=True, grouped=True)


def _cut_patches(pixels: Pixels) -> Pixels:
    """Divide a photograph (3, H, W) into adjacent patches, row by row.

    The pixels at its edges that do not fill a patch are left out. Returns an array (n, 3, PATCH,
    PATCH).
    """
    _, height, width = pixels.shape
    rows, columns = height // PATCH, width // PATCH
    top, left = (height - rows * PATCH) // 2, (width - columns * PATCH) // 2
    patches = pixels[:, top : top + rows * PATCH, left : left + columns * PATCH]
    patches = patches.reshape(3, rows, PATCH, columns, PATCH).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(patches).reshape(rows * columns, 3, PATCH, PATCH)
