"""What the readers of the picture formats share: the result, the limits, and the error for files
that are refused.

A reader walks over the chunks or segments of a file without decoding pixels. It counts them against
a limit, takes the orientation, the ICC profile and the transparent colour out of the metadata, and
returns a file without metadata, so that Pillow's own parsing of metadata, which is slow on hostile
files, never runs.
"""

from typing import Any, NamedTuple

import numpy as np

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

_PARTS = 256
_BYTES_PER_PART = 1024
ANIMATED = "the picture is animated, or has several frames or pages; send a single frame"


class UnusableImageError(ValueError):
    """A picture file that cannot be used; the message says why and what would work."""


# See docs/decisions.md#picture-metadata-is-removed-before-pillow-decodes
class Container(NamedTuple):
    """A picture file before decoding.

    `width` and `height` are those of the stored pixels, in pixels; `orientation` is EXIF's, 1 … 8.
    `data` is the file for Pillow's reader of `format`, without metadata. `depth` is in bits a
    channel, 0 where only Pillow knows; `grey` says that there is no colour, where the container
    tells. `key` is the level or the colour of a PNG that is transparent. `unfinished`: a JPEG
    without its end marker. `notes` say what was found or left out.
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

    Real files have tens of them, and otherwise large ones (64 kB a segment of a JPEG, 8 kB or more
    a chunk of a PNG).
    """
    return _PARTS + size_bytes // _BYTES_PER_PART


def too_many(kind: str, parts: str, limit: int) -> UnusableImageError:
    """Return the error for a file with more chunks or segments than real ones have."""
    return UnusableImageError(
        f"the {kind} has more than {limit} {parts}, which no ordinary file of its size has; save it anew"
    )
