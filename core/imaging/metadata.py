"""Metadata that matters to pixels: the orientation (EXIF or XMP), and the ICC profile's limits."""

import re
import struct
import zlib

import numpy as np

# Larger ICC profiles are dropped; those of displays have kilobytes, of presses up to 3 MB.
PROFILE_LIMIT_BYTES = 8 << 20

TEXT_LIMIT_BYTES = 1 << 20  # larger compressed texts are not searched for an orientation

_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=\"|>)([0-9])")
_LONGEST_XMP_BYTES = 1 << 20


def orientation_of(exif: bytes | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 … 8, by EXIF or otherwise XMP; 1 (upright) by default."""
    orientation = _exif_orientation(exif) if exif else None
    if orientation is None and xmp:
        match = _XMP_ORIENTATION.search(xmp[:_LONGEST_XMP_BYTES])
        orientation = int(match[1]) if match else None
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """Return the orientation tag of the first directory, unchecked; None if it is missing."""
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
    """Return a decompressed zlib stream; None if it is damaged or longer than `limit` bytes."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, limit + 1)
    except zlib.error:
        return None
    return unpacked if len(unpacked) <= limit else None


def too_large_profile() -> str:
    """Return the note about a profile that was dropped because of its size."""
    return f"an ICC profile of more than {PROFILE_LIMIT_BYTES >> 20} MiB was left out"
