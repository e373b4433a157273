"""Check the segments and scans of JPEG files (ITU-T T.81), and remove their metadata.

A file may have further images after the first (CIPA DC-007, "MPO": previews, gain maps, stereo);
they are not read.
"""

import re
import struct
from collections.abc import Sequence
from typing import NamedTuple

from core.imaging.container import Container, UnusableImageError, limit_profile, orientation_of, part_limit, too_many

MAGIC = b"\xff\xd8\xff"
END = b"\xff\xd9"
# Progressive files have about ten scans. Each costs time for every pixel, whatever its size.
SCAN_LIMIT = 32

# A run of 0xFF longer than any table; libjpeg, fed in pieces, reads it again for each piece.
_LONG_FILL = re.compile(rb"\xff{256,}")

_FILL = re.compile(rb"\xff+")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI, _COM, _JFIF, _ADOBE, _LAST_APPLICATION = 0xDA, 0xD9, 0xFE, 0xE0, 0xEE, 0xEF
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BASELINE = {0xC0, 0xC1}
_EXIF, _XMP, _ICC, _MPF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"


class _Segment(NamedTuple):
    """A segment before the first scan: its marker, and the byte offsets of its start and end."""

    marker: int
    begin: int
    end: int


def read_jpeg(data: bytes) -> Container:
    """Check a JPEG's segments; return a `Container` whose data has no metadata.

    Raises UnusableImageError if the file is truncated or damaged, has more than 8 bits per channel,
    or has too many segments or scans; IndexError for other damage.
    """
    segments, start, stray = _header(data)
    frames = [one for one in segments if one.marker in _FRAMES and one.end > one.begin + 4]
    if not frames or frames[0].end - frames[0].begin < 10:
        detail = "not a picture that can be read: the JPEG has no frame before its pixels; save it anew"
        raise UnusableImageError(detail)
    depth, height, width, components = struct.unpack_from(">B2HB", data, frames[0].begin + 4)
    if depth > 8:
        raise UnusableImageError(f"the JPEG has {depth} bits a channel, which are not read; convert it to 8 bits")
    if data.count(b"\xff\xda", start) > SCAN_LIMIT and _scans(data, start) > SCAN_LIMIT:
        raise UnusableImageError(f"the JPEG has more than {SCAN_LIMIT} scans; save it anew")
    unfinished = not data.endswith(END) and data.find(END, start) < 0
    if unfinished and not (frames[0].marker in _BASELINE and _whole_scan(data, start, components)):
        raise UnusableImageError("the JPEG is truncated: its end marker (EOI) is missing; send it whole")
    profile, notes = _profile(_contents(data, segments, 0xE2, _ICC))
    if _contents(data, segments, 0xE2, _MPF):
        notes = ("the first of several pictures in the file", *notes)
    kept = [data[one.begin : one.end] for one in segments if _is_needed(data, one)]
    stray = stray or len(kept) < len(segments)
    clean = b"".join((data[:2], *kept, memoryview(data)[start:])) if stray else data
    if data.find(b"\xff" * 256, start) >= 0:
        clean = _LONG_FILL.sub(b"\xff", clean)
    exif, xmp = _contents(data, segments, 0xE1, _EXIF), _contents(data, segments, 0xE1, _XMP)
    orientation = orientation_of(b"".join(exif), xmp[-1] if xmp else None)
    return Container("JPEG", width, height, clean, orientation, profile, unfinished=unfinished, notes=notes)


def _is_needed(data: bytes, segment: _Segment) -> bool:
    """Return whether decoding needs a segment.

    Comments are not needed, nor is application data, except that of JFIF and Adobe.
    """
    if segment.marker == _COM or 0xE0 <= segment.marker <= _LAST_APPLICATION:
        name = {_JFIF: b"JFIF", _ADOBE: b"Adobe"}.get(segment.marker)
        return name is not None and data.startswith(name, segment.begin + 4, segment.end)
    return True


def _contents(data: bytes, segments: Sequence[_Segment], marker: int, name: bytes) -> list[bytes]:
    """Return the contents of the segments with this marker that begin with `name`.

    They are the bytes after `name`, in the order of the segments.
    """
    return [
        data[one.begin + 4 + len(name) : one.end]
        for one in segments
        if one.marker == marker and data.startswith(name, one.begin + 4, one.end)
    ]


def _profile(contents: list[bytes]) -> tuple[bytes | None, tuple[str, ...]]:
    """Join the parts of an ICC profile; return the profile and a tuple of messages.

    Each part begins with its number and the number of parts, a byte each. The profile is None if
    there is no part, if parts are missing, or if it is too large. Only a profile that is too large
    has a message.
    """
    parts = sorted(contents)
    if not parts or len(parts[0]) < 2 or parts[0][1] != len(parts):
        return None, ()
    return limit_profile(b"".join(part[2:] for part in parts))


def _header(data: bytes) -> tuple[list[_Segment], int, bool]:
    """Parse and check the segments of untrusted JPEG data up to the first scan.

    Returns the segments, the offset of the scan, and whether there are other bytes between the
    segments. Raises UnusableImageError if the header is truncated or damaged, if it has no scan, or
    if it has too many segments.
    """
    segments: list[_Segment] = []
    stray, place, limit = False, 2, part_limit(len(data))
    for _ in range(limit):
        if data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xff":
            begin = place
        else:  # bytes between segments, or a marker with many 0xFF before it
            begin, stray = _fill_end(data, place), True
        marker, place = data[begin + 1], begin + 2
        if marker == 0 or 0xD0 <= marker <= 0xD8:  # stray bytes, or markers that stand alone
            stray = True
            continue
        if marker == _SOS:
            return segments, begin, stray
        if marker < 0xC0 or marker == _EOI:
            raise UnusableImageError("the JPEG is damaged: it has no scan after its header; save it anew")
        end = place + int.from_bytes(data[place : place + 2], "big")
        if end < place + 2 or end > len(data):
            raise UnusableImageError("the JPEG is truncated or damaged within its header; send it whole")
        segments.append(_Segment(marker, begin, end))
        place = end
    raise too_many("JPEG", "segments", limit)


def _fill_end(data: bytes, place: int) -> int:
    """Return the offset of the 0xFF byte of the next marker, from offset `place` on.

    Of several 0xFF bytes it is the last one; the others are padding. Raises UnusableImageError if
    there is no further marker.
    """
    match = _FILL.search(data, place)
    if match is None or match.end() >= len(data):
        raise UnusableImageError("the JPEG is truncated or damaged within its header; send it whole")
    return match.end() - 1


def _scans(data: bytes, place: int) -> int:
    """Count the scans from offset `place` to the end of the image.

    Counting stops at `SCAN_LIMIT` + 1. Raises UnusableImageError if there are too many segments.
    """
    scans, limit = 0, part_limit(len(data))
    for _ in range(limit):
        match = _MARKER.search(data, place)
        if match is None:
            return scans
        marker, place = data[match.end() - 1], match.end()
        if marker == _EOI:
            return scans
        if marker == _SOS:
            scans += 1
            if scans > SCAN_LIMIT:
                return scans
        place += int.from_bytes(data[place : place + 2], "big")
    raise too_many("JPEG", "segments", limit)


def _whole_scan(data: bytes, start: int, components: int) -> bool:
    """Return whether the scan at offset `start` has all components and no scan follows it.

    `components` is the number of components (colour channels) of the image.
    """
    return data[start + 4] == components and data.find(b"\xff\xda", start + 2) < 0
