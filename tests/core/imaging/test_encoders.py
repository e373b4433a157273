"""Large images are encoded from bands of lines."""

import io
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from core.imaging.encoders import FORMATS, JPEG, LONGEST_SIDE, PNG, WEBP, Shape, format_size_error, write

SIZES = [(1, 1), (1, 700), (200, 3), (64, 64), (65, 33), (301, 203)]


def picture(height: int, width: int, channels: int) -> np.ndarray:
    """Return a smooth image."""
    coarse = np.random.default_rng(channels).integers(0, 256, (9, 7, channels), np.uint8)
    size = (width, height)
    layers = [Image.fromarray(coarse[:, :, one]).resize(size, Image.Resampling.BICUBIC) for one in range(channels)]
    return np.stack([np.asarray(layer) for layer in layers], 2)


def written(kind: str, pixels: np.ndarray, lines: int, quality: int = 80) -> bytes:
    """Return the encoded file, from bands of `lines` lines."""
    out = io.BytesIO()
    bands: Iterator[np.ndarray] = (pixels[at : at + lines] for at in range(0, len(pixels), lines))
    write(kind, bands, Shape(*pixels.shape), quality, out)
    return out.getvalue()


def plain(pixels: np.ndarray) -> np.ndarray:
    """Return the pixels without the axis of a single channel, as Pillow has them."""
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("lines", [1, 24, 1000])
def test_png_keeps_every_pixel(size: tuple[int, int], channels: int, lines: int) -> None:
    """PNG is lossless for grey and colour, with and without transparency, and marked as sRGB."""
    pixels = picture(*size, channels)
    image = Image.open(io.BytesIO(written(PNG, pixels, lines)))
    assert image.mode == Shape(*pixels.shape).mode
    assert (np.asarray(image) == plain(pixels)).all()
    assert ("srgb" in image.info) == (channels > 2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 80, 95])
def test_jpeg_in_pieces_has_the_pixels_of_one_written_whole(size: tuple[int, int], channels: int, quality: int) -> None:
    """A JPEG written in bands has the pixels of one that Pillow writes whole."""
    pixels = picture(*size, channels)
    whole = io.BytesIO()
    colours = 0 if quality >= 90 or channels == 1 else 2
    Image.fromarray(plain(pixels)).save(whole, "JPEG", quality=quality, subsampling=colours)
    for lines in (17, 1000):
        made = Image.open(io.BytesIO(written(JPEG, pixels, lines, quality)))
        assert (made.mode, made.size) == (Shape(*pixels.shape).mode, (size[1], size[0]))
        assert (np.asarray(made) == np.asarray(Image.open(whole))).all()


def test_a_wide_jpeg_has_restarts_it_can_count() -> None:
    """A restart interval has at most 65535 units, also at the greatest width."""
    pixels = picture(70, LONGEST_SIDE[JPEG], 3)
    made = Image.open(io.BytesIO(written(JPEG, pixels, 70, 95)))
    assert np.abs(np.asarray(made).astype(int) - pixels).mean() < 2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_webp_keeps_the_picture(channels: int) -> None:
    """WebP is close to the original; grey stays grey."""
    pixels = picture(90, 70, channels)
    image = Image.open(io.BytesIO(written(WEBP, pixels, 24, 100)))
    assert image.mode == ("RGBA" if channels % 2 == 0 else "RGB")
    made = np.asarray(image.convert(Shape(*pixels.shape).mode))
    assert np.abs(made.astype(int) - plain(pixels)).mean() < 3


@pytest.mark.parametrize("kind", [PNG, JPEG])
def test_memory_follows_the_width(kind: str) -> None:
    """Encoding an image forty times as high takes no more memory."""
    band = picture(96, 1000, 3)
    peaks = []
    for count in (2, 80):
        tracemalloc.start()
        with open("/dev/null", "wb") as out:  # noqa: PTH123
            write(kind, (band for _ in range(count)), Shape(96 * count, 1000, 3), 90, out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def test_each_format_has_its_limits() -> None:
    """An image that is too large for a format is rejected with one that would work."""
    for kind in FORMATS:
        assert format_size_error(kind, 1000, 1000) is None
        side = LONGEST_SIDE[kind]
        assert format_size_error(kind, 1, side) is None
        assert str(side) in str(format_size_error(kind, 1, side + 1))
    assert "PNG" in str(format_size_error(JPEG, 65_501, 1))
    assert "PNG" in str(format_size_error(WEBP, 1, 16_384))
    assert "parts" in str(format_size_error(PNG, 100_001, 1))
    assert "64 megapixels" in str(format_size_error(WEBP, 8_001, 8_001))
