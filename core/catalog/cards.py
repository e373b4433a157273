"""Parse and check the cards, which describe the models in checkpoint files.

Imported files come from untrusted clients, and their cards are shown in lists. So a card must be
small, and every field is checked against limits.
"""

import base64
import binascii
import dataclasses
import io
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

from PIL import Image

CARD_LIMIT_BYTES = 64 << 10
PREVIEW_LIMIT_BYTES = 512 << 10
PREVIEW_LIMIT_PIXELS = 2048  # longest side of a preview

# Fields that the card of an imported file must have; `models.kit.card` has the same list, which a
# test compares.
REQUIRED_FIELDS = (
    *("format", "name", "version", "family", "summary", "created_at"),
    *("config", "image", "operations", "figures", "provenance", "license"),
)

_MAX_DEPTH = 12
_MAX_VALUES = 4096
_MAX_FIGURES = 64
_MAX_SIZES = 64  # of latent codes, by the value of an option
_CODE_FIELDS = {"sizes", "minimum", "maximum", "option"}
_INTEGER_LIMIT = 2**63
_NAME = re.compile(r"[A-Za-z0-9][\w.@ +-]*")
_MAX_CHARACTERS = {"name": 120, "version": 40, "family": 80, "summary": 300, "created_at": 40, "license": 200}
_METRIC_MAX_CHARACTERS = {"name": 80, "unit": 40, "detail": 400}


class ImageShape(NamedTuple):
    """Shape of a model's images: number of channels, then height and width in pixels."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Metric:
    """A metric of a model: an entry of `figures` in its model card.

    `better` says whether a lower or a higher value is better, and `detail` how it was measured.
    """

    name: str
    value: float
    better: Literal["lower", "higher"]
    unit: str = ""
    detail: str = ""


def metrics_from_json(figures: Sequence[Mapping[str, Any]]) -> list[Metric]:
    """Return the metrics in the list `figures` of a model card, in order; ignore unknown fields."""
    return [
        Metric(one["name"], float(one["value"]), one["better"], one.get("unit", ""), one.get("detail", ""))
        for one in figures
    ]


def is_better(new: Sequence[Metric], old: Sequence[Metric]) -> bool | None:
    """Return whether the first metric of `new` is strictly better than the first of `old`.

    None if one list is empty or the two metrics have different names.
    """
    if not new or not old or new[0].name != old[0].name:
        return None
    rise = new[0].value - old[0].value
    return rise > 0 if new[0].better == "higher" else rise < 0


@dataclass(frozen=True)
class CodeFormat:
    """The length of the latent codes that an operation reads, and the range of their values.

    `sizes` is the length; if the integer option `option` decides it, there is one length for each
    value of the option, from 0 on.
    """

    sizes: Sequence[int]
    minimum: float
    maximum: float
    option: str | None = None

    def size(self, options: Mapping[str, Any]) -> int:
        """Return the length of a latent code for validated options of the operation."""
        return self.sizes[0 if self.option is None else options[self.option]]


@dataclass(frozen=True)
class OperationSpec:
    """One of a model card's `operations`: the JSON Schema of its options, and how it runs.

    A `sliced` operation consists of steps between which a worker can interrupt it and continue it
    later. `margin` is the context on every side of a tile, in pixels; 0 for an operation without
    tiles. With `any_size`, tiles may have any size, and another margin on each axis.
    `option_margins` maps the name of an option to the pixels by which the margin grows if the
    option is not 0. `codes` is the format of the latent codes that the operation reads; None if it
    reads none.
    """

    options: Mapping[str, Any]
    sliced: bool = False
    margin: int = 0
    any_size: bool = False
    option_margins: Mapping[str, int] = dataclasses.field(default_factory=dict)
    codes: CodeFormat | None = None

    @classmethod
    def from_json(cls, spec: Mapping[str, Any]) -> Self:
        """Return the operation of a JSON object whose fields have been checked."""
        codes = CodeFormat(**spec["codes"]) if "codes" in spec else None
        margin, any_size = int(spec.get("margin", 0)), spec.get("any_size") is True
        option_margins = {str(name): int(pixels) for name, pixels in spec.get("option_margins", {}).items()}
        return cls(spec.get("options", {}), bool(spec.get("sliced")), margin, any_size, option_margins, codes)

    def margin_for(self, options: Mapping[str, Any]) -> int:
        """Return the margin of tiles, in pixels, for validated options."""
        return self.margin + sum(pixels for name, pixels in self.option_margins.items() if options.get(name))


@dataclass(frozen=True)
class Card:
    """The model card in a checkpoint file, which describes the model.

    `json` is the complete JSON object, including fields that this class does not know.
    """

    name: str
    family: str
    image: ImageShape
    config: Mapping[str, Any]
    operations: Mapping[str, OperationSpec]
    figures: Sequence[Metric]
    provenance: Mapping[str, Any]
    json: Mapping[str, Any]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Return the model card of a JSON object whose values were checked before.

        Raises CardError if `image` or `operations` is missing.
        """
        missing = [field for field in ("image", "operations") if field not in fields]
        if missing:
            raise CardError(f"its card lacks {', '.join(missing)}")
        return cls(
            name=fields.get("name", ""),
            family=fields.get("family", ""),
            image=ImageShape(**fields["image"]),
            config=fields.get("config", {}),
            operations={method: OperationSpec.from_json(spec) for method, spec in fields["operations"].items()},
            figures=metrics_from_json(fields.get("figures", [])),
            provenance=fields.get("provenance", {}),
            json=fields,
        )


class CardError(ValueError):
    """Raised for a model card with an invalid field or preview; the message names the field."""


def parse_card(text: str) -> Card:
    """Parse a model card from JSON text and check the type and the limits of every field.

    Only `image` and `operations` are required. Raises CardError for the first field that is
    missing, of a wrong type or beyond a limit.
    """
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > CARD_LIMIT_BYTES:
        raise CardError(f"its card has {size} bytes; at most {CARD_LIMIT_BYTES} are read")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CardError(f"its card is no JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict):
        raise CardError("its card is no JSON object")
    _check_values(fields)
    _check_texts(fields)
    _check_image(fields)
    for field in ("config", "operations", "provenance"):
        if not isinstance(fields.get(field, {}), dict):
            raise CardError(f"the field {field!r} of its card must be an object")
    _check_operations(fields.get("operations", {}))
    _check_codes(fields.get("codes", {"active": []}))
    _check_figures(fields.get("figures", []))
    return Card.from_json(fields)


def _check_values(card: Mapping[str, Any]) -> None:
    """Raise CardError if a card has a value that is not valid JSON, or too many values.

    At most 4096 values in at most 12 levels are allowed. The walk does not recurse, so a deeply
    nested card cannot exceed the recursion limit.
    """
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


def _check_text(field: str, text: str, limit: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"the field {field!r} of its card is not Unicode text: it holds half a surrogate pair"
        raise CardError(detail) from error
    if len(text) > limit:
        raise CardError(f"the field {field!r} of its card has {len(text)} characters; at most {limit} may be")


def _check_texts(card: Mapping[str, Any]) -> None:
    """Raise CardError if a text of a model card, or its `format`, is not valid."""
    for field, limit in _MAX_CHARACTERS.items():
        value = card.get(field, "")
        if not isinstance(value, str):
            raise CardError(f"the field {field!r} of its card must be text")
        _check_text(field, value, limit)
    if "format" in card and (isinstance(card["format"], bool) or card["format"] != 1):
        raise CardError("the field 'format' of its card must be 1: this service reads no other")
    for field in ("name", "family"):
        if field in card and not _NAME.fullmatch(card[field]):
            raise CardError(f"the field {field!r} of its card must be a name: letters, digits, '.', '-' and '_'")


def _check_image(card: Mapping[str, Any]) -> None:
    """Raise CardError if `image` is not a valid shape; it may be missing here."""
    if "image" not in card:
        return
    image = card["image"]
    names = ImageShape._fields
    sides = [image.get(name) for name in names] if isinstance(image, dict) else []
    valid = [isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= 1 << 16 for side in sides]
    if not sides or not all(valid) or set(image) != set(names):
        raise CardError(f"the field 'image' of its card must hold {', '.join(names)}, each an integer in [1, 65536]")


def _check_operations(operations: Mapping[str, Any]) -> None:
    """Raise CardError if an operation's options, margins or `codes` are not valid."""
    for method, spec in operations.items():
        if not isinstance(spec, dict) or not isinstance(spec.get("options", {}), dict):
            detail = f"the operation {method[:60]!r} of its card must be an object whose 'options' are an object"
            raise CardError(detail)
        margin = spec.get("margin", 0)
        if isinstance(margin, bool) or not isinstance(margin, int) or margin < 0:
            raise CardError(f"the 'margin' of the operation {method[:60]!r} of its card must be an integer from 0")
        option_margins = spec.get("option_margins", {})
        if not isinstance(option_margins, dict) or not all(_is_index(one, 0) for one in option_margins.values()):
            raise CardError(
                f"the 'option_margins' of the operation {method[:60]!r} of its card must be integers from 0"
            )
        if "codes" in spec:
            _check_code_format(method, spec["codes"], spec.get("options", {}))


def _check_code_format(method: str, codes: Any, options: Mapping[str, Any]) -> None:
    """Raise CardError if an operation's `codes` is not a valid `CodeFormat` for its options."""
    name = f"the 'codes' of the operation {method[:60]!r} of its card"
    if not isinstance(codes, dict) or not {"sizes", "minimum", "maximum"} <= set(codes) <= _CODE_FIELDS:
        raise CardError(f"{name} must hold sizes, minimum, maximum and possibly option")
    sizes, bounds = codes["sizes"], (codes["minimum"], codes["maximum"])
    if not isinstance(sizes, list) or not 1 <= len(sizes) <= _MAX_SIZES or not all(_is_index(one, 1) for one in sizes):
        raise CardError(f"{name} must have 1 to {_MAX_SIZES} sizes, each an integer in [1, 65536]")
    if not all(isinstance(bound, int | float) and not isinstance(bound, bool) for bound in bounds):
        raise CardError(f"{name} must have numbers as minimum and maximum")
    if not bounds[0] < bounds[1]:
        raise CardError(f"{name} must have a minimum below its maximum")
    if "option" not in codes:
        return
    option, properties = codes["option"], options.get("properties")
    rule = properties.get(option) if isinstance(option, str) and isinstance(properties, dict) else None
    expected = {"type": "integer", "minimum": 0, "maximum": len(sizes) - 1}
    rule = rule if isinstance(rule, dict) else {}
    fits = all(rule.get(field) == value for field, value in expected.items())
    if not fits or not _is_index(rule.get("default"), 0) or rule["default"] >= len(sizes):
        raise CardError(f"{name} must name an integer option in [0, {len(sizes) - 1}] with a default")


def _check_codes(codes: Any) -> None:
    """Raise CardError if the field `codes` of a model card is not valid.

    The field lists elements of the latent code, each by index and activity (a number).
    """
    active = codes.get("active") if isinstance(codes, dict) else None
    if not isinstance(active, list) or not all(_is_active(entry) for entry in active):
        raise CardError("the 'codes' of its card must hold a list 'active' of objects with an index and an activity")
    if not isinstance(codes.get("measure", ""), str):
        raise CardError("the 'measure' of the 'codes' of its card must be text")
    _check_text("codes.measure", codes.get("measure", ""), _METRIC_MAX_CHARACTERS["detail"])


def _is_active(entry: Any) -> bool:
    """Return whether `entry` describes an element of a latent code: an index and an activity."""
    if not isinstance(entry, dict) or not _is_index(entry.get("index"), 0):
        return False
    return isinstance(entry.get("activity"), int | float) and not isinstance(entry["activity"], bool)


def _is_index(value: Any, minimum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= 1 << 16


def _check_figures(figures: Any) -> None:
    """Raise CardError if `figures`, the metrics of a model card, has a wrong type or length."""
    if not isinstance(figures, list) or len(figures) > _MAX_FIGURES:
        raise CardError(f"the field 'figures' of its card must be a list of at most {_MAX_FIGURES}")
    for figure in figures:
        if not isinstance(figure, dict):
            raise CardError("each of the 'figures' of its card must be an object")
        for field, limit in _METRIC_MAX_CHARACTERS.items():
            if not isinstance(figure.get(field, ""), str):
                raise CardError(f"the {field!r} of a figure of its card must be text")
            _check_text(f"figures.{field}", figure.get(field, ""), limit)
        value = figure.get("value")
        if not isinstance(figure.get("name"), str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise CardError("each of the 'figures' of its card needs a name and a number as its 'value'")
        if figure.get("better") not in {"lower", "higher"}:
            raise CardError('the \'better\' of each figure of its card must be "lower" or "higher"')


def parse_preview(text: str) -> bytes:
    """Decode the preview in a checkpoint's header from base64 text; return the bytes of the PNG.

    Raises CardError if it is not a complete PNG, or is too large.
    """
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
    except Exception as error:  # Pillow raises many kinds of errors
        raise CardError(f"its preview is no whole PNG: {str(error)[:120]}") from error
    if max(width, height) > PREVIEW_LIMIT_PIXELS:
        raise CardError(f"its preview is {width}×{height} pixels; at most {PREVIEW_LIMIT_PIXELS} a side")
    return data
