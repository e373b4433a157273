"""Fields of forms and queries: words for booleans, and empty fields."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from api.errors import InvalidError
from api.request_content import option_value, unique_fields
from core.datasets.store import Datasets
from core.imaging.pictures import png
from tests.api.helpers import ENLARGE, TINY, decode_image, problem
from tests.stack import Stack

DIGITS = Path(__file__).parents[1] / "fixtures" / "digits-images-idx3-ubyte.gz"
TRUE = ["true", "True", "TRUE", "1", "on", "On", "yes", "YES"]
FALSE = ["false", "False", "FALSE", "0", "off", "no", "No"]
PICTURE = png(np.full((3, 8, 8), 100, np.uint8))
GREY = png(np.full((1, 8, 8), 100, np.uint8))
MASK = png(np.repeat(np.arange(8, dtype=np.uint8)[None, :, None] // 4 * 255, 8, axis=2))


@pytest.fixture
def datasets(stack: Stack) -> Iterator[Datasets]:
    """The dataset store of the shared service, empty after the test."""
    folder = stack.datasets()
    yield folder
    for about in folder.listing(limit=100):
        folder.delete(about["name"])


def inpainted(client: httpx.Client, **fields: str) -> httpx.Response:
    """Return the response to a form for an inpainting of the lower half of an image."""
    files = {"images": ("a.png", GREY), "mask": ("b.png", MASK)}
    return client.post("/v1/inpaintings", data={"model": TINY, "seed": "3", **fields}, files=files)


def enlarged(client: httpx.Client, **fields: str) -> httpx.Response:
    """Return the response to a form for an upscale."""
    return client.post("/v1/upscales", data={"model": ENLARGE, **fields}, files={"image": ("a.png", PICTURE)})


@pytest.mark.parametrize("text", TRUE + FALSE)
def test_a_form_says_yes_and_no_in_many_words(client: httpx.Client, text: str) -> None:
    """Forms and queries accept several words for true and false."""
    picture = decode_image(enlarged(client, inverted=text, scale="2").content)
    assert (picture == (155 if text in TRUE else 100)).all()
    inverted = inpainted(client, inverted=text).json()["images"]
    plain = client.post(
        f"/v1/upscales?model={ENLARGE}&scale=2&inverted={text}", content=PICTURE, headers={"Content-Type": "image/png"}
    )
    assert (decode_image(plain.content) == picture).all()
    assert (inverted != inpainted(client).json()["images"]) == (text in TRUE)


@pytest.mark.parametrize("text", ["maybe", "2", "-1", "yes please", "null", "[]"])
def test_another_word_is_no_boolean(client: httpx.Client, text: str) -> None:
    """Another word for a boolean is 422, and the problem names the option."""
    assert "inverted" in problem(enlarged(client, inverted=text), 422, "boolean")["errors"][0]["field"]


@pytest.mark.parametrize("value", ["true", "yes", 1, 0])
def test_json_has_booleans_of_its_own(client: httpx.Client, value: Any) -> None:
    """In JSON only `true` and `false` are booleans; words and numbers are rejected."""
    body = {"model": TINY, "images": ["AAAA"], "mask": "AAAA", "inverted": value}
    problem(client.post("/v1/inpaintings", json=body), 422, "inverted", "boolean")


@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_field_is_not_given(client: httpx.Client, datasets: Datasets, empty: str) -> None:
    """An optional form field that is empty counts as absent, on every route that takes a form."""
    left = dict.fromkeys(("count", "steps", "options", "binarization", "inverted"), empty)
    assert inpainted(client, **left).json() == inpainted(client).json()
    left = dict.fromkeys(("seed", "format", "quality", "options", "scale", "method", "inverted"), empty)
    response = enlarged(client, **left)
    assert response.status_code == 200
    assert (decode_image(response.content) == decode_image(enlarged(client).content)).all()
    left = dict.fromkeys(("format", "kind", "resize", "validation", "test"), empty)
    files = {"file": ("digits.gz", DIGITS.read_bytes()), "labels": ("", b"")}
    made = client.post("/v1/datasets", data={"name": "plain", **left}, files=files)
    assert made.status_code == 201, made.text
    assert made.json()["labels"] is False


def test_an_empty_required_field_is_named(client: httpx.Client, datasets: Datasets) -> None:
    """A required form field that is empty counts as missing, and the problem names it."""
    for response, field in (
        (inpainted(client, model=""), "model"),
        (client.post("/v1/datasets", data={"name": ""}, files={"file": ("a.gz", DIGITS.read_bytes())}), "name"),
        (client.post("/v1/datasets", data={"name": "a"}, files={"file": ("", b"")}), "file"),
        (client.post("/v1/upscales", data={"model": ENLARGE}, files={"image": ("", b"")}), "image"),
    ):
        assert problem(response, 422, field)["errors"][0]["field"] == field
    files = {"images": ("a.png", GREY), "mask": ("", b"")}
    response = client.post("/v1/inpaintings", data={"model": TINY}, files=files)
    assert problem(response, 422, "mask")["errors"][0]["field"] == "mask"
    files = {"images": ("", b""), "mask": ("b.png", MASK)}
    problem(client.post("/v1/inpaintings", data={"model": TINY}, files=files), 422, "image")


def test_an_empty_field_beside_a_filled_one_is_no_contradiction() -> None:
    """An empty field beside a filled one of the same name is ignored; two filled ones are
    rejected.
    """
    assert unique_fields([("seed", ""), ("seed", "3"), ("count", "")]) == {"seed": "3"}
    with pytest.raises(InvalidError, match="seed"):
        unique_fields([("seed", "3"), ("seed", "3")])


def test_an_option_s_schema_says_what_its_text_is() -> None:
    """The text of a form field is converted by the option's schema: text stays text, numbers, null
    and lists are parsed.
    """
    assert option_value("5", {"type": "string"}) == "5"
    assert option_value("1", {"type": "boolean"}) is True
    assert option_value("off", {"type": ["boolean", "null"]}) is False
    assert option_value("null", {"type": ["boolean", "null"]}) is None
    assert option_value("1", {"type": "integer"}) == 1
    assert option_value("0.5", {"type": ["number", "null"]}) == 0.5
    assert option_value("[1, 2]", {"type": "array"}) == [1, 2]
    assert option_value("on", {}) == "on"
