"""Decodings over HTTP: codes as JSON or NPZ, several results each."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.helpers import (
    ENLARGE,
    MODEL,
    TINY,
    create_job,
    decode_image,
    decode_image_base64,
    finished_job,
    post_samples,
    problem,
)

PATH = "/v1/decodings"
NPZ = {"Content-Type": "application/x-npz"}
CODES = [[0.5, -1.25], [-0.75, 2.0], [3.0, 0.0]]


def npz(**arrays: Any) -> bytes:
    """Return arrays as an NPZ file."""
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def decoded(client: httpx.Client, /, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Return the response for three codes; `fields` replace fields of the body."""
    payload = {"model": MODEL, "codes": CODES, "seed": 5, **fields}
    body = json.dumps({name: value for name, value in payload.items() if value is not None})
    return client.post(PATH, content=body, headers={"Content-Type": "application/json", **(headers or {})})


def test_a_code_gives_the_picture_at_its_place(client: httpx.Client) -> None:
    """Those of the manifold's cells give the manifold; the mean picture depends on no seed."""
    body = decoded(client).json()
    assert set(body) == {"model", "version", "seed", "images"}
    assert [decode_image_base64(image).shape for image in body["images"]] == [(28, 28)] * 3
    assert decoded(client, seed=6).json()["images"] == body["images"]
    grid = client.post("/v1/manifold", json={"model": MODEL, "size": 1}).json()["images"]
    assert decoded(client, codes=[[0.0, 0.0]]).json()["images"] == grid


def test_a_row_depends_on_its_seed_number_and_code_alone(client: httpx.Client) -> None:
    """Not on the other codes of the request, nor on its batch."""
    few = decoded(client, output="draws").json()["images"]
    many = decoded(client, output="draws", codes=CODES * 300).json()["images"]
    assert many[:3] == few
    assert many[3:6] != few  # other draws of the same means
    assert decoded(client, output="draws", codes=CODES[:1]).json()["images"] == few[:1]
    assert decoded(client, output="draws", seed=6).json()["images"] != few
    results = decoded(client, output="draws", count=4).json()["images"]
    assert len(results) == len(set(results)) == 12
    assert results[:4] == decoded(client, output="draws", codes=[CODES[0]] * 4).json()["images"]


def test_encodings_are_codes(client: httpx.Client, digit: bytes) -> None:
    """The mean of an image's code, decoded, is its reconstruction."""
    fields = {"model": MODEL, "seed": "5", "binarization": "threshold"}
    send = {"data": fields, "files": {"images": ("digit.png", digit)}}
    codes = client.post("/v1/encodings", **send).json()["mean"]  # type: ignore[arg-type]
    reconstruction = client.post("/v1/reconstructions", **send).json()["images"]  # type: ignore[arg-type]
    assert decoded(client, codes=codes).json()["images"] == reconstruction


def test_every_way_to_send_codes_means_the_same(client: httpx.Client) -> None:
    """JSON, an NPZ in a form or as the body, an NPY, and text in a form; so does a job."""
    query = {"model": MODEL, "seed": "5", "count": "2"}
    array = np.array(CODES)
    file = io.BytesIO()
    np.save(file, array.astype(np.float32))
    responses = [
        decoded(client, count=2),
        client.post(PATH, params=query, content=npz(codes=array), headers=NPZ),
        client.post(PATH, params=query, content=npz(z=array.astype(np.float32)), headers=NPZ),
        client.post(PATH, params=query, content=file.getvalue(), headers={"Content-Type": "application/octet-stream"}),
        client.post(PATH, data=query, files={"codes": ("codes.npz", npz(codes=array, labels=np.arange(3)))}),
        client.post(PATH, data={**query, "codes": json.dumps(CODES)}),
        client.post(PATH, files={name: (None, text) for name, text in {**query, "codes": json.dumps(CODES)}.items()}),
    ]
    problem(responses.pop(5), 415, "multipart/form-data", "codes")  # urlencoded forms are not read
    job_id = create_job(client, PATH, model=MODEL, seed=5, count=2, codes=CODES)
    job = finished_job(client, job_id)
    assert (job["request"]["count"], job["request"]["codes"], job["kind"]) == (2, 3, "decodings")
    responses.append(client.get(f"/v1/jobs/{job_id}/result"))
    assert [response.status_code for response in responses] == [200] * 7, [one.text[:200] for one in responses]
    assert len({response.content for response in responses}) == 1


def test_the_grid_has_one_line_a_code(client: httpx.Client) -> None:
    """With several results a code; with one the grid is nearly square. NPZ has them in order."""
    lines = decode_image(decoded(client, {"Accept": "image/png"}, count=5).content)
    assert lines.shape == (3 * 28, 5 * 28)
    square = decode_image(decoded(client, {"Accept": "image/png"}).content)
    assert square.shape == (2 * 28, 2 * 28)
    with np.load(io.BytesIO(decoded(client, {"Accept": "application/x-npz"}).content)) as arrays:
        assert (arrays["images"][1, 0] == square[:28, 28:]).all()


def test_a_key_stands_for_its_codes(client: httpx.Client) -> None:
    """The same codes under the same Idempotency-Key are one request; others are rejected."""
    headers = {"Idempotency-Key": "decodings"}
    first = decoded(client, headers)
    assert decoded(client, headers).content == first.content
    problem(decoded(client, headers, codes=CODES[:2]), 422, "another key")


def test_many_codes_become_many_pictures(client: httpx.Client) -> None:
    """An NPZ has as many codes as a request may ask for pictures."""
    codes = np.random.default_rng(1).normal(size=(20000, 2))
    headers = {**NPZ, "Accept": "application/x-npz", "Prefer": "wait=60"}
    response = client.post(PATH, params={"model": MODEL}, content=npz(codes=codes), headers=headers)
    assert response.status_code == 200, response.text
    with np.load(io.BytesIO(response.content)) as arrays:
        assert arrays["images"].shape == (20000, 1, 28, 28)


def test_the_card_says_what_a_code_is(client: httpx.Client) -> None:
    """Its length and range, and which of its numbers matter most."""
    card = client.get(f"/v1/models/{MODEL}").json()
    decodings = card["operations"]["decodings"]
    assert decodings["codes"] == {"sizes": [2], "minimum": -16.0, "maximum": 16.0}
    assert decodings["inputs"] == ["codes"]
    assert {entry["index"] for entry in card["codes"]["active"]} == {0, 1}
    assert all(entry["activity"] > 0.1 for entry in card["codes"]["active"])
    assert card["codes"]["measure"] == "standard deviation of the mean of q(z|x) over 1000 pictures"
    assert card["links"]["decodings"] == PATH


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"codes": None}, ("codes: missing", "a list of 2 numbers", "NPZ")),
        ({"codes": []}, ("codes: there are 0 codes", "1 to 65536")),
        ({"codes": 3}, ("codes: must be a list of codes",)),
        ({"codes": "AAAA"}, ("codes: must be a list of codes",)),
        ({"codes": {"mean": [1, 2]}}, ("codes: must be a list of codes",)),
        ({"codes": [0.5, 1.0]}, ("codes[0]: a code has 2 numbers here", "a list of its own")),
        ({"codes": [[0.5, 1.0], [0.5]]}, ("codes[1]: a code has 2 numbers here, not 1",)),
        ({"codes": [[0.5, 1.0, 2.0]]}, ("codes[0]: a code has 2 numbers here, not 3",)),
        ({"codes": [[0.5, "1"]]}, ("codes[0][1]: must be a number",)),
        ({"codes": [[0.5, True]]}, ("codes[0][1]: must be a number",)),
        ({"codes": [[0.5, None]]}, ("codes[0][1]: must be a number",)),
        ({"codes": [[0.5, 1.0], [16.5, 0.0]]}, ("codes[1][0]: 16.5 is not a number in [-16, 16]",)),
        ({"codes": [[0.5, 1e300]]}, ("codes[0][1]: 1e+300 is not",)),
        ({"codes": [[0.5, 1.0]], "count": 65537}, ("count: 65537",)),
        ({"count": 30000}, ("90000 results are more than the 65536",)),
        ({"count": 0}, ("count: 0",)),
        ({"images": ["AAAA"]}, ("takes `codes` and no images",)),
        ({"image_url": "http://example.com/a.png"}, ("takes `codes` and no images",)),
        ({"mask": "AAAA"}, ("no such field: mask", "codes")),
        ({"output": "other"}, ("options.output",)),
        ({"options": {"codes": CODES}, "codes": None}, ("options.codes: no such option",)),
        ({"model": TINY}, ("tiny cannot do this; it can do: ", "/v1/samples")),
        ({"model": ENLARGE}, ("enlarge cannot do this; it can do: /v1/upscales",)),
    ],
)
def test_bad_codes_are_refused(client: httpx.Client, fields: dict[str, Any], words: tuple[str, ...]) -> None:
    """The problem names the first bad number, and what would work."""
    problem(decoded(client, **fields), 422, *words)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.array([[0.0, np.nan]]), ("codes[0][1]: nan is not a number in [-16, 16]",)),
        (np.array([[0.0, 1.0], [-np.inf, 0.0]]), ("codes[1][0]: -inf is not a number",)),
        (np.zeros((3, 3)), ("the array has the shape (3, 3); (N, 2) would work",)),
        (np.zeros(2), ("the array has the shape (2,)",)),
        (np.zeros((0, 2)), ("there are 0 codes",)),
        (np.zeros((65537, 2), np.uint8), ("there are 65537 codes; send 1 to 65536",)),
        (np.zeros((1 << 22, 2)), ("bytes, 33554432 at most",)),
        (np.array([["a", "b"]]), ("numbers would work",)),
    ],
)
def test_bad_arrays_are_refused(client: httpx.Client, array: np.ndarray, words: tuple[str, ...]) -> None:
    """As bad lists are."""
    response = client.post(PATH, params={"model": MODEL}, content=npz(codes=array), headers=NPZ)
    assert problem(response, 422, *words)["errors"][0]["field"].startswith("codes")


def test_other_bodies_are_refused(client: httpx.Client) -> None:
    """Files that are no arrays, two files, codes sent twice, unknown file fields and pictures."""
    query = {"model": MODEL}
    file = ("codes.npz", npz(codes=np.array(CODES)))
    problem(client.post(PATH, params=query, content=b"PK", headers=NPZ), 422, "neither an NPZ nor an NPY")
    problem(
        client.post(PATH, params=query, content=b"x", headers={"Content-Type": "image/png"}), 415, "application/x-npz"
    )
    problem(client.post(PATH, data=query, files=[("codes", file)] * 2), 422, "sent twice")
    problem(client.post(PATH, data={**query, "codes": "[[1, 2]]"}, files={"codes": file}), 422, "sent twice")
    problem(client.post(PATH, data=query, files={"images": file}), 422, "no file field 'images'", "`codes`")
    problem(client.post(PATH, params={**query, "colour": "red"}, content=file[1], headers=NPZ), 422, "colour")
    large = [[0.5, 0.5]] * 40000
    problem(decoded(client, codes=large), 400, "more than 65536 values")
    assert post_samples(client).status_code == 200
