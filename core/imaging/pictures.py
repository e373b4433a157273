"""Encode images of a model's size as PNG, and decode uploaded images of this size."""

import io
import math
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from core.imaging.container import Pixels, UnusableImageError
from core.imaging.decode import FORMATS, DecodedImage, open_picture, reject_damage
from core.imaging.png import chunk

__all__ = ["FORMATS", "Pixels", "UnusableImageError", "decode", "decode_own_png", "grid", "png", "write_grid"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# See docs/decisions.md#small-pngs-are-written-by-our-own-encoder
def png(pixels: Pixels) -> bytes:
    """Return the PNG (RFC 2083) of an image, uint8 (C, H, W) with C = 1 or 3.

    The lines are unfiltered and in one zlib stream. Small responses need it to be fast: Pillow's
    encoder takes four times as long for 28×28 pixels, most of it in Python.
    """
    channels, height, width = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)
    lines[:, 1:] = pixels[0] if channels == 1 else pixels.transpose(1, 2, 0).reshape(height, -1)
    head = _header(channels, height, width)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b""))
    return _SIGNATURE + b"".join(chunk(name, data) for name, data in chunks)


def decode_own_png(data: bytes) -> Pixels:
    """Decode a PNG that `png` has encoded; return its pixels, uint8 (C, H, W)."""
    return _pixels(Image.open(io.BytesIO(data)))


def grid(pixels: Pixels, columns: int | None = None) -> bytes:
    """Return a PNG in which images, uint8 (B, C, H, W), are placed row by row in a grid.

    `columns` is the number of images in a row; None makes the grid nearly square.
    """
    file = io.BytesIO()
    write_grid(file, pixels, columns)
    return file.getvalue()


def write_grid(out: BinaryIO, pixels: Pixels, columns: int | None = None) -> None:
    """Write a PNG with a grid of images, uint8 (B, C, H, W), to `out`, a seekable file.

    The images are placed row by row, and one row of images at a time is encoded. `columns` is the
    number of images in a row; None makes the grid nearly square.
    """
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    out.write(_SIGNATURE + chunk(b"IHDR", _header(channels, rows * height, columns * width)))
    begin = out.tell()
    out.write(struct.pack(">I4s", 0, b"IDAT"))  # the length is known at the end
    checksum, length = zlib.crc32(b"IDAT"), 0
    stream = zlib.compressobj(1)
    for first in range(0, rows * columns, columns):
        images = np.zeros((columns, channels, height, width), np.uint8)
        images[: max(0, count - first)] = pixels[first : first + columns]
        lines = np.zeros((height, 1 + columns * width * channels), np.uint8)
        lines[:, 1:] = images.transpose(2, 0, 3, 1).reshape(height, -1)
        data = stream.compress(lines.data)
        checksum, length = zlib.crc32(data, checksum), length + out.write(data)
    data = stream.flush()
    checksum, length = zlib.crc32(data, checksum), length + out.write(data)
    out.write(struct.pack(">I", checksum) + chunk(b"IEND", b""))
    end = out.tell()
    out.seek(begin)
    out.write(struct.pack(">I", length))
    out.seek(end)


def _header(channels: int, height: int, width: int) -> bytes:
    """Return the content of the header chunk (IHDR) of a PNG with 8 bits per channel."""
    return struct.pack(">2I5B", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)


def decode(data: bytes, channels: int, height: int, width: int) -> tuple[Pixels, str | None]:
    """Decode an uploaded image of `height` × `width` pixels; return its pixels (C, H, W).

    Also returns a message on conversions, None without any. The size is checked by the header,
    before a pixel is decoded. The image is turned upright and converted to sRGB, to grey by luma if
    `channels` is 1, and composed over black if it is transparent. Raises UnusableImageError for
    damaged or animated images, more than 8 bits per channel, or another size.
    """
    file = open_picture(data)
    if file.size != (width, height):
        stated = "×".join(map(str, file.size))
        raise UnusableImageError(f"the picture is {stated} pixels; this model takes {width}×{height}")
    if file.deep:
        raise UnusableImageError("the picture has more than 8 bits a channel; convert it to 8 bits")
    with reject_damage():
        return _converted(file.colours(), "L" if channels == 1 else "RGB")


def _converted(colours: DecodedImage, wanted: str) -> tuple[Pixels, str | None]:
    """Return the pixels (C, H, W) of a decoded image in Pillow's mode `wanted`, and a message.

    The message says how the image was converted; it is None if it was not.
    """
    image, notes = colours.image, list(colours.notes)
    if colours.alpha is not None:
        over = image.convert("RGBA")
        over.putalpha(Image.fromarray(colours.alpha))
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), over)
        notes.append(f"{colours.mode} to {wanted}, transparency over black")
    elif colours.mode != wanted:
        notes.append(f"{colours.mode} to {wanted}")
    if image.mode != wanted:
        image = image.convert(wanted)
    return _pixels(image), ", ".join(notes) or None


def _pixels(image: Image.Image) -> Pixels:
    """Return the pixels of an image of Pillow as uint8 (C, H, W)."""
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
