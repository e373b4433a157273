"""Define what the readers of all image formats share: records, limits, reading of metadata.

A reader walks over the chunks or segments of a file without decoding pixels, and counts them
against a limit. It reads orientation, ICC profile and transparent colour, and returns the file
without metadata. So Pillow, which is slow on hostile metadata, never parses it.
"""

import re
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_PARTS = 256
_BYTES_PER_PART = 1024
ANIMATED = "the picture is animated, or has several frames or pages; send a single frame"


class UnusableImageError(ValueError):
    """Raised for an image file that cannot be used; the message says why and what would work."""


# See docs/decisions.md#picture-metadata-is-removed-before-pillow-decodes
class Container(NamedTuple):
    """An image file before decoding: its size, and its data without metadata.

    `width` and `height` are those of the stored pixels; `orientation` is EXIF's, 1 … 8. `data` is
    the file without metadata, for Pillow's reader of `format`. `depth` is the number of bits per
    channel, 0 if only Pillow knows it. `grey`: the format states that there is no colour. `key` is
    the transparent level or colour of a PNG. `unfinished`: a JPEG without its end marker. `notes`
    lists what was found or removed, as messages.
    """

    format: str
    width: int
    height: int
    data: bytes
    orientation: int = 1
    profile: bytes | None = None
    key: tuple[int, ...] | None = None
    depth: int = 8
    grey: bool = False
    unfinished: bool = False
    notes: tuple[str, ...] = ()


def part_limit(size_bytes: int) -> int:
    """Return the maximum number of chunks or segments allowed in a file of `size_bytes` bytes.

    Real files have some tens; large files have one per 64 kB (JPEG) or 8 kB and more (PNG).
    """
    return _PARTS + size_bytes // _BYTES_PER_PART


def too_many(kind: str, parts: str, limit: int) -> UnusableImageError:
    """Return the error for a file with more than `limit` chunks, segments or other parts.

    `kind` is the name of the file format and `parts` that of its parts in the message.
    """
    detail = f"the {kind} has more than {limit} {parts}, which no ordinary file of its size has; save it anew"
    return UnusableImageError(detail)


# --- metadata that matters to pixels ---

PROFILE_LIMIT_BYTES = 8 << 20

TEXT_LIMIT_BYTES = 1 << 20  # larger compressed texts are not searched for an orientation

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([0-9])")
_LONGEST_XMP_BYTES = 1 << 20


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 … 8, that EXIF or else XMP data states; 1 (upright) by default."""
    orientation = _exif_orientation(exif) if exif else None
    if orientation is None and xmp:
        match = _XMP_ORIENTATION.search(xmp[:_LONGEST_XMP_BYTES])
        orientation = int(match[1]) if match else None
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """Return the value of the orientation tag in the first EXIF directory, in range or not.

    None if the tag is missing or the directory is damaged.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return None
    (offset,) = struct.unpack_from(order + "I", exif, 4)
    if offset + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, offset)
    directory = exif[offset + 2 : offset + 2 + 12 * count]
    directory = directory[: len(directory) // 12 * 12]
    tags = np.frombuffer(directory, order + "u2")[::6]
    places = np.flatnonzero(tags == _ORIENTATION)
    if not len(places):
        return None
    entry = directory[12 * int(places[-1]) :][:12]
    kind, number = struct.unpack_from(order + "HI", entry, 2)
    layout = {3: "H", 4: "I"}.get(kind)
    if layout is None or number != 1:
        return None
    return int(struct.unpack_from(order + layout, entry, 8)[0])


def inflated(data: bytes, limit: int) -> bytes | None:
    """Decompress a zlib stream and return its data.

    None if the stream is damaged or its data is longer than `limit` bytes.
    """
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, limit + 1)
    except zlib.error:
        return None
    return unpacked if len(unpacked) <= limit else None


def limit_profile(profile: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    """Return an ICC profile and no messages, or None and one message if the profile is too large.

    The limit is `PROFILE_LIMIT_BYTES`. The messages, for the client, are a tuple.
    """
    if profile is not None and len(profile) > PROFILE_LIMIT_BYTES:
        return None, (f"an ICC profile of more than {PROFILE_LIMIT_BYTES >> 20} MiB was left out",)
    return profile, ()
