"""Decode photographs of any size, divide them into tiles, and join the enlarged tiles.

All tiles of an image have the same size and overlap by a margin. Tiles at the edges of the image
are filled up with its mirror image. The enlarged tiles, without their margins, fit together without
seams. On an axis that is not divided, tiles have the length of the image and no margin.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from core.imaging.container import Pixels
from core.imaging.decode import PictureFile, open_picture

FORMATS = ("PNG", "JPEG", "WEBP")

_LINES = 256  # number of lines that are processed at once, to bound memory

# Distance in pixels to which visible colours are extended under transparent ones, for the model's
# context.
_SPREAD = 8


# --- files in ---


@dataclass(frozen=True)
class Photograph:
    """A decoded photograph: sRGB or grey, uint8 (H, W, C) with C = 3 or 1.

    `alpha` is its alpha channel, uint8 (H, W), None if there is none. `notes` lists the
    conversions, as messages.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """Number of colour channels: 3, or 1 for a grey image."""
        return int(self.pixels.shape[2])


def open_photograph(data: bytes) -> PictureFile:
    """Open a PNG, JPEG or WebP file and read its header only.

    Raises UnusableImageError for other formats and for damaged or animated files.
    """
    return open_picture(data, FORMATS)


def decode_photograph(file: PictureFile) -> Photograph:
    """Decode an image file: upright, in sRGB or grey with 8 bits, with a separate alpha channel.

    EXIF orientation and ICC profile are applied; RGB without a profile counts as sRGB. Palettes
    become RGB, black and white becomes grey. Other metadata is ignored. Raises UnusableImageError
    if the file is damaged.
    """
    colours = file.colours()
    image, alpha, notes = colours.image, colours.alpha, colours.notes
    if image.mode == "CMYK":
        notes = (*notes, "CMYK to sRGB without a profile")
    if image.mode not in {"L", "RGB"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.asarray(image, np.uint8)
    if alpha is not None and image.mode == "RGB" and not alpha.all():
        pixels = _spread(image, alpha)
    return Photograph(pixels.reshape(image.height, image.width, -1), alpha, notes)


def _spread(image: Image.Image, alpha: Pixels) -> Pixels:
    """Return colours, uint8 (H, W, 3), with visible ones extended into transparent areas.

    So upscaling does not mix the colour of invisible pixels into the edge of a visible area.
    """
    blur = ImageFilter.BoxBlur(_SPREAD)
    cover = Image.fromarray(alpha)
    weights = np.asarray(cover.filter(blur))
    sums = np.asarray(Image.composite(image, Image.new("RGB", image.size), cover).filter(blur))
    pixels = np.array(image)
    for y in range(0, len(pixels), _LINES):
        lines = slice(y, y + _LINES)
        hidden = (alpha[lines] == 0) & (weights[lines] > 4)
        around = sums[lines][hidden].astype(np.float32) * 255 / weights[lines][hidden][:, None]
        pixels[lines][hidden] = around.clip(0, 255).round().astype(np.uint8)
    return pixels


# --- tiles ---


# See docs/decisions.md#tiles-are-rows-of-the-request
@dataclass(frozen=True)
class Tiling:
    """The division of an image of `height` × `width` pixels into tiles.

    A tile has the size `tile` (height, width), which includes `margins` (vertical, horizontal) on
    both sides of each axis; all are in pixels. Tiles are numbered row by row. Without its margins,
    a tile has the size `core` (height, width), and the tile in row i and column j starts at the
    pixel (i · core height, j · core width).
    """

    height: int
    width: int
    tile: tuple[int, int]
    margins: tuple[int, int]

    # See docs/decisions.md#tiles-fit-the-picture
    @classmethod
    def fit(cls, height: int, width: int, tile_pixels: int, margin: int) -> "Tiling":
        """Return the division of an image with the fewest pixels in all tiles together.

        A tile has at most `tile_pixels` pixels. Its margins are `margin`, or 0 on an axis that is
        not divided. Of divisions with equally many pixels, the one with the fewest tiles is chosen.
        """
        best, best_cost = None, (0, 0)
        for lines in range(1, height + 1):
            tile_height = _tile_length(height, lines, margin)
            columns = _least_columns(width, tile_pixels // tile_height, margin)
            if columns:
                tile_width = _tile_length(width, columns, margin)
                cost = (lines * columns * tile_height * tile_width, lines * columns)
                if best is None or cost < best_cost:
                    margins = (margin if lines > 1 else 0, margin if columns > 1 else 0)
                    best, best_cost = cls(height, width, (tile_height, tile_width), margins), cost
            if lines > 1 and -(-height // lines) <= margin:
                break  # tiles of more margin than core cost more than larger ones
        if best is None:
            raise ValueError(f"tiles of {tile_pixels} pixels are too small for a margin of {margin} pixels")
        return best

    @property
    def core(self) -> tuple[int, int]:
        """Height and width of a tile without its margins."""
        return self.tile[0] - 2 * self.margins[0], self.tile[1] - 2 * self.margins[1]

    @property
    def lines(self) -> int:
        """Number of rows of tiles in the image."""
        return math.ceil(self.height / self.core[0])

    @property
    def columns(self) -> int:
        """Number of tiles in a row of tiles."""
        return math.ceil(self.width / self.core[1])

    @property
    def count(self) -> int:
        """Number of tiles in the image."""
        return self.lines * self.columns

    def cut(self, read: Callable[[int, int], Pixels], first: int, count: int) -> Pixels:
        """Return the tiles with the numbers `first` … `first + count − 1`, with their margins.

        The result is uint8 (count, 3, tile height, tile width). `read(begin, end)` returns the
        image's lines of pixels `begin` … `end` − 1, uint8 (end − begin, W, C). It is called once
        per row of tiles. A grey image gets three equal channels.
        """
        tiles = np.empty((count, 3, *self.tile), np.uint8)
        at = 0
        while at < count:
            line, column = divmod(first + at, self.columns)
            in_line = min(self.columns - column, count - at)
            above = _mirrored(line * self.core[0] - self.margins[0], self.tile[0], self.height)
            begin = int(above.min())
            band = read(begin, int(above.max()) + 1)[above - begin]
            for j in range(column, column + in_line):
                across = _mirrored(j * self.core[1] - self.margins[1], self.tile[1], self.width)
                tiles[at] = band[:, across].transpose(2, 0, 1)  # one grey channel becomes three
                at += 1
        return tiles

    def bands(self, tiles: Iterator[Pixels], scale: int) -> Iterator[Pixels]:
        """Join enlarged tiles without margins; yield bands (lines, W·scale, 3), top to bottom.

        `tiles` yields each tile without its margins, (3, core height · scale, core width · scale),
        in the order of the tiles' numbers. There is one band per row of tiles.
        """
        high, wide = self.core[0] * scale, self.core[1] * scale
        for line in range(self.lines):
            band = np.empty((high, self.columns * wide, 3), np.uint8)
            for j in range(self.columns):
                band[:, j * wide : (j + 1) * wide] = next(tiles).transpose(1, 2, 0)
            yield band[: (self.height - line * self.core[0]) * scale, : self.width * scale]


def _tile_length(size: int, parts: int, margin: int) -> int:
    """Return the length of a tile, with its margins, on an axis of `size` pixels in `parts` parts.

    If the axis is not divided (`parts` is 1), the tile has the length `size` and no margins.
    Otherwise the tile's length without its margins is rounded up to an even number, so that a
    network that first groups pixels 2×2 groups them alike in every tile.
    """
    return size if parts == 1 else 2 * -(-size // (2 * parts)) + 2 * margin


def _least_columns(width: int, longest: int, margin: int) -> int:
    """Return the fewest columns of tiles for a width in pixels; 0 if no number of columns will do.

    A tile, with `margin` pixels on both sides, may be at most `longest` pixels wide.
    """
    if width <= longest:
        return 1
    core = (longest - 2 * margin) // 2 * 2
    return -(-width // core) if core > 0 else 0


def _mirrored(begin: int, count: int, size: int) -> np.ndarray[Any, Any]:
    """Return the indices in a line of `size` pixels of the `count` pixels from position `begin` on.

    Beyond both ends the line is continued by its mirror image, so `begin` may be negative, and the
    last position may be beyond `size`.
    """
    around = np.arange(begin, begin + count) % (2 * size)
    return np.minimum(around, 2 * size - 1 - around)


# --- a picture in the blob store ---

Get = Callable[[int, int], bytes]  # returns the bytes `begin` … `end` − 1 of a blob


@dataclass(frozen=True)
class Layout:
    """How an image is stored in a blob, and its division into tiles.

    The blob has the lines of pixels, then the alpha channel if `alpha` is true. `channels` is 1 or
    3.
    """

    tiling: Tiling
    channels: int
    alpha: bool

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Layout":
        """Return the layout in the JSON object `fields`, a job's `request`.

        Its other fields are ignored.
        """
        picture, tiles = fields["image"], fields["tiles"]
        margins = tiles.get("margins", [tiles["margin"]] * 2)  # jobs of earlier releases have one for both axes
        tiling = Tiling(picture["height"], picture["width"], (tiles["height"], tiles["width"]), tuple(margins))
        return cls(tiling, picture["channels"], picture["alpha"])

    @property
    def json(self) -> dict[str, Any]:
        """The layout as a JSON object, for the field `request` of a job."""
        tiling = self.tiling
        (height, width), margins = tiling.tile, tiling.margins
        return {
            "image": {"width": tiling.width, "height": tiling.height, "channels": self.channels, "alpha": self.alpha},
            "tiles": {
                "width": width,
                "height": height,
                "margin": max(margins),
                "margins": list(margins),
                "count": tiling.count,
            },
        }

    @property
    def _line_bytes(self) -> int:
        return self.tiling.width * self.channels

    def tiles(self, get: Get, first: int, count: int) -> Pixels:
        """Return the tiles with the numbers `first` … `first + count − 1`, with their margins.

        The result is uint8 (count, 3, tile height, tile width). `get(begin, end)` returns the bytes
        `begin` … `end` − 1 of the image's blob; only the lines that the tiles need are read.
        """

        def read(begin: int, end: int) -> Pixels:
            data = get(begin * self._line_bytes, end * self._line_bytes)
            return np.frombuffer(data, np.uint8).reshape(end - begin, self.tiling.width, self.channels)

        return self.tiling.cut(read, first, count)

    def transparency(self, get: Get) -> Pixels | None:
        """Return the alpha channel of the image, uint8 (H, W); None if it has none.

        `get(begin, end)` returns the bytes `begin` … `end` − 1 of the image's blob.
        """
        if not self.alpha:
            return None
        height, width = self.tiling.height, self.tiling.width
        begin = height * self._line_bytes
        return np.frombuffer(get(begin, begin + height * width), np.uint8).reshape(height, width)


def photograph_bytes(photograph: Photograph) -> bytes:
    """Return the bytes of an image's blob: its lines of pixels, then its alpha channel, if any."""
    alpha = b"" if photograph.alpha is None else photograph.alpha.tobytes()
    return photograph.pixels.tobytes() + alpha


# --- the response ---

_CONTEXT = 3  # pixels beyond a band that bicubic interpolation may read


def restore_channels(
    bands: Iterator[Pixels], channels: int, alpha: Pixels | None, scale: int, *, opaque: bool
) -> Iterator[Pixels]:
    """Convert the bands of an enlarged image, (lines, W, 3), to the channels of the original.

    With `channels` 1 the bands become grey. The alpha channel of the original, `alpha`, if there is
    one, is enlarged by `scale` with bicubic interpolation and added as last channel. With `opaque`,
    for formats without transparency, the image is composed over white instead.
    """
    at = 0
    for band in bands:
        pixels = band if channels == 3 else _grey(band)
        if alpha is not None:
            share = _enlarged(alpha, at, at + len(band), scale)[:, :, None]
            pixels = _over_white(pixels, share) if opaque else np.concatenate([pixels, share], axis=2)
        at += len(band)
        yield pixels


def _enlarged(alpha: Pixels, begin: int, end: int, scale: int) -> Pixels:
    """Return lines `begin` … `end` − 1 of the alpha channel enlarged by `scale`."""
    above = max(0, begin // scale - _CONTEXT)
    part = Image.fromarray(alpha[above : -(-end // scale) + _CONTEXT])
    # across first, then down: which of them Pillow would do first depends on the band's height
    wide = part.resize((part.width * scale, part.height), Image.Resampling.BICUBIC)
    box = (0, begin / scale - above, wide.width, end / scale - above)
    return np.asarray(wide.resize((wide.width, end - begin), Image.Resampling.BICUBIC, box))


def _grey(band: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(band)).convert("L"))[:, :, None]


def _over_white(pixels: Pixels, cover: Pixels) -> Pixels:
    share = cover.astype(np.uint32)
    return ((pixels * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)
