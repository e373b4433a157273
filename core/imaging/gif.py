"""GIF (version 89a): a screen, extensions and frames, in sub-blocks of up to 255 bytes."""

import struct

from core.imaging import container
from core.imaging.container import Container, UnusableImageError

MAGIC = (b"GIF87a", b"GIF89a")
_BLOCKS_PER_PART = 16  # sub-blocks have at most 255 bytes, and usually that many

_CONTROL, _EXTENSION, _FRAME, _TRAILER = 0xF9, 0x21, 0x2C, 0x3B


class _Blocks:
    """Reads the sub-blocks of a file, and counts them against a limit."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._limit = self._left = container.part_limit(_BLOCKS_PER_PART * len(data))

    def end(self, place: int) -> int:
        """Return the offset after the sub-blocks that begin at `place`, and count them.

        Raises UnusableImageError over the limit.
        """
        data, size = self._data, len(self._data)
        for left in range(self._left, 0, -1):
            if place >= size or not data[place]:
                self._left = left
                self.count()
                return min(place + 1, size)
            place += data[place] + 1
        raise container.too_many("GIF", "blocks", self._limit)

    def count(self) -> None:
        """Count one block. Raises UnusableImageError if there are more than the limit."""
        self._left -= 1
        if self._left <= 0:
            raise container.too_many("GIF", "blocks", self._limit)


def read_gif(data: bytes) -> Container:
    """Check a GIF's blocks and return its container, with the single frame.

    Raises UnusableImageError if it has no frame, several frames or too many blocks, and IndexError
    or struct.error for a damaged file.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    place = 13 + _table(data[10])
    blocks, control = _Blocks(data), b""
    frame: tuple[int, int] | None = None
    while place < len(data) and data[place] != _TRAILER:
        begin, kind = place, data[place]
        if kind == _EXTENSION:
            place = blocks.end(begin + 2)
            if frame is None and data[begin + 1] == _CONTROL:
                control = data[begin:place]
        elif kind == _FRAME:
            if frame is not None:
                raise UnusableImageError(container.ANIMATED)
            left, top, wide, high = struct.unpack_from("<4H", data, begin + 1)
            width, height = max(width, left + wide), max(height, top + high)
            place = blocks.end(begin + 10 + _table(data[begin + 9]) + 1)
            frame = begin, place
        else:
            blocks.count()  # bytes between blocks are skipped
            place += 1
    if frame is None:
        raise UnusableImageError("not a picture that can be read: the GIF has no frame; save it anew")
    clean = b"".join((data[: 13 + _table(data[10])], control, data[frame[0] : frame[1]], b";"))
    return Container("GIF", width, height, clean)


def _table(flags: int) -> int:
    """Return the size of a colour table in bytes, from the flags byte that describes it."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
