"""Requests: every way to send one, and every kind of error."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.api.helpers import FAULTY, MODEL, b64, decode_image, decode_image_base64, encode_image, post_samples, problem

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _no_harm(client: httpx.Client) -> Iterator[None]:
    """Check after each test that a valid request succeeds."""
    yield
    response = post_samples(client, seed=1)
    assert response.status_code == 200, response.text


def _digit(mode: str = "L", size: tuple[int, int] = (28, 28)) -> Image.Image:
    bar = Image.new("L", size)
    bar.paste(255, (12, 4, 16, 24))
    return bar.convert(mode)


def _png(width: int, height: int, bits: int, colour: int, data: bytes) -> bytes:
    """Return a PNG with this header and these pixel data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


# --- ways to send a request ---


def test_a_picture_may_come_in_four_ways(client: httpx.Client, digit: bytes) -> None:
    """Base64 in JSON, a data URL, a multipart file and a raw body with a query are the same
    request.
    """
    whole: dict[str, str | int] = {"model": MODEL, "seed": 5, "binarization": "none"}
    wrapped = "\n".join(b64(digit)[at : at + 76] for at in range(0, len(b64(digit)), 76))
    responses = [
        client.post("/v1/encodings", json={**whole, "images": [b64(digit)]}),
        client.post("/v1/encodings", json={**whole, "images": [f"data:image/png;base64,{wrapped}"]}),
        client.post("/v1/encodings", data=whole, files={"images": ("digit.png", digit)}),
        client.post("/v1/encodings", params=whole, content=digit, headers={"Content-Type": "image/png"}),
        client.post("/v1/encodings", params=whole, content=digit, headers={"Content-Type": "application/octet-stream"}),
    ]
    assert [response.status_code for response in responses] == [200] * 5, responses[-1].text
    assert len({response.content for response in responses}) == 1


def test_files_and_base64_add_up(client: httpx.Client, digit: bytes) -> None:
    """A form may have files and images as text; the files come first in the result."""
    dark = encode_image(Image.new("L", (28, 28)))
    form = {"model": MODEL, "seed": "5", "images": f'["{b64(dark)}"]', "options": '{"binarization": "none"}'}
    files = [("images", ("a.png", digit)), ("images", ("b.png", digit))]
    response = client.post("/v1/encodings", data=form, files=files)
    assert response.status_code == 200, response.text
    mean = response.json()["mean"]
    assert len(mean) == 3
    np.testing.assert_allclose(mean[0], mean[1], rtol=1e-5)
    assert not np.allclose(mean[1], mean[2])


def test_a_form_may_bring_as_many_files_as_json(client: httpx.Client, digit: bytes) -> None:
    """A form may have 1024 files; one more is rejected with the limit."""
    files = [("images", ("digit.png", digit))] * 1024
    response = client.post("/v1/encodings", data={"model": MODEL}, files=files)
    assert response.status_code == 200, response.text[:300]
    assert len(response.json()["mean"]) == 1024
    more = client.post("/v1/encodings", data={"model": MODEL}, files=[*files, files[0]])
    problem(more, 422, "1025", "1024")


def test_options_may_stand_inside_or_beside(client: httpx.Client) -> None:
    """An option may be given in `options` or as a field, and 3.0 is the integer 3."""
    inside = post_samples(client, seed=4, options={"temperature": 0.5})
    beside = post_samples(client, seed=4, temperature=0.5)
    assert inside.content == beside.content != post_samples(client, seed=4).content
    grids = [client.post("/v1/manifold", json={"model": MODEL, "seed": 1, "size": size}) for size in (3, 3.0)]
    assert grids[0].status_code == 200
    assert grids[0].content == grids[1].content


def test_a_version_may_be_pinned(client: httpx.Client) -> None:
    """`name@version` selects a version; an unknown one is 404."""
    assert (
        post_samples(client, seed=4).content
        == client.post("/v1/samples", json={"model": f"{MODEL}@1", "seed": 4}).content
    )
    problem(client.post("/v1/samples", json={"model": f"{MODEL}@99"}), 404, MODEL)


def test_a_seed_is_drawn_and_echoed(client: httpx.Client) -> None:
    """Without a seed, requests differ; the returned seed reproduces the result."""
    first, second = post_samples(client), post_samples(client)
    assert first.json()["seed"] != second.json()["seed"]
    assert post_samples(client, seed=first.json()["seed"]).content == first.content
    assert first.headers["reverie-seed"] == str(first.json()["seed"])


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_the_ends_of_the_seeds_are_seeds(client: httpx.Client, seed: int) -> None:
    """The smallest and the largest seed, 0 and 2⁶³ − 1, are valid."""
    assert post_samples(client, seed=seed).json()["seed"] == seed


# --- invalid fields ---


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"count": 0}, ["count", "between 1 and 65536"]),
        ({"count": -1}, ["count", "between 1 and 65536"]),
        ({"count": 65537}, ["count", "between 1 and 65536"]),
        ({"count": 10**18}, ["count", "between 1 and 65536"]),
        ({"count": 10**30}, ["count", "integer"]),
        ({"count": "3"}, ["count", "integer"]),
        ({"count": 3.5}, ["count", "integer"]),
        ({"count": True}, ["count", "integer"]),
        ({"count": None}, ["count", "integer"]),
        ({"seed": -1}, ["seed", "greater than or equal to 0"]),
        ({"seed": 2**63}, ["seed", "less than 9223372036854775808"]),
        ({"seed": 1.5}, ["seed", "integer"]),
        ({"seed": "7"}, ["seed", "integer"]),
        ({"seed": False}, ["seed", "integer"]),
        ({"model": None}, ["model", "string"]),
        ({"model": ["vae"]}, ["model", "string"]),
        ({"options": []}, ["options", "dictionary"]),
        ({"options": "means"}, ["options", "dictionary"]),
        ({"options": {"temperature": 0}}, ["options.temperature", "0"]),
        ({"options": {"temperature": "warm"}}, ["options.temperature", "number"]),
        ({"options": {"output": "best"}}, ["options.output", "means", "draws"]),
        ({"options": {"heat": 1}}, ["options.heat", "temperature", "output"]),
        ({"heat": 1}, ["heat", "temperature", "count", "seed"]),
        ({"temperature": 1, "options": {"temperature": 1}}, ["temperature", "twice"]),
        ({"images": ["eA=="]}, ["no images"]),
    ],
)
def test_a_wrong_field_is_named(client: httpx.Client, fields: dict[str, Any], words: list[str]) -> None:
    """An invalid field is 422, with the field and what would be valid; `errors` names it, too."""
    body = problem(post_samples(client, **fields), 422, *words)
    assert body["errors"]
    assert {error["field"].split(".")[0] for error in body["errors"]} <= fields.keys()


def test_wrong_fields_are_listed(client: httpx.Client) -> None:
    """`errors` has one entry per invalid field."""
    body = problem(post_samples(client, count="3", seed=-1), 422, "count", "seed")
    assert {error["field"] for error in body["errors"]} == {"count", "seed"}


def test_a_request_without_a_model_is_refused(client: httpx.Client) -> None:
    """A missing `model` is 422, which names it."""
    problem(client.post("/v1/samples", json={}), 422, "model")


def test_an_unknown_model_is_refused(client: httpx.Client) -> None:
    """An unknown model is 404 with the models that exist; a long name is shortened."""
    for name in ("gan", "", "../vae-mnist-2d", "\0", "x" * 100_000):
        problem(client.post("/v1/samples", json={"model": name}), 404, MODEL, FAULTY)


def test_an_operation_that_a_model_lacks_is_refused(client: httpx.Client, digit: bytes) -> None:
    """An operation that the model lacks is 422 with those that it has."""
    response = client.post("/v1/encodings", json={"model": FAULTY, "images": [b64(digit)]})
    body = problem(response, 422, FAULTY, "/v1/samples", "/v1/likelihoods")
    assert [error["field"] for error in body["errors"]] == ["model"]


def test_an_operation_without_count_says_so(client: httpx.Client) -> None:
    """`count` is rejected where other options determine the number of results."""
    body = problem(client.post("/v1/manifold", json={"model": MODEL, "count": 4}), 422, "count")
    assert [error["field"] for error in body["errors"]] == ["count"]


def test_images_must_be_as_many_as_an_operation_takes(client: httpx.Client, digit: bytes) -> None:
    """Too few or too many images are rejected with the right number."""
    one = b64(digit)
    problem(client.post("/v1/encodings", json={"model": MODEL}), 422, "at least one image")
    for images in ([], [one], [one] * 3):
        response = client.post("/v1/interpolations", json={"model": MODEL, "images": images})
        body = problem(response, 422, "exactly two images", str(len(images)))
        assert [error["field"] for error in body["errors"]] == ["images"]
    body = problem(client.post("/v1/encodings", json={"model": MODEL, "images": [one] * 1025}), 422, "1025", "1024")
    assert [error["field"] for error in body["errors"]] == ["images"]


@pytest.mark.parametrize("images", [{"a": "b"}, "text", [1], [None], [["x"]]])
def test_images_must_be_text(client: httpx.Client, images: Any) -> None:
    """`images` of another type than a list of strings is rejected."""
    problem(client.post("/v1/encodings", json={"model": MODEL, "images": images}), 422, "images")


def test_a_great_many_wrong_entries_cost_little(client: httpx.Client) -> None:
    """A million invalid entries or 30 000 unknown fields get one short problem within seconds."""
    response = client.post("/v1/encodings", json={"model": MODEL, "images": [0] * 1_000_000})
    problem(response, 400, "65536 values")
    assert response.elapsed.total_seconds() < 5
    problem(client.post("/v1/encodings", json={"model": MODEL, "images": [0] * 50_000}), 422, "images.0")
    names: dict[str, Any] = {f"field_{number}": 1 for number in range(30_000)}
    assert len(post_samples(client, **names).content) < 4000
    assert len(post_samples(client, options=names).content) < 4000
    assert len(post_samples(client, temperature="x" * MIB).content) < 4000


# --- invalid bodies ---


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "vae-mnist-2d",}',
        b"{'model': 'vae-mnist-2d'}",
        b'{"model": "vae-mnist-2d", "temperature": NaN}',
        b'{"model": "vae-mnist-2d", "temperature": Infinity}',
        b'{"model": "vae-mnist-2d", "temperature": -Infinity}',
        b'{"model": "vae-mnist-2d", "temperature": 1e400}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000,
        '{"model": "vae-mnist-2d"}'.encode("utf-16"),
    ],
    ids=range(13),
)
def test_a_body_that_is_no_json_is_refused(client: httpx.Client, body: bytes) -> None:
    """A body that is not valid JSON is 400 with an example."""
    response = client.post("/v1/samples", content=body, headers={"Content-Type": "application/json"})
    problem(response, 400, "JSON", '{"model"')


@pytest.mark.parametrize("body", [b"[]", b"3", b'"text"', b"null", b"true"])
def test_json_must_be_an_object(client: httpx.Client, body: bytes) -> None:
    """JSON that is not an object is 400 with an example."""
    response = client.post("/v1/samples", content=body, headers={"Content-Type": "application/json"})
    problem(response, 400, "object", '{"model"')


def test_deep_but_readable_json_is_no_danger(client: httpx.Client) -> None:
    """A deeply nested value is rejected as an invalid option."""
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    problem(post_samples(client, temperature=deep), 422, "options", "nested")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
def test_another_content_type_is_refused(client: httpx.Client, kind: str) -> None:
    """An unsupported Content-Type is 415 with those supported."""
    headers = {"Content-Type": kind} if kind else {}
    response = client.post("/v1/samples", content=b'{"model": "vae-mnist-2d"}', headers=headers)
    problem(response, 415, "application/json", "multipart/form-data", "image/*")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_hundred_megabytes_are_refused(client: httpx.Client, chunked: bool) -> None:
    """A body of 100 MiB is 413 with the limit, with and without Content-Length."""
    text = b'{"model": "' + b"x" * (100 * MIB) + b'"}'
    content: Any = (text[at : at + MIB] for at in range(0, len(text), MIB)) if chunked else text
    response = client.post("/v1/samples", content=content, headers={"Content-Type": "application/json"})
    problem(response, 413, str(32 * MIB))


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("headers", "body", "status", "detail"),
    [
        ({"Content-Type": "multipart/form-data"}, b"--x--", 400, "no boundary"),
        (FORM, b"", 422, "model: Field required"),
        (FORM, b"nothing of the kind", 400, "Invalid multipart data"),
        (FORM, b"--x\r\n\r\nno name\r\n--x--\r\n", 400, '"name" must be provided'),
        (
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n\x89PNG',
            422,
            "model: Field required",
        ),
        (
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + b"y" * 2 * MIB + b"\r\n--x--\r\n",
            400,
            "maximum size of 1024KB",
        ),
        (
            {"Content-Type": "multipart/form-data; boundary=x; charset=nonsense"},
            b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\n\xff\r\n--x--\r\n',
            400,
            "charset",
        ),
    ],
    ids=["no boundary", "empty", "no form", "no name", "cut off", "long text", "odd charset"],
)
def test_a_broken_form_is_a_problem(
    client: httpx.Client, headers: dict[str, str], body: bytes, status: int, detail: str
) -> None:
    """A form that cannot be parsed is 400; one without a model is 422."""
    problem(client.post("/v1/encodings", content=body, headers=headers), status, detail)


def test_a_field_of_a_form_comes_once(client: httpx.Client, digit: bytes) -> None:
    """A field given twice, in the form or in form and query, and a file under another name are
    rejected.
    """
    files = {"images": ("a.png", digit)}
    twice = client.post("/v1/encodings", data={"model": MODEL, "seed": ["1", "2"]}, files=files)
    body = problem(twice, 422, "more than once", "seed")
    assert [error["field"] for error in body["errors"]] == ["seed"]
    both = client.post("/v1/encodings?seed=1", data={"model": MODEL, "seed": "1"}, files=files)
    problem(both, 422, "more than once", "seed")
    odd = client.post("/v1/encodings", data={"model": MODEL}, files={"picture": ("a.png", digit)})
    body = problem(odd, 422, "picture", "images")
    assert [error["field"] for error in body["errors"]] == ["picture"]


@pytest.mark.parametrize(
    "query", ["", "?model=", "?model=gan", "?model=vae-mnist-2d&count=2", f"?model={MODEL}&seed=x"]
)
def test_a_raw_picture_needs_a_good_query(client: httpx.Client, digit: bytes, query: str) -> None:
    """The query of a raw image is validated like the fields of JSON."""
    response = client.post(f"/v1/encodings{query}", content=digit, headers={"Content-Type": "image/png"})
    problem(response, 404 if query == "?model=gan" else 422)


# --- pictures ---


PALETTE = _digit("P")
FOLLOWED: dict[str, tuple[bytes, str | None]] = {
    "grey PNG": (encode_image(_digit()), None),
    "grey JPEG": (encode_image(_digit(), "JPEG", quality=95), None),
    "RGB PNG": (encode_image(_digit("RGB")), "RGB to L"),
    "RGBA PNG": (encode_image(_digit("RGBA")), "RGBA to L, transparency over black"),
    "grey and alpha PNG": (encode_image(_digit("LA")), "LA to L, transparency over black"),
    "palette PNG": (encode_image(PALETTE), "P to L"),
    "palette PNG with a transparent colour": (encode_image(PALETTE, transparency=0), "P to L, transparency over black"),
    "bilevel PNG": (encode_image(_digit("1")), "1 to L"),
    "CMYK JPEG": (encode_image(_digit("CMYK"), "JPEG", quality=95), "CMYK to L"),
    "WebP": (encode_image(_digit("RGB"), "WEBP", lossless=True), "RGB to L"),
    "BMP": (encode_image(_digit(), "BMP"), None),
    "GIF of one frame": (encode_image(_digit(), "GIF"), "P to L"),
    "TIFF": (encode_image(_digit(), "TIFF"), None),
    "CMYK TIFF": (encode_image(_digit("CMYK"), "TIFF"), "CMYK to L"),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_an_image_of_another_mode_is_converted_and_listed(client: httpx.Client, kind: str) -> None:
    """The result is that of the grey image, and `conversions` lists the conversion."""
    data, message = FOLLOWED[kind]
    whole = {"model": MODEL, "seed": 1, "binarization": "threshold"}
    response = client.post("/v1/reconstructions", json={**whole, "images": [b64(data)]})
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.get("conversions") == ([f"images[0]: {message}"] if message else None)
    grey = client.post("/v1/reconstructions", json={**whole, "images": [b64(FOLLOWED["grey PNG"][0])]}).json()
    assert body["images"] == grey["images"]


def _moving(kind: str) -> bytes:
    return encode_image(
        _digit("RGB"), kind, save_all=True, append_images=[Image.new("RGB", (28, 28), "white")], duration=50
    )


REFUSED: dict[str, tuple[bytes, list[str]]] = {
    "nothing": (b"", ["not a picture", "PNG"]),
    "text": (b"<svg/>", ["not a picture", "PNG"]),
    "zeros": (bytes(1000), ["not a picture"]),
    "an ICO": (encode_image(_digit(), "ICO", sizes=[(28, 28)]), ["not a picture"]),
    "of another size": (encode_image(_digit(size=(32, 28))), ["32×28", "28×28"]),
    "a bomb": (_png(60_000, 60_000, 8, 0, bytes(1000)), ["60000×60000", "28×28"]),
    "the largest header": (_png(2**31 - 1, 2**31 - 1, 8, 0, b""), ["28×28"]),
    "a truncated PNG": (encode_image(_digit())[:-40], ["truncated"]),
    "a truncated JPEG": (encode_image(_digit(), "JPEG")[:-20], ["truncated"]),
    "a PNG of a header alone": (encode_image(_digit())[:33], ["picture"]),
    "a moving GIF": (_moving("GIF"), ["animated", "single frame"]),
    "a moving PNG": (_moving("PNG"), ["animated", "single frame"]),
    "a moving WebP": (_moving("WEBP"), ["animated", "single frame"]),
    "a TIFF of pages": (_moving("TIFF"), ["animated", "single frame"]),
    "16-bit grey": (encode_image(Image.fromarray(np.zeros((28, 28), np.uint16))), ["8 bits"]),
    "16-bit RGB": (_png(28, 28, 16, 2, bytes(28 * (1 + 28 * 6))), ["8 bits"]),
    "16-bit grey and alpha": (_png(28, 28, 16, 4, bytes(28 * (1 + 28 * 4))), ["8 bits"]),
    "16-bit RGBA": (_png(28, 28, 16, 6, bytes(28 * (1 + 28 * 8))), ["8 bits"]),
    "32-bit integers": (encode_image(Image.new("I", (28, 28)), "TIFF"), ["8 bits"]),
    "floats": (encode_image(Image.new("F", (28, 28)), "TIFF"), ["8 bits"]),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_picture_that_cannot_be_used_is_refused(client: httpx.Client, kind: str) -> None:
    """An unusable image is 422, with its index, the reason and what would work."""
    data, words = REFUSED[kind]
    good = b64(encode_image(_digit()))
    response = client.post("/v1/encodings", json={"model": MODEL, "images": [good, b64(data)]})
    body = problem(response, 422, "images[1]", *words)
    assert body["errors"][0]["field"] == "images.1"


@pytest.mark.parametrize("text", ["%%%", "iVBORw0KGgo…", "a", "data:image/png;base64,&"])
def test_invalid_base64_is_rejected(client: httpx.Client, text: str) -> None:
    """422 says that base64 was expected."""
    response = client.post("/v1/encodings", json={"model": MODEL, "images": [text]})
    problem(response, 422, "images[0]", "base64")


def test_results_of_many_images_keep_their_order(client: httpx.Client) -> None:
    """Row i of the result belongs to image i, and conversions name their images."""
    bars = []
    for number in range(20):
        bar = Image.new("L", (28, 28))
        bar.paste(255, (number, 4, number + 4, 24))
        bars.append(bar)
    files = [b64(encode_image(bar.convert("RGB" if number == 7 else "L"))) for number, bar in enumerate(bars)]
    whole = {"model": MODEL, "seed": 1, "binarization": "none"}
    body = client.post("/v1/reconstructions", json={**whole, "images": files}).json()
    assert body["conversions"] == ["images[7]: RGB to L"]
    for number in (0, 7, 19):
        alone = client.post("/v1/reconstructions", json={**whole, "images": files[number : number + 1]}).json()
        gap = decode_image_base64(alone["images"][0]).astype(int) - decode_image_base64(body["images"][number]).astype(
            int
        )
        assert abs(gap).max() <= 1


def test_headers_of_a_png_have_the_fields_of_the_json(client: httpx.Client) -> None:
    """The headers of a PNG response have seed, model and conversions."""
    payload = {"model": MODEL, "seed": 9, "images": [b64(encode_image(_digit("RGB")))]}
    response = client.post("/v1/reconstructions", json=payload, headers={"Accept": "image/png"})
    assert decode_image(response.content).shape == (28, 28)
    assert response.headers["reverie-seed"] == "9"
    assert response.headers["reverie-model"] == f"{MODEL}@1"
    assert response.headers["reverie-conversions"] == "images[0]: RGB to L"
    npz = client.post("/v1/reconstructions", json=payload, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(npz.content)) as arrays:
        assert arrays["images"].shape == (1, 1, 28, 28)
        assert list(arrays["conversions"]) == ["images[0]: RGB to L"]
