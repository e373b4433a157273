"""Check and decode image files of requests and datasets."""

import io
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin, WebPImagePlugin  # noqa: F401 - without these two, Image.open imports all plugins

from core.imaging import bmp, gif, jpeg, png, tiff, webp
from core.imaging.colour import key_alpha, split_alpha, to_srgb
from core.imaging.container import Container, Pixels, UnusableImageError

# Callers compare a file's size with limits of their own before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


# How the files of a format begin, and the reader of their container.
_FORMATS: dict[str, tuple[bytes | tuple[bytes, ...], Callable[[bytes], Container]]] = {
    "PNG": (png.MAGIC, png.read_png),
    "JPEG": (jpeg.MAGIC, jpeg.read_jpeg),
    "WEBP": (webp.MAGIC, webp.read_webp),
    "BMP": (bmp.MAGIC, bmp.read_bmp),
    "GIF": (gif.MAGIC, gif.read_gif),
    "TIFF": (tiff.MAGIC, tiff.read_tiff),
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


@contextmanager
def reject_damage(message: str = DAMAGED) -> Iterator[None]:
    """Convert any error that the block raises to UnusableImageError with this message.

    Offsets and sizes in a damaged file lead anywhere, and Pillow raises errors of many classes.
    """
    try:
        yield
    except UnusableImageError:
        raise
    except Exception as error:
        raise UnusableImageError(message) from error


class DecodedImage(NamedTuple):
    """A decoded image: `image` has the colours without transparency, in any of Pillow's modes.

    `alpha` is the alpha channel, uint8 (H, W); None without transparency. `mode` is Pillow's mode
    of the file. `notes` lists the conversions, as messages for the client.
    """

    image: Image.Image
    alpha: Pixels | None
    mode: str
    notes: tuple[str, ...]


class PictureFile:
    """An image file whose container was checked; its pixels are not decoded yet."""

    def __init__(self, container: Container) -> None:
        self._container = container

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the upright image."""
        width, height = self._container.width, self._container.height
        return (height, width) if self._container.orientation > 4 else (width, height)

    @property
    def mode(self) -> str:
        """Pillow's mode of the stored pixels, for example `L` or `RGB`.

        Raises UnusableImageError if Pillow cannot open the file.
        """
        return self._image.mode

    @property
    def deep(self) -> bool:
        """Whether any channel of the stored image has more than 8 bits.

        Pillow decodes only the upper 8 bits of the channels of a colour image.
        """
        if self._container.depth:
            return self._container.depth > 8
        image = self._image
        return image.mode.startswith(("I", "F")) or any(";16" in layout for layout in _layouts(image))

    @cached_property
    def _image(self) -> Image.Image:
        """The file, opened with Pillow.

        Raises UnusableImageError if Pillow cannot open it.
        """
        container = self._container
        with reject_damage():
            data = container.data + jpeg.END if container.unfinished else container.data
            image = Image.open(io.BytesIO(data), formats=(container.format,))
        if image.size != (container.width, container.height):
            raise UnusableImageError(DAMAGED)
        return image

    @reject_damage()
    def colours(self) -> DecodedImage:
        """Decode the image: turn it upright, convert it to sRGB, and separate its alpha channel.

        It is converted only if it has an ICC profile. Raises UnusableImageError if the file is
        damaged.
        """
        container, image = self._container, self._image
        notes = ["16 bits a channel to 8"] if self.deep else []
        mode = image.mode
        # the mode alone is not enough: Pillow reads 16-bit grey with transparency as RGBA
        grey = container.grey or mode in {"1", "L", "LA"}
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
        return DecodedImage(image, alpha, mode, (*container.notes, *notes))


def open_picture(data: bytes, formats: Collection[str] = FORMATS) -> PictureFile:
    """Check an image file without decoding a pixel.

    Raises UnusableImageError for a format that is not in `formats`, several frames, damage, or more
    chunks, segments or tags than real files have.
    """
    welcome = f"send one of {', '.join(formats)}"
    if not data:
        raise UnusableImageError(f"the file is empty, so it is not a picture; {welcome}")
    for name, (magic, read) in _FORMATS.items():
        if name in formats and data.startswith(magic):
            with reject_damage(f"not a picture that can be read; {welcome}"):
                return PictureFile(read(data))
    raise UnusableImageError(f"not a picture that can be read; {welcome}")


def _layouts(image: Image.Image) -> list[str]:
    """Return the raw mode, Pillow's name of a pixel layout, of each strip or tile of a TIFF."""
    tiles = getattr(image, "tile", ())  # (decoder, box, offset, raw mode and more)
    return [str(tile[3] if isinstance(tile[3], str) else next(iter(tile[3] or ()), "")) for tile in tiles]


def _check_finished(container: Container, image: Image.Image) -> None:
    """Raise UnusableImageError if a JPEG without an end marker (EOI) also lacks pixels.

    `image` is the JPEG, decoded. libjpeg decodes missing data as zeros. So the file is decoded
    again with other data appended: if that changes the pixels, some were missing.
    """
    pixels = np.asarray(image)
    for probe in _PROBES:
        data = container.data.rstrip(b"\xff") + probe + jpeg.END
        other = Image.open(io.BytesIO(data), formats=("JPEG",))
        if not np.array_equal(np.asarray(other), pixels):
            detail = "the JPEG is truncated: its end marker (EOI) and pixels are missing; send it whole"
            raise UnusableImageError(detail)
