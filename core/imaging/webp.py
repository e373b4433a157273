"""Check the chunks of WebP files (RFC 9649)."""

import struct

from core.imaging import container
from core.imaging.container import Container, UnusableImageError

MAGIC = b"RIFF"
_HEAD = struct.Struct("<4sI")
_METADATA = {b"ICCP", b"EXIF", b"XMP "}


def read_webp(data: bytes) -> Container:
    """Check the chunks of a WebP file; return its size and data as a `Container`.

    Raises UnusableImageError if it has no image at its beginning, several frames or too many
    chunks, and ValueError, IndexError or struct.error for a damaged file.
    """
    if data[8:12] != b"WEBP":
        raise ValueError("a RIFF file of another kind")
    width, height = _size(data)
    metadata: dict[bytes, bytes] = {}
    frames, place, limit = 0, 12, container.part_limit(len(data))
    for _ in range(limit):
        if place + 8 > len(data):
            break
        name, length = _HEAD.unpack_from(data, place)
        if name in _METADATA:
            metadata.setdefault(name, data[place + 8 : place + 8 + length])
        frames += name == b"ANMF"
        if frames > 1:
            raise UnusableImageError(container.ANIMATED)
        place += 8 + length + length % 2
    else:
        raise container.too_many("WebP", "chunks", limit)
    profile, notes = container.limit_profile(metadata.get(b"ICCP"))
    orientation = container.orientation_of(metadata.get(b"EXIF"), metadata.get(b"XMP "))
    return Container("WEBP", width, height, data, orientation, profile, notes=notes)


def _size(data: bytes) -> tuple[int, int]:
    """Return width and height, which the first chunk states: VP8, VP8L or VP8X.

    Raises UnusableImageError for another first chunk.
    """
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise UnusableImageError("not a picture that can be read: the WebP has no picture at its beginning; save it anew")
