"""Encode large images as PNG, JPEG or WebP, a band of lines at a time.

So memory grows with the width, not the area; Pillow's encoders need the complete image in memory,
four bytes per pixel. A PNG is one zlib stream of lines. A JPEG consists of pieces that Pillow
writes, with restart markers between them. WebP needs the complete image, but its images are small
enough. See docs/decisions.md#images-are-read-and-written-with-pillow-not-libvips.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from core.imaging.container import Pixels
from core.imaging.png import chunk

PNG, JPEG, WEBP = "png", "jpeg", "webp"
FORMATS = (PNG, JPEG, WEBP)
MEDIA = {name: f"image/{name}" for name in FORMATS}

# Longest side in pixels: what libjpeg reads, what WebP allows, and a bound on PNG's bands.
LONGEST_SIDE = {PNG: 100_000, JPEG: 65_500, WEBP: 16_383}

# Most pixels of a WebP, which takes some twelve bytes each while it is made in memory.
WEBP_PIXELS = 64_000_000

_LEVEL = 1  # zlib's level; 3 takes twice as long for a tenth less

_LINES = 64
_MCU = 16
_INTERVAL = 65_535
_FULL_COLOUR = 90  # quality from which JPEG keeps the colour of each pixel (4:4:4)


@dataclass(frozen=True)
class Shape:
    """Height and width of an image in pixels, and its number of channels.

    1 channel is grey, 2 grey with transparency, 3 sRGB and 4 sRGB with transparency.
    """

    height: int
    width: int
    channels: int

    @property
    def mode(self) -> str:
        """Pillow's mode for this number of channels."""
        return ("L", "LA", "RGB", "RGBA")[self.channels - 1]


def format_size_error(kind: str, height: int, width: int) -> str | None:
    """Return an error message if an image is too large for a file format; None if it is not.

    `kind` is the format: "png", "jpeg" or "webp".
    """
    side = LONGEST_SIDE[kind]
    if max(height, width) > side:
        other = "ask for PNG" if kind != PNG and max(height, width) <= LONGEST_SIDE[PNG] else "send it in parts"
        return f"{width}×{height} pixels are more than the {side} a side that {kind.upper()} may have here; {other}"
    if kind == WEBP and height * width > WEBP_PIXELS:
        most = WEBP_PIXELS // 1_000_000
        return f"{width}×{height} pixels are more than the {most} megapixels that WebP may have here; ask for PNG"
    return None


# See docs/decisions.md#large-pictures-are-encoded-in-bands-by-our-own-encoders
def write(kind: str, bands: Iterator[Pixels], shape: Shape, quality: int, out: BinaryIO) -> None:
    """Write an image to the file `out` in the format `kind`: "png", "jpeg" or "webp".

    `bands` are successive lines of the image, uint8 (lines, width, channels). `quality` is 1 … 100;
    PNG ignores it.
    """
    {PNG: _png, JPEG: _jpeg, WEBP: _webp}[kind](bands, shape, quality, out)


def _blocks(bands: Iterator[Pixels], lines: int) -> Iterator[Pixels]:
    """Yield the lines of the bands in blocks of `lines` lines; the last block may be smaller."""
    held: list[Pixels] = []
    for band in bands:
        at = 0
        while at < len(band):
            taken = band[at : at + lines - sum(map(len, held))]
            held.append(taken)
            at += len(taken)
            if sum(map(len, held)) == lines:
                yield np.concatenate(held) if len(held) > 1 else held[0]
                held = []
    if held:
        yield np.concatenate(held)


# --- PNG ---


def _png(bands: Iterator[Pixels], shape: Shape, _quality: int, out: BinaryIO) -> None:
    """Write PNG (RFC 2083): lines with the Up filter in one zlib stream."""
    colour = (0, 4, 2, 6)[shape.channels - 1]
    out.write(b"\x89PNG\r\n\x1a\n")
    out.write(chunk(b"IHDR", struct.pack(">2I5B", shape.width, shape.height, 8, colour, 0, 0, 0)))
    if shape.channels > 2:
        out.write(chunk(b"sRGB", b"\x01"))  # relative colorimetric
    stream = zlib.compressobj(_LEVEL)
    above = np.zeros((1, shape.width * shape.channels), np.uint8)
    for block in _blocks(bands, _LINES):
        lines = np.ascontiguousarray(block).reshape(len(block), -1)
        filtered = np.empty((len(lines), 1 + lines.shape[1]), np.uint8)
        filtered[:, 0] = 2
        np.subtract(lines[:1], above, out=filtered[:1, 1:])
        np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
        above = lines[-1:].copy()
        _data(out, stream.compress(filtered.data))
    _data(out, stream.flush())
    out.write(chunk(b"IEND", b""))


def _data(out: BinaryIO, compressed: bytes) -> None:
    """Write compressed lines as an IDAT chunk of a PNG; write nothing if `compressed` is empty."""
    if compressed:
        out.write(chunk(b"IDAT", compressed))


# --- JPEG ---


def _jpeg(bands: Iterator[Pixels], shape: Shape, quality: int, out: BinaryIO) -> None:
    """Write JPEG (ITU-T T.81): each block of lines is one restart interval of the image.

    All blocks have the same tables, and a restart marker resets the predictors, as at the start of
    an image. So the pixels are the same as if the image were written at once.
    """
    full = quality >= _FULL_COLOUR or shape.channels == 1
    edge = 8 if full else _MCU
    across = -(-shape.width // edge)
    lines = max(edge, min(_LINES, _INTERVAL // across * edge))
    lines -= lines % edge
    for number, block in enumerate(_blocks(bands, lines)):
        head, scan = _scan(block, shape, quality, 0 if full else 2)
        if number == 0:
            interval = across * (lines // edge) if shape.height > lines else 0
            out.write(_set_height_and_restarts(head, shape.height, interval))
        else:
            out.write(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        out.write(scan)
    out.write(b"\xff\xd9")


def _scan(block: Pixels, shape: Shape, quality: int, subsampling: int) -> tuple[bytes, bytes]:
    """Encode a block of pixels as a JPEG with Pillow; return its headers and its scan data.

    `subsampling` is Pillow's argument: 0 is 4:4:4 and 2 is 4:2:0. The end marker (EOI) is cut off,
    so that further scan data can follow.
    """
    buffer = io.BytesIO()
    pixels = np.ascontiguousarray(block[:, :, 0] if shape.channels == 1 else block)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    data = buffer.getvalue()
    start = next(place for marker, place in _segments(data) if marker == 0xDA)
    start += 2 + int.from_bytes(data[start + 2 : start + 4])
    return data[:start], data[start:-2]


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, offset in bytes) of each segment in a JPEG's headers.

    The caller must stop at the marker of the scan (SOS), because image data follows.
    """
    at = 2
    while True:
        yield data[at + 1], at
        at += 2 + int.from_bytes(data[at + 2 : at + 4])


def _set_height_and_restarts(head: bytes, height: int, interval: int) -> bytes:
    """Set the image height and the restart interval in JPEG headers; return the new headers.

    `interval` is a number of MCUs; 0 means no restart intervals.
    """
    frame = next(place for marker, place in _segments(head) if marker == 0xC0)
    scan = next(place for marker, place in _segments(head) if marker == 0xDA)
    restarts = struct.pack(">3H", 0xFFDD, 4, interval) if interval else b""
    return head[: frame + 5] + struct.pack(">H", height) + head[frame + 7 : scan] + restarts + head[scan:]


# --- WebP ---


def _webp(bands: Iterator[Pixels], shape: Shape, quality: int, out: BinaryIO) -> None:
    """Write WebP; its encoder needs the complete image in memory."""
    whole = Image.new("RGBA" if shape.channels % 2 == 0 else "RGB", (shape.width, shape.height))
    at = 0
    for block in _blocks(bands, _LINES):
        pixels = np.ascontiguousarray(block[:, :, 0] if shape.channels == 1 else block)
        whole.paste(Image.fromarray(pixels, shape.mode).convert(whole.mode), (0, at))
        at += len(block)
    whole.save(out, "WEBP", quality=quality, method=2)
