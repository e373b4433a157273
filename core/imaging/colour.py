"""Separate the transparency of decoded images, and convert colours by ICC profile to sRGB."""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from core.imaging.container import Container, Pixels

# See docs/decisions.md#upscaled-pictures-are-returned-in-srgb
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_CACHED_PROFILE_BYTES = 64 << 10
_SCALES = {1: 255, 2: 85, 4: 17, 8: 1}  # bits per channel → factor to 8 bits


def key_alpha(image: Image.Image, container: Container) -> Pixels:
    """Return the alpha channel, uint8 (H, W), of a PNG with one transparent colour.

    `image` is the decoded PNG, and `container.key` the transparent colour. Alpha is 0 where a pixel
    has this colour, and 255 elsewhere. Levels are compared at the file's own bit depth, up to 16
    bits.
    """
    key, depth = container.key, container.depth
    assert key is not None  # noqa: S101 - called for those that have one
    if len(key) == 1:
        if depth == 16:
            matches = np.asarray(image) == key[0]
        else:
            matches = np.asarray(image.convert("L")) == key[0] * _SCALES[depth]
    elif depth == 16:
        matches = _equal(image, [level >> 8 for level in key])
        matches &= _equal(_low_bytes(container), [level & 255 for level in key])
    else:
        matches = _equal(image, list(key))
    return np.where(matches, np.uint8(0), np.uint8(255))


def _equal(image: Image.Image, colour: list[int]) -> np.ndarray:
    """Return which pixels of an image have the colour `colour`, bool (H, W)."""
    array = np.asarray(image)
    matches: np.ndarray = array[:, :, 0] == colour[0]
    for channel in (1, 2):
        matches &= array[:, :, channel] == colour[channel]
    return matches


def _low_bytes(container: Container) -> Image.Image:
    """Decode the lower byte of each channel of an RGB PNG with 16 bits a channel.

    Pillow's usual decoding returns the upper bytes.
    """
    image = Image.open(io.BytesIO(container.data), formats=(container.format,))
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def split_alpha(image: Image.Image, *, grey: bool) -> tuple[Image.Image, Pixels | None]:
    """Return an image's colours and its alpha channel, uint8 (H, W); None if it has none.

    With an alpha channel, the colours have mode L if `grey`, else RGB. Otherwise the mode does not
    change, except that 16-bit and float grey become 8-bit grey.
    """
    if image.mode.startswith(("I", "F")):
        levels = np.asarray(image).astype(np.float64)
        image = Image.fromarray((levels / 257.0).round().clip(0, 255).astype(np.uint8))
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        whole = image.convert("RGBA")
        return whole.getchannel("R") if grey else whole.convert("RGB"), np.asarray(whole.getchannel("A"))
    return image, None


def to_srgb(image: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """Convert an image of mode L, RGB or CMYK from its ICC profile to sRGB.

    Grey images keep mode L. Returns the image and a message on the conversion, None if the profile
    is sRGB. A profile that cannot be applied is ignored, and the message says so. The rendering
    intent is relative colorimetric with black point compensation, as in image editors.
    """
    wanted = "L" if image.mode == "L" else "RGB"
    try:
        make = _make_transform if len(profile) > _CACHED_PROFILE_BYTES else _cached_transform
        name, transform = make(profile, image.mode)
        if transform is None:
            return image.convert(wanted), None
        converted = ImageCms.applyTransform(image, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert(wanted), "an ICC profile that does not fit was left out"
    assert converted is not None  # noqa: S101 - None only where it works in place
    return converted.convert(wanted), f"{name} to sRGB"


def _make_transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the name of an ICC profile, and its transform from images of `mode` to sRGB.

    The transform is None if the profile is sRGB.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    name = ImageCms.getProfileDescription(source).strip()[:60] or "unnamed"
    if "srgb" in name.lower() and "linear" not in name.lower():
        return name, None
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB", intent, flags)
    return "".join(one if " " <= one <= "~" else "?" for one in name), transform


_cached_transform = lru_cache(maxsize=16)(_make_transform)
