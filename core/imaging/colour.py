"""Transparency and colour of decoded pictures: alpha apart, ICC profiles to sRGB."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from core.imaging.container import Container, Pixels

# See docs/decisions.md#upscaled-pictures-are-returned-in-srgb
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_CACHED_PROFILE_BYTES = 64 << 10
_SCALES = {1: 255, 2: 85, 4: 17, 8: 1}
"""From a level of so many bits to one of 8."""


def key_alpha(image: Image.Image, container: Container) -> Pixels:
    """Return the transparency (H, W) of a loaded PNG that has a transparent level or colour: 0
    there, 255 elsewhere.

    The levels are compared in the file's own depth, so that of 16 bits all count.
    """
    key, depth = container.key, container.depth
    assert key is not None  # noqa: S101 - called for those that have one
    if len(key) == 1:
        if depth == 16:
            matches = np.asarray(image) == key[0]
        else:
            matches = np.asarray(image.convert("L")) == key[0] * _SCALES[depth]
    elif depth == 16:
        matches = _equal(image, [level >> 8 for level in key]) & _equal(
            _low_bytes(container), [level & 255 for level in key]
        )
    else:
        matches = _equal(image, list(key))
    return np.where(matches, np.uint8(0), np.uint8(255))


def _equal(image: Image.Image, colour: list[int]) -> np.ndarray:
    array = np.asarray(image)
    matches: np.ndarray = array[:, :, 0] == colour[0]
    for channel in (1, 2):
        matches &= array[:, :, channel] == colour[channel]
    return matches


def _low_bytes(container: Container) -> Image.Image:
    """Return the lower bytes of a PNG of 16 bits a channel; Pillow gives the upper ones."""
    image = Image.open(io.BytesIO(container.data), formats=(container.format,))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def split_alpha(image: Image.Image, *, grey: bool) -> tuple[Image.Image, Pixels | None]:
    """Return a loaded picture's colours, and its transparency (H, W) where it has one.

    With transparency the colours are L where `grey`, else RGB; without, they are the picture, of
    whatever mode.
    """
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((levels / 257.0).round().clip(0, 255).astype(np.uint8))
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        whole = image.convert("RGBA")
        return whole.getchannel("R") if grey else whole.convert("RGB"), np.asarray(whole.getchannel("A"))
    return image, None


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Return a picture in L, RGB or CMYK as sRGB (L where it is grey), and what was done.

    Relative colorimetric with black point compensation, as editors do. Nothing is done for a
    profile of sRGB itself.
    """
    wanted = "L" if image.mode == "L" else "RGB"
    try:
        name, transform = _transform(profile, image.mode)
        if transform is None:
            return image.convert(wanted), None
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert(wanted), "an ICC profile that does not fit was left out"
    assert converted is not None  # noqa: S101 - None only where it works in place
    return converted.convert(wanted), f"{name} to sRGB"


def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return a profile's name and its transformation to sRGB; None for sRGB's own. Small ones are
    kept.
    """
    return (_built if len(profile) > _CACHED_PROFILE_BYTES else _cached)(profile, mode)


def _built(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = ImageCms.getProfileDescription(source).strip()[:60] or "unnamed"
    if "srgb" in name.lower() and "linear" not in name.lower():
        return name, None
    transform = ImageCms.buildTransform(
        source,
        _SRGB,
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return "".join(one if " " <= one <= "~" else "?" for one in name), transform


_cached = lru_cache(maxsize=16)(_built)
