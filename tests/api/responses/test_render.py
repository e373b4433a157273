"""Content negotiation, rendering and range requests of results, without a service."""

import hashlib
import io
import json
import tempfile
import tracemalloc
from typing import Any

import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from api.errors import NotAcceptableError, RangeError
from api.responses.render import (
    JSON,
    NPZ,
    PNG,
    ResultMetadata,
    evaluate_range_headers,
    negotiate,
    render,
    with_acceptance_rate,
    write,
)
from core.broker.codec import Fields
from core.catalog.operations import BY_METHOD
from core.imaging.pictures import png
from tests.api.helpers import decode_image

PICTURES, NUMBERS = BY_METHOD["sample"], BY_METHOD["energy"]
DATA = bytes(range(100))


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("Application/JSON", JSON),
        ("image/png", PNG),
        ("image/*", PNG),
        ("application/*", JSON),
        ("application/x-npz", NPZ),
        ("application/npz", NPZ),
        ("image/png, */*", PNG),
        ("image/png, */*;q=0.1", PNG),
        ("application/json;q=0.5, image/png;q=0.4", JSON),
        ("application/json;q=0.4, image/png; q=0.5", PNG),
        ("application/json;q=0, */*", PNG),
        ("text/html, application/xhtml+xml, image/webp, */*;q=0.8", JSON),
        ("image/webp, image/png;q=0.9, text/html", PNG),
        ("application/json;charset=utf-8", JSON),
    ],
)
def test_the_most_preferred_media_type_is_chosen(accept: str, media: str) -> None:
    """The media type with the highest quality is chosen; among equals, the most specific range
    counts, then JSON before PNG and NPZ.
    """
    assert negotiate(accept, PICTURES) == media


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "application/json;q=0", "*/*;q=0", "*/*;q=x", "nonsense"]
)
def test_a_form_there_is_none_of_is_refused(accept: str) -> None:
    """An `Accept` header without an available media type is rejected, and the error lists those
    available.
    """
    with pytest.raises(NotAcceptableError, match="image/png"):
        negotiate(accept, PICTURES)


def test_numbers_have_no_png() -> None:
    """A result without images is available as JSON or NPZ only."""
    assert negotiate("image/png, application/x-npz;q=0.1", NUMBERS) == NPZ
    with pytest.raises(NotAcceptableError, match="application/x-npz, not as image/png"):
        negotiate("image/png", NUMBERS)


def test_every_form_carries_the_same_pixels() -> None:
    """JSON, the PNG grid and NPZ contain the model's pixels; JSON and NPZ have its seed and name,
    too.
    """
    pixels = np.arange(3 * 1 * 4 * 4, dtype=np.uint8).reshape(3, 1, 4, 4)
    metadata = ResultMetadata("m", "2", 2**63 - 1, ("images[0]: RGB to L",))
    body = json.loads(render({"images": pixels}, metadata, JSON))
    assert (body["model"], body["version"], body["seed"]) == ("m", "2", 2**63 - 1)
    assert body["conversions"] == ["images[0]: RGB to L"]
    pngs = [png(one) for one in pixels]
    for media in (JSON, PNG, NPZ):
        assert render({"images": pngs}, metadata, media) == render({"images": pixels}, metadata, media)
    sheet = decode_image(render({"images": pixels}, metadata, PNG))
    assert sheet.shape == (8, 8)
    assert (sheet[:4, 4:] == pixels[1, 0]).all()
    assert (sheet[4:, 4:] == 0).all()  # the empty cell
    assert (decode_image(render({"images": pixels[:1]}, metadata, PNG)) == pixels[0, 0]).all()
    with np.load(io.BytesIO(render({"images": pixels}, metadata, NPZ))) as arrays:
        assert (arrays["images"] == pixels).all()
        assert (str(arrays["model"]), int(arrays["seed"])) == ("m", 2**63 - 1)
        assert list(arrays["conversions"]) == ["images[0]: RGB to L"]
    assert metadata.headers({})["Reverie-Conversions"] == "images[0]: RGB to L"


def test_rendering_twice_gives_the_same_bytes() -> None:
    """Rendering is deterministic, because the ETag is a hash of the body."""
    fields = {"log_p": np.array([-1.5, -2.5]), "k": 10}
    metadata = ResultMetadata("m", "1", 0)
    assert render(fields, metadata, NPZ) == render(fields, metadata, NPZ)
    assert json.loads(render(fields, metadata, JSON))["log_p"] == [-1.5, -2.5]


def test_a_grid_may_have_so_many_columns() -> None:
    """The number of columns of a PNG grid can be set: here three images in one line."""
    pixels = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 1, 4, 4)
    assert decode_image(render({"images": pixels}, ResultMetadata("m", "1", 0, columns=3), PNG)).shape == (4, 12)


def test_numbered_fields_are_one_list_in_json() -> None:
    """JSON joins `layers.0` … `layers.10` to a list in numeric order, whatever their widths; NPZ
    keeps the names.
    """
    fields: dict[str, Any] = {
        f"layers.{number}": np.full((2, number + 1), number, np.float32) for number in (10, 1, 0, 2)
    }
    fields |= {"log.p": np.zeros(2, np.float32), "unit": "nats"}
    body = json.loads(render(fields, ResultMetadata("m", "1", 0), JSON))
    assert [layer[0] for layer in body["layers"]] == [[0.0], [1.0] * 2, [2.0] * 3, [10.0] * 11]
    assert (body["log.p"], body["unit"]) == ([0.0, 0.0], "nats")
    with np.load(io.BytesIO(render(fields, ResultMetadata("m", "1", 0), NPZ))) as arrays:
        assert arrays["layers.10"].shape == (2, 11)


def test_the_acceptance_rate_covers_all_rows() -> None:
    """The acceptance rate is all accepted rows over all proposals, not the mean of the rows' rates;
    it is omitted without proposals.
    """
    fields = {"accepted": np.array([True, True, False]), "proposals": np.array([1, 3, 4])}
    assert with_acceptance_rate(fields)["acceptance_rate"] == 0.25
    assert ResultMetadata("m", "1", 0).headers(with_acceptance_rate(fields))["Reverie-Acceptance-Rate"] == "0.25"
    assert with_acceptance_rate({**fields, "proposals": np.zeros(3, np.int64)}).keys() == fields.keys()
    assert with_acceptance_rate({"accepted": np.array([True])}).keys() == {"accepted"}


def _request(**headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "headers": pairs})


def ranged(request: Request, data: bytes, media: str, headers: dict[str, str]) -> Response:
    """Return the response with `data` to a request that may have a range or a condition."""
    status, begin, end, headers = evaluate_range_headers(request, len(data), hashlib.sha256(data).hexdigest(), headers)
    return Response(data[begin:end], status, headers, media)


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("bytes=0-0", (0, 0)),
        ("bytes=10-19", (10, 19)),
        ("bytes=90-", (90, 99)),
        ("bytes=90-900", (90, 99)),
        ("bytes=-7", (93, 99)),
        ("bytes=-700", (0, 99)),
    ],
)
def test_a_range_gives_that_part(wanted: str, part: tuple[int, int]) -> None:
    """A range gets 206 with the requested bytes and `Content-Range`."""
    response = ranged(_request(range=wanted), DATA, NPZ, {})
    assert response.status_code == 206
    assert response.body == DATA[part[0] : part[1] + 1]
    assert response.headers["content-range"] == f"bytes {part[0]}-{part[1]}/100"


@pytest.mark.parametrize(
    "wanted", ["", "bytes=-", "items=0-1", "bytes=0-1,5-6", "bytes=a-b", f"bytes=0-{'9' * 5000}", "bytes=²-³"]
)
def test_a_range_of_another_shape_is_ignored(wanted: str) -> None:
    """A range that is malformed or has several parts gets the whole result, as RFC 9110 allows."""
    response = ranged(_request(range=wanted), DATA, NPZ, {})
    assert (response.status_code, response.body) == (200, DATA)
    assert response.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("wanted", ["bytes=100-", "bytes=200-300", "bytes=-0", "bytes=9-3"])
def test_a_range_outside_is_refused(wanted: str) -> None:
    """A range that cannot be satisfied gets 416 with the length of the result."""
    with pytest.raises(RangeError) as caught:
        ranged(_request(range=wanted), DATA, NPZ, {})
    assert caught.value.headers["Content-Range"] == "bytes */100"


def test_a_known_result_is_not_sent_again() -> None:
    """`If-None-Match` with the ETag (weak, in a list, or `*`) gets 304; another ETag gets the
    result.
    """
    tag = ranged(_request(), DATA, NPZ, {}).headers["etag"]
    for seen in (tag, f'"x", {tag}', f"W/{tag}", "*"):
        response = ranged(_request(if_none_match=seen), DATA, NPZ, {})
        assert (response.status_code, response.body, response.headers["etag"]) == (304, b"", tag)
    assert ranged(_request(if_none_match='"x"'), DATA, NPZ, {}).status_code == 200
    assert ranged(_request(), DATA + b"!", NPZ, {}).headers["etag"] != tag


def test_a_download_resumes_only_on_the_same_result() -> None:
    """`If-Range` with the ETag gets the range; another ETag gets the whole result."""
    tag = ranged(_request(), DATA, NPZ, {}).headers["etag"]
    assert ranged(_request(range="bytes=50-", if_range=tag), DATA, NPZ, {}).status_code == 206
    assert ranged(_request(range="bytes=50-", if_range='"x"'), DATA, NPZ, {}).body == DATA


@pytest.mark.parametrize(
    ("media", "rows", "most_bytes"), [(JSON, 10_000, 2 << 20), (PNG, 10_000, 2 << 20), (NPZ, 60_000, 36 << 20)]
)
def test_a_large_body_is_written_in_little_memory(media: str, rows: int, most_bytes: int) -> None:
    """A body written to a file needs less memory than its images and has the same bytes as
    `render`.
    """
    pixels = np.random.default_rng(0).integers(0, 2, (rows, 1, 28, 28), np.uint8)
    fields = {"images": pixels, "energies": np.arange(len(pixels), dtype=np.float32), "unit": "nats"}
    metadata = ResultMetadata("m", "1", 3, ("grey",))
    with tempfile.TemporaryFile() as file:
        tracemalloc.start()
        write(file, fields, metadata, media)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most_bytes
        file.seek(0)
        assert file.read() == render(fields, metadata, media)


def test_a_written_body_equals_the_rendered_one() -> None:
    """`write` and `render` give the same bytes for every kind of field and for row counts around
    the chunk size.
    """
    draw = np.random.default_rng(0)
    for rows in (0, 1, 2, 255, 256, 257, 600):
        fields: Fields = {
            "images": draw.integers(0, 256, (rows, 3, 4, 5), np.uint8),
            "z.1": draw.normal(size=(rows, 3)).astype(np.float32),
            "z.0": draw.normal(size=(rows, 2)),
            "accepted": draw.integers(0, 2, rows).astype(bool),
            "energies": np.full(rows, np.nan, np.float32),
            "unit": "nats",
        }
        for media in (JSON, PNG, NPZ) if rows else (JSON, NPZ):
            for images in (fields["images"], [png(pixels) for pixels in fields["images"]]):
                if rows == 0 and isinstance(images, list) and media == NPZ:
                    continue
                out = io.BytesIO()
                metadata = ResultMetadata("m", "1", 3, ("grey", "größer"), 7)
                write(out, {**fields, "images": images}, metadata, media)
                assert out.getvalue() == render({**fields, "images": images}, metadata, media)
