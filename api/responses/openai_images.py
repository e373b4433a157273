"""Prepares images for the OpenAI-compatible routes.

Enlarges the model's images to the requested size, encodes them as files, and turns the transparent
pixels of an edited image into a mask.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import Self

import numpy as np
from PIL import Image

from api.errors import InvalidError
from api.schemas.openai import ImageFormat, ImageParameters
from core.catalog.cards import ImageShape
from core.imaging.decode import DecodedImage, open_picture
from core.imaging.encoders import MEDIA, PNG
from core.imaging.pictures import Pixels, UnusableImageError, png

MAX_SIDE = 4096  # largest side of `size`, and of an image to edit, in pixels
MAX_PIXELS = 64 << 20  # of all images of a response
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


@dataclass(frozen=True)
class ImageOutput:
    """How images are written: as files of a format and quality, enlarged by a whole factor."""

    format: ImageFormat = PNG  # type: ignore[assignment]
    quality: int = 100
    factor: int = 1

    @classmethod
    def of(cls, parameters: ImageParameters, image: ImageShape) -> Self:
        """Return the file format, quality and enlargement that a request asks for.

        `image` is the shape of the model's images. Raises InvalidError if `size` is not
        WIDTHxHEIGHT or "auto", or is too large.
        """
        quality = 100 if parameters.output_compression is None else parameters.output_compression
        return cls(parameters.output_format or "png", quality, nearest_factor(parameters.size, image))

    @property
    def media(self) -> str:
        """The media type of the files."""
        return MEDIA[self.format]

    def size(self, image: ImageShape) -> tuple[int, int]:
        """Return width and height of the enlarged images."""
        return image.width * self.factor, image.height * self.factor

    def encode(self, pixels: Pixels) -> bytes:
        """Return the file of an image, uint8 (C, H, W), enlarged without interpolation."""
        pixels = pixels.repeat(self.factor, 1).repeat(self.factor, 2)
        if self.format == PNG:
            return png(pixels)
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        file = io.BytesIO()
        picture.save(file, self.format, quality=max(1, self.quality))
        return file.getvalue()


def nearest_factor(size: str | None, image: ImageShape) -> int:
    """Return the whole factor f ≥ 1 that brings f·(width, height) nearest to `size`, WIDTHxHEIGHT.

    Width and height are those of the model's images; the distance is Euclidean. If `size` is None
    or "auto", returns 1. Raises InvalidError if `size` has another form, or a side is longer than
    `MAX_SIDE`.
    """
    if size is None or size == "auto":
        return 1
    match = _SIZE.fullmatch(size)
    width, height = map(int, match.groups()) if match else (0, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        detail = f"{size[:60]!r} is neither auto nor WIDTHxHEIGHT, such as 1024x1024, with sides of 1 to {MAX_SIDE}"
        raise InvalidError.in_field("size", detail)
    factor = (width * image.width + height * image.height) / (image.width**2 + image.height**2)
    return max(1, round(factor))


def check_pixels(n: int, output: ImageOutput, image: ImageShape) -> None:
    """Raise InvalidError if `n` images, enlarged as `output` says, have too many pixels together.

    `image` is the shape of the images before they are enlarged.
    """
    width, height = output.size(image)
    most = MAX_PIXELS // (width * height)
    if n > most:
        detail = f"{n} images of {width}×{height} pixels are too many for one response; ask for {most}, or smaller ones"
        raise InvalidError.in_field("n", detail)


def check_factor(output: ImageOutput, pixels: Pixels) -> None:
    """Raise InvalidError if `pixels`, uint8 (C, H, W), would have too many pixels when enlarged."""
    if pixels[0].size * output.factor**2 > MAX_PIXELS:
        most = math.isqrt(MAX_PIXELS // pixels[0].size)
        raise InvalidError.in_field("factor", f"{output.factor} is too large for this image; at most {most}")


def describe_images(work: str, parameters: ImageParameters, output: ImageOutput, image: ImageShape) -> str:
    """Return the text of `revised_prompt`: what was done, and how the images were enlarged.

    `work` is the sentence about what was done, without its full stop.
    """
    text = f"The prompt was not used, as the model has no text input. {work}."
    width, height = output.size(image)
    size = parameters.size or "auto"
    if size not in {"auto", f"{width}x{height}"}:
        text += f" The size {size} is not possible: the model's images have {image.width}×{image.height} pixels."
    if output.factor > 1:
        text += f" They were enlarged {output.factor} times to {width}×{height} without interpolation."
    return text


# --- edits ---


def prepare_edit(image: bytes, mask: bytes | None, shape: ImageShape) -> tuple[bytes, bytes]:
    """Return the image and the mask of an inpainting as image files of the model's size.

    Pixels that are fully transparent in `mask`, or in the image if `mask` is None, become white in
    the returned mask, all others black. Of a file that is f times as large as the model's images,
    only the middle pixel of each f × f block is used. Raises InvalidError if a file cannot be used,
    or if none or all of the pixels are transparent.
    """
    colours, factor = _open("image", image, shape)
    if factor > 1:
        image = _reduce(colours, factor)
    if mask is None:
        field, alpha = "image", colours.alpha
    else:
        mask_colours, factor = _open("mask", mask, shape)
        field, alpha = "mask", mask_colours.alpha
    hidden = None if alpha is None else alpha[factor // 2 :: factor, factor // 2 :: factor] == 0
    if hidden is None or not hidden.any():
        remedy = "make what is to be filled in transparent (alpha 0)" + (", or send a `mask`" if mask is None else "")
        raise InvalidError.in_field(field, f"no pixel is transparent; {remedy}")
    if hidden.all():
        raise InvalidError.in_field(field, "every pixel is transparent; leave opaque what is to be kept")
    return image, png(np.where(hidden, 255, 0).astype(np.uint8)[None])


def _open(field: str, data: bytes, shape: ImageShape) -> tuple[DecodedImage, int]:
    """Decode an image file; return its colours and its size as a multiple of the model's.

    `field` is the name of the file's field in errors, `shape` the shape of the model's images.
    Raises InvalidError if the file cannot be decoded, or if its width and height are not those of
    the model's images times one whole number.
    """
    _, height, width = shape
    try:
        file = open_picture(data)
        factor = max(1, file.size[0] // width)
        fits = file.size == (width * factor, height * factor) and max(file.size) <= MAX_SIDE
        colours = file.colours() if fits and not file.deep else None
    except UnusableImageError as error:
        raise InvalidError.in_field(field, str(error)) from error
    if not fits:
        detail = (
            f"it has {file.size[0]}×{file.size[1]} pixels; the model takes {width}×{height}, or a whole multiple of it"
        )
        raise InvalidError.in_field(field, f"{detail} up to {MAX_SIDE} a side")
    if colours is None:
        raise InvalidError.in_field(field, "it has more than 8 bits a channel; convert it to 8 bits")
    return colours, factor


def _reduce(colours: DecodedImage, factor: int) -> bytes:
    """Return a PNG made of the middle pixel of each block of `factor` × `factor` pixels."""
    picture = colours.image.convert("L" if colours.image.mode in {"1", "L"} else "RGB")
    if colours.alpha is not None:
        picture.putalpha(Image.fromarray(colours.alpha))
    centres = np.asarray(picture)[factor // 2 :: factor, factor // 2 :: factor]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(centres)).save(file, "PNG")
    return file.getvalue()
