"""Check and decode image files of requests and datasets."""

import io
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from core.imaging import bmp, gif, jpeg, png, tiff, webp
from core.imaging.colour import key_alpha, split_alpha, to_srgb
from core.imaging.container import Container, Pixels, UnusableImageError

Image.MAX_IMAGE_PIXELS = None  # callers compare a file's size with their own limits before a pixel is decoded


class _Format(NamedTuple):
    """How files of a format begin, the reader of their container, and Pillow's decoder."""

    magic: bytes | tuple[bytes, ...]
    read: Callable[[bytes], Container]
    decoder: Callable[[io.BytesIO], ImageFile.ImageFile]


_FORMATS = {
    "PNG": _Format(png.MAGIC, png.read_png, PngImagePlugin.PngImageFile),
    "JPEG": _Format(jpeg.MAGIC, jpeg.read_jpeg, JpegImagePlugin.JpegImageFile),
    "WEBP": _Format(webp.MAGIC, webp.read_webp, WebPImagePlugin.WebPImageFile),
    "BMP": _Format(bmp.MAGIC, bmp.read_bmp, BmpImagePlugin.BmpImageFile),
    "GIF": _Format(gif.MAGIC, gif.read_gif, GifImagePlugin.GifImageFile),
    "TIFF": _Format(tiff.MAGIC, tiff.read_tiff, TiffImagePlugin.TiffImageFile),
}
FORMATS = tuple(_FORMATS)
# EXIF orientation → the transposition that makes the image upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PROBES = (b"\xaa" * 64, b"\x55" * 64)
DAMAGED = "the picture is truncated, damaged or of a kind that cannot be converted; save it anew as PNG"


class Colours(NamedTuple):
    """A decoded image: colours without transparency, in any of Pillow's modes.

    `alpha` is the transparency (H, W), None if there is none. `mode` is the mode of the file.
    `notes` lists the conversions, as messages.
    """

    image: Image.Image
    alpha: Pixels | None
    mode: str
    notes: tuple[str, ...]


class PictureFile:
    """An image file whose container was checked; its pixels are not decoded yet."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self._opened: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""
        width, height = self._container.width, self._container.height
        return (height, width) if self._container.orientation > 4 else (width, height)

    @property
    def width(self) -> int:
        """Width in pixels, upright."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height in pixels, upright."""
        return self.size[1]

    @property
    def mode(self) -> str:
        """Pillow's mode of the stored pixels, for example `L` or `RGB`.

        Raises UnusableImageError if Pillow cannot open the file.
        """
        return self._image().mode

    @property
    def deep(self) -> bool:
        """Whether a channel has more than 8 bits. For colour images Pillow keeps only the
        upper 8.
        """
        if self._container.depth:
            return self._container.depth > 8
        image = self._image()
        return image.mode.startswith(("I", "F")) or any(";16" in layout for layout in _layouts(image))

    def _image(self) -> Image.Image:
        """Open the file with Pillow, once, and return the image.

        Raises UnusableImageError if Pillow cannot open it.
        """
        if self._opened is not None:
            return self._opened
        container = self._container
        data = container.data + jpeg.END if container.unfinished else container.data
        try:
            image = _FORMATS[container.format].decoder(io.BytesIO(data))
        except Exception as error:  # Pillow's readers raise anything on a damaged file
            raise UnusableImageError(DAMAGED) from error
        if image.size != (container.width, container.height):
            raise UnusableImageError(DAMAGED)
        self._opened = image
        return image

    def colours(self) -> Colours:
        """Decode the image: upright, in sRGB if it has an ICC profile, with separate transparency.

        Raises UnusableImageError if it is damaged.
        """
        try:
            return self._colours()
        except UnusableImageError:
            raise
        except Exception as error:  # Pillow's decoders raise anything on a damaged file
            raise UnusableImageError(DAMAGED) from error

    def _colours(self) -> Colours:
        container, image = self._container, self._image()
        notes = ["16 bits a channel to 8"] if self.deep else []
        mode = image.mode
        grey = container.grey or mode in {"1", "L", "LA"}  # of 16-bit grey with transparency Pillow makes colours
        image.load()
        if container.unfinished:
            _check_finished(container, image)
            notes.append("the missing end marker of the JPEG was added")
        if container.key is None:
            image, alpha = split_alpha(image, grey=grey)
        else:
            alpha = key_alpha(image, container)
            image, _ = split_alpha(image, grey=grey)
            image = image.convert("L") if grey else image
        turn = _TURNS.get(container.orientation)
        if turn is not None:
            image = image.transpose(turn)
            alpha = None if alpha is None else np.asarray(Image.fromarray(alpha).transpose(turn))
            notes.append("turned upright")
        if container.profile and image.mode != "LAB":
            if image.mode not in {"L", "RGB", "CMYK"}:
                image = image.convert("L" if image.mode == "1" else "RGB")
            image, note = to_srgb(image, container.profile)
            notes += [note] if note else []
        return Colours(image, alpha, mode, (*container.notes, *notes))


def open_picture(data: bytes, formats: Collection[str] = FORMATS) -> PictureFile:
    """Check an image file without decoding a pixel.

    Raises UnusableImageError for a format that is not in `formats`, several frames, damage, or more
    chunks, segments or tags than real files have.
    """
    welcome = f"send one of {', '.join(formats)}"
    if not data:
        raise UnusableImageError(f"the file is empty, so it is not a picture; {welcome}")
    for name, format_ in _FORMATS.items():
        if name in formats and data.startswith(format_.magic):
            try:
                return PictureFile(format_.read(data))
            except UnusableImageError:
                raise
            except Exception as error:  # places and sizes that a damaged file gives lead anywhere
                raise UnusableImageError(f"not a picture that can be read; {welcome}") from error
    raise UnusableImageError(f"not a picture that can be read; {welcome}")


def _layouts(image: Image.Image) -> list[str]:
    """Return how Pillow describes the pixel layout of an opened TIFF (raw modes)."""
    tiles = getattr(image, "tile", ())  # (decoder, box, offset, raw mode and more)
    return [str(tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), "")) for tile in tiles]


def _check_finished(container: Container, image: Image.Image) -> None:
    """Raise UnusableImageError for a JPEG that lacks pixels besides its end marker.

    libjpeg replaces missing data by zeros. If other data at that place changes the pixels, some
    were missing.
    """
    pixels = np.asarray(image)
    for probe in _PROBES:
        data = container.data.rstrip(b"\xff") + probe + jpeg.END
        other = _FORMATS[container.format].decoder(io.BytesIO(data))
        if not np.array_equal(np.asarray(other), pixels):
            raise UnusableImageError(
                "the JPEG is truncated: its end marker (EOI) and pixels are missing; send it whole"
            )
