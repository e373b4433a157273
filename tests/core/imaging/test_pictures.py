"""Images are encoded and decoded, without a service."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import FORMATS, Pixels, UnusableImageError, decode, grid, png


def _noise(channels: int = 1) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (channels, 12, 10), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_gives_back_its_pixels(channels: int) -> None:
    """Encoding and decoding is lossless, without conversions."""
    pixels, conversion = decode(png(_noise(channels)), channels, 12, 10)
    assert (pixels == _noise(channels)).all()
    assert pixels.dtype == np.uint8
    assert conversion is None


def test_a_grid_is_near_square_and_row_major() -> None:
    """Five images make two rows of three; the number of columns can be given."""
    batch = np.stack([np.full((3, 2, 2), value, np.uint8) for value in (10, 20, 30, 40, 50)])
    sheet = np.asarray(Image.open(io.BytesIO(grid(batch))))
    assert sheet.shape == (4, 6, 3)
    assert sheet[::2, ::2, 0].tolist() == [[10, 20, 30], [40, 50, 0]]
    assert np.asarray(Image.open(io.BytesIO(grid(batch, 5)))).shape == (2, 10, 3)


def test_grey_becomes_colour_where_the_model_is_coloured() -> None:
    """For a colour model each channel gets the grey value, and the conversion is reported."""
    pixels, conversion = decode(png(_noise()), 3, 12, 10)
    assert (pixels == _noise()).all()
    assert conversion == "L to RGB"


def test_transparency_is_laid_over_black() -> None:
    """Transparent pixels are composited over black: half-transparent white becomes grey."""
    buffer = io.BytesIO()
    Image.new("RGBA", (10, 12), (255, 255, 255, 128)).save(buffer, "PNG")
    pixels, conversion = decode(buffer.getvalue(), 1, 12, 10)
    assert (pixels == 128).all()
    assert conversion == "RGBA to L, transparency over black"


def test_a_small_file_with_much_behind_its_header_is_no_danger() -> None:
    """A file that decompresses to 100 MB gives the stated pixels or is rejected, in little
    memory.
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 12, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(100 << 20), 1))
    pixels, _ = decode(b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b""), 1, 12, 10)
    assert (pixels == 0).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_file_is_pixels_or_a_refusal(kind: str) -> None:
    """300 damaged files raise no other error than UnusableImageError."""
    buffer = io.BytesIO()
    Image.fromarray(_noise(3).transpose(1, 2, 0)).save(buffer, kind)
    whole, chance = buffer.getvalue(), random.Random(kind)
    refusals = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        kept = bytes(data[: chance.randint(1, len(data))] if chance.random() < 0.3 else data)
        try:
            pixels, _ = decode(kept, 3, 12, 10)
        except UnusableImageError as error:
            refusals.append(str(error))
        else:
            assert pixels.shape == (3, 12, 10)
    assert 0 < max(map(len, refusals)) < 200
