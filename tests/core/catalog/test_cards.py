"""Bounds on the cards and previews of imported files."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from core.catalog.cards import CARD_LIMIT_BYTES, CardError, parse_card, parse_preview
from core.catalog.checkpoint_file import read_card
from tests.stack import ROOT

SHIPPED = sorted((ROOT / "checkpoints").glob("*/*/model.safetensors"))


DECODE_OPTIONS = {"type": "object", "properties": {"layer": {"type": "integer", "minimum": 0, "maximum": 1}}}


def card(**change: Any) -> str:
    """Return the first shipped card with changed fields, as JSON text."""
    return json.dumps({**read_card(SHIPPED[0]).json, **change})


def png(width: int, height: int, **options: Any) -> str:
    """Return a preview of that size, in base64."""
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.parent.name)
def test_shipped_cards_pass(path: Any) -> None:
    """Shipped cards pass the checks of imported ones."""
    assert parse_card(json.dumps(read_card(path).json)) == read_card(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"summary": "x" * 301}, "'summary' of its card has 301 characters"),
        ({"summary": 5}, "'summary' of its card must be text"),
        ({"summary": ["x"] * 10}, "'summary' of its card must be text"),
        ({"license": "x" * 201}, "'license' of its card has 201"),
        ({"created_at": None}, "'created_at' of its card must be text"),
        ({"version": 1}, "'version' of its card must be text"),
        ({"name": "../../etc"}, "'name' of its card must be a name"),
        ({"name": "a" * 121}, "'name' of its card has 121"),
        ({"family": ""}, "'family' of its card must be a name"),
        ({"format": 2}, "'format' of its card must be 1"),
        ({"format": True}, "'format' of its card must be 1"),
        ({"image": None}, "'image' of its card must hold channels, height, width"),
        ({"image": {"channels": 1, "height": 28}}, "'image' of its card must hold"),
        ({"image": {"channels": 1, "height": 28, "width": 0}}, "'image' of its card must hold"),
        ({"image": {"channels": 1, "height": 28.5, "width": 28}}, "'image' of its card must hold"),
        ({"image": {"channels": 1, "height": 28, "width": 28, "more": "x"}}, "'image' of its card must hold"),
        ({"config": []}, "'config' of its card must be an object"),
        ({"operations": "sample"}, "'operations' of its card must be an object"),
        *[
            ({"operations": {"decode": {"options": DECODE_OPTIONS, "codes": codes}}}, message)
            for codes, message in (
                (None, "must hold sizes, minimum, maximum"),
                ({"sizes": [2], "minimum": 0}, "must hold sizes, minimum, maximum"),
                ({"sizes": [2], "minimum": 0, "maximum": 1, "more": 2}, "must hold sizes, minimum, maximum"),
                ({"sizes": [], "minimum": 0, "maximum": 1}, "1 to 64 sizes"),
                ({"sizes": [0], "minimum": 0, "maximum": 1}, "1 to 64 sizes"),
                ({"sizes": 5, "minimum": 0, "maximum": 1}, "1 to 64 sizes"),
                ({"sizes": [2], "minimum": "0", "maximum": 1}, "numbers as minimum and maximum"),
                ({"sizes": [2], "minimum": 1, "maximum": 1}, "a minimum below its maximum"),
                ({"sizes": [2, 3], "minimum": 0, "maximum": 1, "option": "none"}, "an integer option in [0, 1]"),
                ({"sizes": [2, 3, 4], "minimum": 0, "maximum": 1, "option": "layer"}, "an integer option"),
                ({"sizes": [2, 3], "minimum": 0, "maximum": 1, "option": ["layer"]}, "an integer option"),
            )
        ],
        ({"codes": []}, "'codes' of its card must hold a list 'active'"),
        ({"codes": {"active": [{"index": -1, "activity": 1}]}}, "'codes' of its card must hold a list 'active'"),
        ({"codes": {"active": [{"index": 1, "activity": "much"}]}}, "'codes' of its card must hold a list 'active'"),
        ({"codes": {"active": [], "measure": 3}}, "'measure' of the 'codes' of its card must be text"),
        ({"provenance": 3}, "'provenance' of its card must be an object"),
        ({"provenance": {"note": "x" * CARD_LIMIT_BYTES}}, f"at most {CARD_LIMIT_BYTES} are read"),
        ({"provenance": {"seed": 10**4000}}, "an integer of more than 64 bits"),
        ({"provenance": {"seed": 2**63}}, "an integer of more than 64 bits"),
        ({"provenance": {"loss": float("inf")}}, "holds inf"),
        ({"config": {"rate": float("nan")}}, "holds nan"),
        ({"provenance": {"who": "\ud800"}}, "half a surrogate pair"),
        ({"provenance": {"\udfff": 1}}, "half a surrogate pair"),
        ({"provenance": {"list": [0] * 5000}}, "at most 4096 values"),
        ({"anything": json.loads("[" * 20 + "]" * 20)}, "12 levels deep"),
        ({"anything": "x" * CARD_LIMIT_BYTES}, f"at most {CARD_LIMIT_BYTES} are read"),
        ({"figures": {}}, "'figures' of its card must be a list"),
        ({"figures": [{"name": "nll", "value": 1, "better": "lower"}] * 65}, "a list of at most 64"),
        ({"figures": ["nll"]}, "must be an object"),
        ({"figures": [{"name": "nll", "value": "1", "better": "lower"}]}, "a name and a number"),
        ({"figures": [{"name": "nll", "value": True, "better": "lower"}]}, "a name and a number"),
        ({"figures": [{"value": 1.0, "better": "lower"}]}, "a name and a number"),
        ({"figures": [{"name": "nll", "value": 1, "better": "up"}]}, "'better'"),
        ({"figures": [{"name": "nll", "value": 1, "better": "lower", "detail": "x" * 401}]}, "figures.detail"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_field_out_of_bounds_is_named(change: dict[str, Any], message: str) -> None:
    """A card with a field of the wrong type or size is rejected with the field's name, in under 400
    characters.
    """
    with pytest.raises(CardError) as caught:
        parse_card(card(**change))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["", "nope", "[]", "[" * 60_000, "1" * 5000, "\ud800"])
def test_a_card_is_a_json_object(text: str) -> None:
    """A card that is not a JSON object is rejected quickly."""
    started = time.process_time()
    with pytest.raises(CardError):
        parse_card(text)
    assert time.process_time() - started < 0.5


def test_a_preview_is_a_small_png() -> None:
    """A small PNG is returned; other formats, truncated files and decompression bombs are
    rejected.
    """
    assert parse_preview(png(64, 64)) == base64.b64decode(png(64, 64))
    bomb = PngImagePlugin.PngInfo()
    bomb.add_text("comment", "x" * (8 << 20), zip=True)
    jpeg = io.BytesIO()
    Image.new("L", (8, 8)).save(jpeg, "JPEG")
    wrong = {
        "": "no whole PNG",
        "aGVsbG8=": "no whole PNG",
        "not base64": "not base64",
        "é": "not base64",
        png(64, 64)[:60]: "no whole PNG",
        png(3000, 8): "3000×8 pixels; at most 2048",
        png(8, 8, pnginfo=bomb): "no whole PNG",
        base64.b64encode(jpeg.getvalue()).decode(): "no whole PNG",
        "A" * (1 << 20): "at most 524288 bytes",
    }
    for text, message in wrong.items():
        with pytest.raises(CardError, match=message):
            parse_preview(text)
