"""JPEG (ITU-T T.81): segments that begin with a marker, then the scans.

Further images behind the first (CIPA DC-007, "MPO": previews, gain maps, stereo) are not read.
"""

import re

from core.imaging import container
from core.imaging.container import Container, UnusableImageError

MAGIC = b"\xff\xd8\xff"
END = b"\xff\xd9"
# Progressive files have about ten scans. Each costs time for every pixel, whatever its size.
SCAN_LIMIT = 32

# A run of 0xFF longer than any table; libjpeg, fed in pieces, reads it again for each piece.
_LONG_FILL = re.compile(rb"\xff{256,}")

_FILL = re.compile(rb"\xff+")
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI, _COM, _JFIF, _ADOBE, _LAST_APPLICATION = 0xDA, 0xD9, 0xFE, 0xE0, 0xEE, 0xEF
_NO_FRAMES = {0xC4, 0xC8, 0xCC}
_BASELINE = {0xC0, 0xC1}
_EXIF, _XMP, _ICC, _MPF = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0"


class _Header:
    """The segments before the first scan: those that decoding needs, and the metadata.

    `several`: the file has more images. `dropped`: it has segments or bytes that are not kept.
    """

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.frame = b""
        self.frame_marker = 0
        self.exif: list[bytes] = []
        self.xmp: bytes | None = None
        self.profiles: list[bytes] = []
        self.several = False
        self.dropped = False

    def take(self, marker: int, data: bytes, begin: int, end: int) -> None:
        """Keep a segment that decoding needs; read orientation and profile from others.

        The segment with the marker `marker` is `data[begin:end]`.
        """
        if marker < 0xE0:
            if not self.frame and 0xC0 <= marker <= 0xCF and marker not in _NO_FRAMES:
                self.frame, self.frame_marker = data[begin + 4 : end], marker
            self.kept.append(data[begin:end])
            return
        content = data[begin + 4 : end]
        if self._layout(marker, content):
            self.kept.append(data[begin:end])
        else:
            self.dropped = True
            self._note(marker, content)

    @staticmethod
    def _layout(marker: int, content: bytes) -> bool:
        """Return whether a segment describes the colour coding (JFIF, Adobe), or is unknown."""
        if marker > _LAST_APPLICATION and marker != _COM:
            return True
        return (marker == _JFIF and content.startswith(b"JFIF")) or (marker == _ADOBE and content.startswith(b"Adobe"))

    def _note(self, marker: int, content: bytes) -> None:
        if marker == 0xE1 and content.startswith(_EXIF):
            self.exif.append(content[len(_EXIF) :])
        elif marker == 0xE1 and content.startswith(_XMP):
            self.xmp = content[len(_XMP) :]
        elif marker == 0xE2 and content.startswith(_ICC):
            self.profiles.append(content)
        elif marker == 0xE2 and content.startswith(_MPF):
            self.several = True

    def profile(self) -> tuple[bytes | None, tuple[str, ...]]:
        """Return the ICC profile, joined from its segments, and notes, if it is too large.

        The profile is None if there is none or segments are missing.
        """
        parts = sorted(self.profiles)  # by their numbers
        if not parts or len(parts[0]) < 14 or parts[0][13] != len(parts):
            return None, ()
        return container.limit_profile(b"".join(part[14:] for part in parts))


def read_jpeg(data: bytes) -> Container:
    """Check a JPEG's segments and return its container, whose data has no metadata.

    Raises UnusableImageError if the file is truncated or damaged, has more than 8 bits per channel,
    or has too many segments or scans; IndexError for other damage.
    """
    header, start = _header(data)
    if len(header.frame) < 6:
        raise UnusableImageError(
            "not a picture that can be read: the JPEG has no frame before its pixels; save it anew"
        )
    depth = header.frame[0]
    if depth > 8:
        raise UnusableImageError(f"the JPEG has {depth} bits a channel, which are not read; convert it to 8 bits")
    height, width = int.from_bytes(header.frame[1:3], "big"), int.from_bytes(header.frame[3:5], "big")
    if data.count(b"\xff\xda", start) > SCAN_LIMIT and _scans(data, start) > SCAN_LIMIT:
        raise UnusableImageError(f"the JPEG has more than {SCAN_LIMIT} scans; save it anew")
    unfinished = not data.endswith(END) and data.find(END, start) < 0
    if unfinished and not (header.frame_marker in _BASELINE and _whole_scan(data, start, header.frame[5])):
        raise UnusableImageError("the JPEG is truncated: its end marker (EOI) is missing; send it whole")
    profile, notes = header.profile()
    if header.several:
        notes = ("the first of several pictures in the file", *notes)
    clean = b"".join((data[:2], *header.kept, memoryview(data)[start:])) if header.dropped else data
    if data.find(b"\xff" * 256, start) >= 0:
        clean = _LONG_FILL.sub(b"\xff", clean)
    orientation = container.orientation_of(b"".join(header.exif), header.xmp)
    return Container("JPEG", width, height, clean, orientation, profile, unfinished=unfinished, notes=notes)


def _header(data: bytes) -> tuple[_Header, int]:
    """Parse and check the segments of untrusted JPEG data up to the first scan.

    Returns the header and the offset of the scan. Raises UnusableImageError if the header is
    truncated or damaged, if it has no scan, or if it has too many segments.
    """
    header, place, limit = _Header(), 2, container.part_limit(len(data))
    for _ in range(limit):
        if data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xff":
            begin = place
        else:  # bytes between segments, or a marker with many 0xFF before it
            begin = _fill_end(data, place)
            header.dropped = True
        marker, place = data[begin + 1], begin + 2
        if marker == 0 or 0xD0 <= marker <= 0xD8:  # stray bytes, or markers that stand alone
            header.dropped = True
            continue
        if marker == _SOS:
            return header, begin
        if marker < 0xC0 or marker == _EOI:
            raise UnusableImageError("the JPEG is damaged: it has no scan after its header; save it anew")
        end = place + int.from_bytes(data[place : place + 2], "big")
        if end < place + 2 or end > len(data):
            raise UnusableImageError("the JPEG is truncated or damaged within its header; send it whole")
        header.take(marker, data, begin, end)
        place = end
    raise container.too_many("JPEG", "segments", limit)


def _fill_end(data: bytes, place: int) -> int:
    """Return the offset of the last 0xFF before the next marker.

    Raises UnusableImageError if there is no further marker.
    """
    match = _FILL.search(data, place)
    if match is None or match.end() >= len(data):
        raise UnusableImageError("the JPEG is truncated or damaged within its header; send it whole")
    return match.end() - 1


def _scans(data: bytes, place: int) -> int:
    """Return the number of scans of the first image, at most one more than `SCAN_LIMIT`.

    Raises UnusableImageError if there are too many segments.
    """
    scans, limit = 0, container.part_limit(len(data))
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
    raise container.too_many("JPEG", "segments", limit)


def _whole_scan(data: bytes, start: int, components: int) -> bool:
    """Return whether the scan at `start` has all components and no scan follows."""
    return data[start + 4] == components and data.find(b"\xff\xda", start + 2) < 0
