"""Pictures in and out: PNG of one image or of a grid, and uploads checked before a pixel is decoded."""

import io
import math
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
Image.MAX_IMAGE_PIXELS = None  # a header's size is compared with the model's before a pixel is decoded


class UnusableImageError(ValueError):
    """An upload that cannot be used; the message says why and what would work."""


def png(pixels: Pixels) -> bytes:
    """PNG (RFC 2083) of one image, uint8 (C, H, W) with C = 1 or 3: unfiltered lines, one zlib stream.

    Written here because it is the last step of every small answer: Pillow's encoder takes four times as long for
    28×28 pixels, nearly all of it in Python.
    """
    channels, height, width = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)
    lines[:, 1:] = pixels[0] if channels == 1 else pixels.transpose(1, 2, 0).reshape(height, -1)
    head = struct.pack(">2I5B", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks)


def chunk(name: bytes, data: bytes) -> bytes:
    """A piece of a PNG, with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def unpng(data: bytes) -> Pixels:
    """Pixels (C, H, W) of a PNG of our own."""
    return _pixels(Image.open(io.BytesIO(data)))


def grid(pixels: Pixels, columns: int | None = None) -> bytes:
    """PNG of a batch, uint8 (B, C, H, W), laid out row-major on a near-square grid."""
    count, channels, height, width = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    lines = math.ceil(count / columns)
    sheet = np.zeros((lines * columns, channels, height, width), np.uint8)
    sheet[:count] = pixels
    sheet = sheet.reshape(lines, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
    return png(np.ascontiguousarray(sheet.reshape(channels, lines * height, columns * width)))


def decode(data: bytes, channels: int, height: int, width: int) -> tuple[Pixels, str | None]:
    """Pixels (C, H, W) of an upload, and what was converted, if anything was.

    The size is checked on the header, so that a small file with huge dimensions costs nothing. Palette, RGB and CMYK
    pictures become grey by luma where the model is grey; transparency is laid over black; a bilevel picture becomes
    0 and 255. Raises UnusableImageError for what is no picture, truncated, animated, 16-bit or of another size.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's readers raise anything on a damaged file
        raise UnusableImageError(f"not a picture that can be read; send one of {', '.join(FORMATS)}") from error
    if image.size != (width, height):
        raise UnusableImageError(
            f"the picture is {image.size[0]}×{image.size[1]} pixels; this model takes {width}×{height}"
        )
    if getattr(image, "is_animated", False):
        raise UnusableImageError("the picture is animated; send a single frame")
    if deep(image):
        raise UnusableImageError("the picture has more than 8 bits a channel; convert it to 8 bits")
    try:
        return _converted(image, "L" if channels == 1 else "RGB")
    except Exception as error:
        raise UnusableImageError(
            "the picture is truncated, damaged or of a kind that cannot be converted; save it anew as PNG"
        ) from error


def deep(image: Image.Image) -> bool:
    """Whether a channel has more than 8 bits; Pillow would cut those of colour pictures without a word."""
    return image.mode.startswith(("I", "F")) or any(";16" in layout for layout in layouts(image))


def layouts(image: Image.Image) -> list[str]:
    """How the pixels of an opened file lie in it, in Pillow's words: its raw modes."""
    tiles = getattr(image, "tile", ())  # (decoder, box, offset, raw mode and more)
    return [str(tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), "")) for tile in tiles]


def _converted(image: Image.Image, wanted: str) -> tuple[Pixels, str | None]:
    if image.mode == wanted and "transparency" not in image.info:
        return _pixels(image), None
    said = f"{image.mode} to {wanted}"
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), over)
        said += ", transparency over black"
    return _pixels(image.convert(wanted)), said


def _pixels(image: Image.Image) -> Pixels:
    array = np.asarray(image, np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
