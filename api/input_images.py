"""Decodes the images of requests: files or base64 text → pixels of the model's size."""

from collections.abc import Sequence

import numpy as np

from api.errors import InvalidError
from api.request_content import decode_base64
from api.schemas.operations import OperationFields
from core.broker.codec import Items
from core.catalog.operations import Operation, Shared
from core.catalog.registry import ModelVersion
from core.imaging.pictures import Pixels, UnusableImageError, decode


def decode_images(
    operation: Operation, entry: ModelVersion, images: Sequence[bytes | str], conversions: list[str]
) -> Items:
    """Decode all images to the size of the model; return the pixels, keyed by the model's argument.

    For each image that is converted (such as resized), a message is added to `conversions`. Raises
    InvalidError if an image cannot be decoded or converted.
    """
    decoded = [
        _decode_image(image, entry.image, f"images[{index}]", f"images.{index}", conversions)
        for index, image in enumerate(images)
    ]
    if len(operation.images) == 2:
        return {name: pixels[None] for name, pixels in zip(operation.images, decoded, strict=True)}
    return {operation.images[0]: np.stack(decoded)} if decoded else {}


def _decode_image(
    image: bytes | str, size: tuple[int, int, int], name: str, path: str, conversions: list[str]
) -> Pixels:
    """Decode an image file, or its base64 text, and return its pixels (C, H, W).

    The image is converted to `size` (C, H, W) if necessary; then a message is added to
    `conversions`. `name` is the image's name in messages, `path` its field in errors. Raises
    InvalidError if the image cannot be decoded or converted.
    """
    try:
        pixels, converted = decode(image if isinstance(image, bytes) else decode_base64(image), *size)
    except UnusableImageError as error:
        raise InvalidError(f"{name}: {error}", errors=[{"field": path, "detail": str(error)}]) from error
    if converted:
        conversions.append(f"{name}: {converted}")
    return pixels


def base64_texts(shared: Shared, fields: OperationFields) -> Sequence[str]:
    """Return the base64 texts in the request field of a shared image; empty if the field is
    missing.

    A shared image, such as a mask, is used for all rows. Raises InvalidError if a value is no text.
    """
    value = (fields.model_extra or {}).get(shared.name, [])
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidError.in_field(shared.name, "must be a picture file as base64 text")
    return texts


def decode_shared(shared: Shared, entry: ModelVersion, sent: Sequence[bytes | str], conversions: list[str]) -> Pixels:
    """Decode a shared image, one for all rows such as a mask; return its pixels (1, C, H, W).

    The image is decoded as grey, and repeated for each channel of the model. If it is converted
    (such as resized), a message is added to `conversions`. Raises InvalidError if `sent` has not
    exactly one image, or if the image cannot be decoded or is not suitable.
    """
    channels, height, width = entry.image
    check_number(shared, entry, len(sent))
    pixels = _decode_image(sent[0], (1, height, width), shared.name, shared.name, conversions)
    if fault := shared.fault(pixels):
        raise InvalidError.in_field(shared.name, fault)
    return np.repeat(pixels[None], channels, axis=1)


def check_number(shared: Shared, entry: ModelVersion, number: int) -> None:
    """Raise InvalidError if a request does not have exactly one image in the field of a shared
    image.

    `number` is the number of images that it has.
    """
    if number != 1:
        _, height, width = entry.image
        sent = f"{number} were sent" if number else "missing"
        detail = f"{sent}; send one picture of {width}×{height} pixels. {shared.description}"
        raise InvalidError.in_field(shared.name, detail)
