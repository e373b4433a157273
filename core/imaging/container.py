"""What the readers of the image formats share: their result, their limits and their error.

A reader walks over the chunks or segments of a file without decoding pixels. It counts them against
a limit, takes orientation, ICC profile and transparent colour from the metadata, and returns the
file without metadata. So Pillow's own parsing of metadata, which is slow on hostile files, never
runs.
"""

from typing import Any, NamedTuple

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_PARTS = 256
_BYTES_PER_PART = 1024
ANIMATED = "the picture is animated, or has several frames or pages; send a single frame"


class UnusableImageError(ValueError):
    """An image file that cannot be used; the message says why and what would work."""


# See docs/decisions.md#picture-metadata-is-removed-before-pillow-decodes
class Container(NamedTuple):
    """An image file before decoding.

    `width` and `height` are those of the stored pixels; `orientation` is EXIF's, 1 … 8. `data` is
    the file for Pillow's reader of `format`, without metadata. `depth` is in bits a channel, 0 if
    only Pillow knows; `grey`: the format says that there is no colour. `key`: the transparent level
    or colour of a PNG. `unfinished`: a JPEG without its end marker. `notes` lists what was found or
    dropped.
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
    """Return how many chunks or segments a file of this size may have.

    Real files have tens of them, and large ones otherwise (64 kB per segment of a JPEG, 8 kB or
    more per chunk of a PNG).
    """
    return _PARTS + size_bytes // _BYTES_PER_PART


def too_many(kind: str, parts: str, limit: int) -> UnusableImageError:
    """Return the error for a file with more chunks or segments than real ones have."""
    return UnusableImageError(
        f"the {kind} has more than {limit} {parts}, which no ordinary file of its size has; save it anew"
    )
