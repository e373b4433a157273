"""Reads the latent codes that requests send as lists of numbers or as an NPZ file.

A latent code is what a model decodes to an image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from api.errors import InvalidError
from api.request_content import Content
from api.schemas.operations import OperationFields
from core.array_file import UnusableArrayError, read_array
from core.catalog.cards import CodeFormat
from core.settings import Settings

CODES = "codes"  # the body's field, the file's array and the model's argument
FILE_ACCEPTED = (
    "send application/json, multipart/form-data with a file named `codes`, or an NPZ file as application/x-npz with "
    "the other fields in the query"
)

Codes = np.ndarray[Any, Any]  # (N, size)


def read_codes(
    content: Content, fields: OperationFields, code_format: CodeFormat, options: Mapping[str, Any], settings: Settings
) -> Codes:
    """Return the latent codes in a request, float32 (N, size), in the order in which they were
    sent.

    `code_format` says how long a code is, given the validated `options` of the operation. Raises
    InvalidError if the codes are missing, sent twice, of a wrong length, or out of range, or if the
    request has images.
    """
    if fields.images or fields.image_url:
        detail = "this operation takes `codes` and no images; POST /v1/encodings makes codes of images"
        raise InvalidError.in_fields(["images" if fields.images else "image_url"], detail)
    size = code_format.size(options)
    value = (fields.model_extra or {}).get(CODES)
    if len(content.uploads) + (value is not None) != 1:
        sent = "sent twice" if content.uploads else "missing"
        raise _error(f"{sent}; send a list of codes, each a list of {size} numbers, or an NPZ file")
    codes = _from_file(content.uploads[0], size, settings) if content.uploads else _from_json(value, size, settings)
    valid = (codes >= code_format.minimum) & (codes <= code_format.maximum)  # false for NaN, too
    if not valid.all():
        row, column = (int(index) for index in np.unravel_index(np.argmin(valid), valid.shape))
        bounds = f"[{code_format.minimum:g}, {code_format.maximum:g}]"
        raise _error(f"{float(codes[row, column]):g} is not a number in {bounds}", row, column)
    return codes.astype(np.float32)


def _from_json(value: Any, size: int, settings: Settings) -> Codes:
    """Return the codes in the field of a JSON body, or in the text of a form field."""
    if not isinstance(value, list):
        raise _error(f"must be a list of codes, each a list of {size} numbers")
    _check_count(len(value), settings)
    for row, code in enumerate(value):
        if not isinstance(code, list) or len(code) != size:
            found = f"not {len(code)}" if isinstance(code, list) else "in a list of its own"
            raise _error(f"a code has {size} numbers here, {found}", row)
        if not {type(number) for number in code} <= {int, float}:
            column = next(index for index, number in enumerate(code) if type(number) not in {int, float})
            raise _error("must be a number", row, column)
    return np.array(value, np.float64)


def _from_file(data: bytes, size: int, settings: Settings) -> Codes:
    """Return the codes in an NPZ or NPY file."""
    try:
        array = read_array(data, CODES, settings.max_body_bytes)
    except UnusableArrayError as error:
        raise _error(str(error)) from error
    if array.ndim != 2 or array.shape[1] != size:
        raise _error(f"the array has the shape {array.shape}; (N, {size}) would work")
    _check_count(len(array), settings)
    return array


def _check_count(count: int, settings: Settings) -> None:
    """Raise InvalidError if there are no codes or too many."""
    if not 1 <= count <= settings.max_count:
        raise _error(f"there are {count} codes; send 1 to {settings.max_count}")


def _error(detail: str, *indices: int) -> InvalidError:
    """Return the error for the field `codes`, or for a part of it.

    `indices` is the index of a code, or that of a code and of a number in it.
    """
    name = CODES + "".join(f"[{index}]" for index in indices)
    field = ".".join([CODES, *map(str, indices)])
    return InvalidError(f"{name}: {detail}", errors=[{"field": field, "detail": detail}])
