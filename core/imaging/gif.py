"""Check the blocks of GIF files (version 89a): a screen, extensions, and frames."""

import struct

from core.imaging.container import ANIMATED, Container, UnusableImageError, part_limit, too_many

MAGIC = (b"GIF87a", b"GIF89a")
_BLOCKS_PER_PART = 16  # sub-blocks have at most 255 bytes, and usually that many

_CONTROL, _EXTENSION, _FRAME, _TRAILER = 0xF9, 0x21, 0x2C, 0x3B


def read_gif(data: bytes) -> Container:
    """Check a GIF's blocks; return a `Container` whose data has only its single frame.

    Raises UnusableImageError if it has no frame, several frames or too many blocks, and IndexError
    or struct.error for a damaged file.
    """
    width, height = struct.unpack_from("<HH", data, 6)
    place = 13 + _table(data[10])
    limit = left = part_limit(_BLOCKS_PER_PART * len(data))
    control = b""
    frame: tuple[int, int] | None = None
    while place < len(data) and data[place] != _TRAILER:
        begin, kind = place, data[place]
        if kind == _EXTENSION:
            place, left = _skip_blocks(data, begin + 2, left)
            if frame is None and data[begin + 1] == _CONTROL:
                control = data[begin:place]
        elif kind == _FRAME:
            if frame is not None:
                raise UnusableImageError(ANIMATED)
            x, y, wide, high = struct.unpack_from("<4H", data, begin + 1)
            width, height = max(width, x + wide), max(height, y + high)
            place, left = _skip_blocks(data, begin + 10 + _table(data[begin + 9]) + 1, left)
            frame = begin, place
        else:
            place, left = place + 1, left - 1  # bytes between blocks are skipped
        if left <= 0:
            raise too_many("GIF", "blocks", limit)
    if frame is None:
        raise UnusableImageError("not a picture that can be read: the GIF has no frame; save it anew")
    clean = b"".join((data[: 13 + _table(data[10])], control, data[frame[0] : frame[1]], b";"))
    return Container("GIF", width, height, clean)


def _skip_blocks(data: bytes, place: int, left: int) -> tuple[int, int]:
    """Skip the sub-blocks that begin at the offset `place`.

    `left` is the number of blocks that the file may still have; no more are skipped. Returns the
    offset after the sub-blocks, and the number that is left after them.
    """
    while place < len(data) and data[place] and left > 0:
        place, left = place + data[place] + 1, left - 1
    return min(place + 1, len(data)), left - 1


def _table(flags: int) -> int:
    """Return the size in bytes of the colour table that a flags byte describes; 0 without one."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
