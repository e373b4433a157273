"""Bounds on the card of an imported file: every field of its type and length, the preview a small PNG.

The API shows cards in listings, so that a card must be small, and every value in it must be one that JSON has.
"""

import base64
import binascii
import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image

CARD_LIMIT_BYTES = 64 << 10
PREVIEW_LIMIT_BYTES = 512 << 10
PREVIEW_LIMIT_PIXELS = 2048
"""Of a preview's side."""

_MAX_DEPTH = 12
_MAX_VALUES = 4096
_MAX_FIGURES = 64
_INTEGER_LIMIT = 2**63
_NAME = re.compile(r"[A-Za-z0-9][\w.@ +-]*")
_TEXTS = {"name": 120, "version": 40, "family": 80, "summary": 300, "created_at": 40, "license": 200}
"""Fields of a card that hold text → the most characters that each may have."""

_FIGURE_TEXTS = {"name": 80, "unit": 40, "detail": 400}
_SIDES = ("channels", "height", "width")


class CardError(ValueError):
    """A card that has a field of another type, or a larger one, than a card may have; the text says which."""


def check_card(text: str) -> dict[str, Any]:
    """Return the card in a JSON text whose every field is of its type and within its bounds.

    Which fields a card must have is not looked at here; those that it has are. Raises CardError.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > CARD_LIMIT_BYTES:
        raise CardError(f"its card has {size} bytes; at most {CARD_LIMIT_BYTES} are read")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"its card is no JSON: {str(error)[:200]}") from error
    if not isinstance(card, dict):
        raise CardError("its card is no JSON object")
    _check_values(card)
    _check_texts(card)
    _check_image(card)
    for field in ("config", "operations", "provenance"):
        if not isinstance(card.get(field, {}), dict):
            raise CardError(f"the field {field!r} of its card must be an object")
    _check_figures(card.get("figures", []))
    return card


def _check_values(card: Mapping[str, Any]) -> None:
    """Hold the whole tree to what JSON can carry and to bounds of depth and number, without recursion."""
    waiting: list[tuple[str, Any, int]] = [("", card, 0)]
    count = 0
    while waiting:
        field, value, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            raise CardError(f"its card is too large: at most {_MAX_VALUES} values, {_MAX_DEPTH} levels deep")
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_text(field or "name of a field", name, CARD_LIMIT_BYTES)
                waiting.append((field or name[:60], inner, depth + 1))
        elif isinstance(value, list):
            waiting += [(field, inner, depth + 1) for inner in value]
        elif isinstance(value, str):
            _check_text(field, value, CARD_LIMIT_BYTES)
        elif isinstance(value, float) and not math.isfinite(value):
            raise CardError(f"the field {field!r} of its card holds {value}, which JSON does not have")
        elif isinstance(value, int) and not -_INTEGER_LIMIT <= value < _INTEGER_LIMIT:
            raise CardError(f"the field {field!r} of its card holds an integer of more than 64 bits")


def _check_text(field: str, text: str, most: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CardError(
            f"the field {field!r} of its card is not Unicode text: it holds half a surrogate pair"
        ) from error
    if len(text) > most:
        raise CardError(f"the field {field!r} of its card has {len(text)} characters; at most {most} may be")


def _check_texts(card: Mapping[str, Any]) -> None:
    for field, most in _TEXTS.items():
        value = card.get(field, "")
        if not isinstance(value, str):
            raise CardError(f"the field {field!r} of its card must be text")
        _check_text(field, value, most)
    if "format" in card and (isinstance(card["format"], bool) or card["format"] != 1):
        raise CardError("the field 'format' of its card must be 1: this service reads no other")
    for field in ("name", "family"):
        if field in card and not _NAME.fullmatch(card[field]):
            raise CardError(f"the field {field!r} of its card must be a name: letters, digits, '.', '-' and '_'")


def _check_image(card: Mapping[str, Any]) -> None:
    if "image" not in card:
        return
    image = card["image"]
    sides = [image.get(side) for side in _SIDES] if isinstance(image, dict) else []
    whole = [isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 1 << 16 for side in sides]
    if not sides or not all(whole) or set(image) != set(_SIDES):
        raise CardError(f"the field 'image' of its card must hold {', '.join(_SIDES)}, each an integer in [1, 65536]")


def _check_figures(figures: Any) -> None:
    if not isinstance(figures, list) or len(figures) > _MAX_FIGURES:
        raise CardError(f"the field 'figures' of its card must be a list of at most {_MAX_FIGURES}")
    for figure in figures:
        if not isinstance(figure, dict):
            raise CardError("each of the 'figures' of its card must be an object")
        for field, most in _FIGURE_TEXTS.items():
            if not isinstance(figure.get(field, ""), str):
                raise CardError(f"the {field!r} of a figure of its card must be text")
            _check_text(f"figures.{field}", figure.get(field, ""), most)
        value = figure.get("value")
        if not isinstance(figure.get("name"), str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise CardError("each of the 'figures' of its card needs a name and a number as its 'value'")
        if figure.get("better") not in {"lower", "higher"}:
            raise CardError('the \'better\' of each figure of its card must be "lower" or "higher"')


def check_preview(text: str) -> bytes:
    """Return the PNG in the base64 text of a preview. Raises CardError where it is none, or a large one."""
    if len(text) > 4 * PREVIEW_LIMIT_BYTES // 3 + 4:
        raise CardError(f"its preview has {len(text)} characters of base64; at most {PREVIEW_LIMIT_BYTES} bytes may be")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CardError("its preview is not base64; it must be a PNG in standard base64") from error
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            warnings.simplefilter("ignore")
            width, height = picture.size
            if max(width, height) <= PREVIEW_LIMIT_PIXELS:
                picture.load()
    except Exception as error:  # a decoder fails in many ways at what is no picture
        raise CardError(f"its preview is no whole PNG: {str(error)[:120]}") from error
    if max(width, height) > PREVIEW_LIMIT_PIXELS:
        raise CardError(f"its preview is {width}×{height} pixels; at most {PREVIEW_LIMIT_PIXELS} a side")
    return data
