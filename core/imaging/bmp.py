"""Check the header and the run-length encoded data of BMP files (Windows bitmap)."""

import struct

from core.imaging.container import Container, UnusableImageError

MAGIC = b"BM"
_CORE_HEADER = 12
_RUN_LENGTH = {1, 2}
_SLACK_BYTES = 1024


def read_bmp(data: bytes) -> Container:
    """Check the header of a BMP file; return its size and data as a `Container`.

    Run-length encoded data is truncated to the largest size that an encoder would write, because
    further codes without pixels could keep Pillow's decoder busy. Raises UnusableImageError if
    there are no pixels, and struct.error for a damaged file.
    """
    (offset, header) = struct.unpack_from("<II", data, 10)
    if header == _CORE_HEADER:
        width, height = struct.unpack_from("<HH", data, 18)
        compression = 0
    else:
        width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: from top to bottom
    if width < 1 or height < 1:
        raise UnusableImageError("not a picture that can be read: the BMP has no pixels; save it anew")
    if compression in _RUN_LENGTH:
        # at most two bytes for each pixel, and for each line its end, or a jump
        data = data[: offset + 2 * width * height + 4 * height + _SLACK_BYTES]
    return Container("BMP", width, height, data)
