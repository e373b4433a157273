"""The operations over HTTP, on a real service."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import png
from tests.api.helpers import (
    FAULTY,
    MODEL,
    b64,
    decode_image,
    decode_image_base64,
    encode_image,
    finished_job,
    post_samples,
    problem,
)
from tests.stack import Stack

ASYNC = {"Prefer": "respond-async"}


def test_samples_come_as_json_with_pngs(client: httpx.Client) -> None:
    """JSON has one PNG per sample, of the model's size, and the seed and version that made them."""
    response = post_samples(client, count=2, seed=3)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"model", "version", "seed", "images"}
    assert (body["model"], body["version"], body["seed"]) == (MODEL, "1", 3)
    pictures = [decode_image_base64(image) for image in body["images"]]
    assert [picture.shape for picture in pictures] == [(28, 28)] * 2
    assert pictures[0].std() > 10  # something is drawn


def test_same_seed_same_bytes(client: httpx.Client) -> None:
    """A row depends only on its seed and number, not on the count, the batch or repetition."""
    eight = post_samples(client, count=8, seed=11).json()["images"]
    four = post_samples(client, count=4, seed=11).json()["images"]
    many = post_samples(client, count=2000, seed=11).json()["images"]
    assert eight[:4] == four
    assert many[:8] == eight
    assert len(set(many)) > 1900


def test_one_result_in_three_media_types(client: httpx.Client) -> None:
    """JSON, a PNG grid and NPZ of one request contain the same pixels."""
    plain = post_samples(client, count=5, seed=3)
    grid = post_samples(client, {"Accept": "image/png"}, count=5, seed=3)
    arrays = post_samples(client, {"Accept": "application/x-npz"}, count=5, seed=3)
    assert [one.headers["content-type"] for one in (grid, arrays)] == ["image/png", "application/x-npz"]
    assert "Accept" in plain.headers["vary"]
    assert grid.headers["reverie-seed"] == "3"
    with np.load(io.BytesIO(arrays.content)) as kept:
        pixels = kept["images"]
        assert int(kept["seed"]) == 3
        assert (str(kept["model"]), str(kept["version"])) == (MODEL, "1")
    assert (pixels.shape, pixels.dtype) == ((5, 1, 28, 28), np.uint8)
    assert (decode_image_base64(plain.json()["images"][4]) == pixels[4, 0]).all()
    sheet = decode_image(grid.content)
    assert sheet.shape == (2 * 28, 3 * 28)
    assert (sheet[28:, 28:56] == pixels[4, 0]).all()
    one = post_samples(client, {"Accept": "image/*"}, seed=3)
    assert (decode_image(one.content) == pixels[0, 0]).all()


def test_a_form_there_is_none_of_is_refused(client: httpx.Client, digit: bytes) -> None:
    """An unavailable media type gets 406 with those available; numbers have no PNG."""
    problem(post_samples(client, {"Accept": "text/html"}), 406, "image/png", "application/json")
    payload = {"model": MODEL, "images": [b64(digit)]}
    response = client.post("/v1/energies", json=payload, headers={"Accept": "image/png"})
    problem(response, 406, "application/x-npz")


def test_the_manifold_is_a_grid(client: httpx.Client) -> None:
    """The manifold has size² images, row by row; as PNG, one square grid."""
    payload = {"model": MODEL, "size": 4, "seed": 0}
    images = client.post("/v1/manifold", json=payload).json()["images"]
    sheet = decode_image(client.post("/v1/manifold", json=payload, headers={"Accept": "image/png"}).content)
    assert len(images) == 16
    assert sheet.shape == (112, 112)
    assert (sheet[28:56, 56:84] == decode_image_base64(images[6])).all()
    problem(client.post("/v1/manifold", json={"model": MODEL, "size": 65}), 422, "size", "64")


def test_encodings_have_mean_and_standard_deviation(client: httpx.Client, digit: bytes) -> None:
    """Encodings have one row per image and one column per latent dimension."""
    body = client.post("/v1/encodings", json={"model": MODEL, "images": [b64(digit)] * 3}).json()
    assert set(body) == {"model", "version", "seed", "mean", "standard_deviation", "binarization"}
    assert np.shape(body["mean"]) == np.shape(body["standard_deviation"]) == (3, 2)
    assert np.min(body["standard_deviation"]) > 0


def test_reconstructions_are_pictures(client: httpx.Client, digit: bytes) -> None:
    """There is one reconstruction per image, and it resembles the image."""
    body = client.post("/v1/reconstructions", json={"model": MODEL, "images": [b64(digit)] * 2}).json()
    assert set(body) == {"model", "version", "seed", "images", "binarization"}
    assert len(body["images"]) == 2
    pixels = decode_image_base64(body["images"][0]).astype(float)
    assert pixels[8:20, 12:16].mean() > pixels[8:20, :6].mean() + 50


def test_interpolations_walk_from_the_first_image_to_the_second(client: httpx.Client, digit: bytes) -> None:
    """An interpolation has `steps` images; the first and last are the reconstructions of the two
    inputs.
    """
    other = encode_image(Image.open(io.BytesIO(digit)).rotate(90))
    whole = {"model": MODEL, "images": [b64(digit), b64(other)], "seed": 1, "binarization": "threshold"}
    body = client.post("/v1/interpolations", json={**whole, "steps": 5}).json()
    assert len(body["images"]) == 5
    ends = client.post("/v1/reconstructions", json=whole).json()["images"]
    for end, picture in zip(ends, (body["images"][0], body["images"][-1]), strict=True):
        assert abs(decode_image_base64(end).astype(int) - decode_image_base64(picture).astype(int)).max() <= 1
    assert body["images"][0] != body["images"][-1]


def test_energies_have_a_unit(client: httpx.Client, digit: bytes) -> None:
    """There is one energy per image and a unit; noise has more energy than a digit."""
    noise = np.random.default_rng(0).integers(0, 2, (1, 28, 28), np.uint8) * 255
    body = client.post("/v1/energies", json={"model": MODEL, "images": [b64(digit), b64(png(noise))]}).json()
    assert set(body) == {"model", "version", "seed", "energies", "unit", "binarization"}
    assert body["unit"] == "nats"
    assert body["energies"][0] < body["energies"][1]


def test_likelihoods_say_how_sure_they_are(client: httpx.Client, digit: bytes) -> None:
    """The result has log p, standard error and effective sample size of each image, and K."""
    payload = {"model": MODEL, "images": [b64(digit)] * 2, "k": 200, "seed": 2}
    body = client.post("/v1/likelihoods", json=payload).json()
    names = {"log_p", "standard_error", "effective_sample_size", "k", "unit", "binarization"}
    assert set(body) == {"model", "version", "seed", *names}
    assert body["k"] == 200
    assert len(body["log_p"]) == len(body["standard_error"]) == 2
    assert all(-1000 < one < 0 for one in body["log_p"])
    assert all(1 <= size <= 200 for size in body["effective_sample_size"])


def test_a_models_rejection_is_returned(client: httpx.Client) -> None:
    """A ValueError of a model is 422 with its message; another exception is 500 with its name."""
    problem(client.post("/v1/samples", json={"model": FAULTY, "seed": 14}), 422, "seed 14 is not for this model")
    body = problem(client.post("/v1/samples", json={"model": FAULTY, "seed": 13}), 500, "RuntimeError", "bad luck")
    assert body["title"] == "Model failed"


# --- synchronous and asynchronous requests ---


def test_a_request_may_ask_for_a_job_at_once(client: httpx.Client) -> None:
    """`respond-async` returns 202 with the job's URL; the job's result equals the synchronous
    response.
    """
    response = post_samples(client, ASYNC, count=3, seed=21)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(response.headers["retry-after"]) >= 1
    assert response.headers["preference-applied"] == "respond-async"
    assert job["status"] == "queued"
    assert (job["kind"], job["model"], job["progress"], job["problem"]) == ("samples", MODEL, 0, None)
    assert job["request"] == {"model": f"{MODEL}@1", "seed": 21, "options": job["request"]["options"], "count": 3}
    assert job["created_at"].endswith("+00:00")
    done = finished_job(client, job["id"])
    assert (done["status"], done["progress"]) == ("succeeded", 1)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    for media in ("application/json", "image/png", "application/x-npz"):
        result = client.get(job["links"]["result"], headers={"Accept": media})
        assert result.headers["content-type"] == media
        assert result.content == post_samples(client, {"Accept": media}, count=3, seed=21).content


def test_a_request_waits_no_longer_than_it_may(client: httpx.Client) -> None:
    """With `wait=1`, a request of four seconds gets 202 after one second, and its job ends with the
    same bytes.
    """
    fields = {"model": FAULTY, "seed": 31}
    started = time.monotonic()
    payload = {**fields, "seconds": 4}
    response = client.post("/v1/samples", json=payload, headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 4
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "wait=1"
    job = response.json()
    assert job["status"] == "running"
    done = finished_job(client, job["id"])
    assert (done["status"], done["attempts"]) == ("succeeded", 0)
    for media in ("application/json", "image/png", "application/x-npz"):
        form = {"Accept": media}
        result, direct = (
            client.get(job["links"]["result"], headers=form),
            client.post("/v1/samples", json=fields, headers=form),
        )
        assert result.content == direct.content


@pytest.mark.parametrize(
    ("headers", "applied"),
    [
        ([], None),
        ([("Prefer", "wait=5")], "wait=5"),
        ([("Prefer", "Wait = 5")], "wait=5"),
        ([("Prefer", "wait=100000")], "wait=60"),
        ([("Prefer", "respond-async, wait=5")], "wait=5"),
        ([("Prefer", "return=minimal"), ("Prefer", 'wait="5"')], "wait=5"),
        ([("Prefer", "return=minimal, awaits=3")], None),
    ],
)
def test_an_applied_preference_is_named(
    client: httpx.Client, headers: list[tuple[str, str]], applied: str | None
) -> None:
    """Preference-Applied has the preference that was applied, reduced to the maximum; unknown
    preferences are ignored.
    """
    response = client.post("/v1/samples", json={"model": MODEL, "seed": 1}, headers=headers)
    assert response.status_code == 200
    assert response.headers.get("preference-applied") == applied
    assert "Prefer" in response.headers["vary"]


def test_wait_zero_is_a_job_at_once(client: httpx.Client) -> None:
    """`Prefer: wait=0` returns 202."""
    response = post_samples(client, {"Prefer": "wait=0"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "wait=0")


# --- idempotency keys ---


def test_a_repeated_request_is_computed_once(client: httpx.Client) -> None:
    """A retry with the same Idempotency-Key, quoted or not, returns the same seed and bytes, in any
    media type.
    """
    headers = {"Idempotency-Key": "once-1"}
    first = post_samples(client, headers, count=2)
    assert first.status_code == 200
    for key in ("once-1", '"once-1"'):
        again = post_samples(client, {"Idempotency-Key": key}, count=2)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["content-location"] == first.headers["content-location"]
    ranged = post_samples(client, {**headers, "Range": "bytes=0-9", "If-None-Match": "*"}, count=2)
    assert (ranged.status_code, ranged.content) == (200, first.content)  # both headers are for GET only
    job = client.get(first.headers["content-location"].removesuffix("/result")).json()
    assert job["seed"] == first.json()["seed"]
    picture = post_samples(client, {**headers, "Accept": "image/png"}, count=2)
    assert picture.headers["reverie-seed"] == str(job["seed"])


def test_a_repeated_upload_is_recognised(client: httpx.Client, digit: bytes) -> None:
    """A retried form is recognised although its boundary differs; other pixels under the key are
    rejected.
    """
    headers = {"Idempotency-Key": "upload-1"}

    def send(file: bytes) -> httpx.Response:
        return client.post("/v1/encodings", data={"model": MODEL}, files={"images": ("a.png", file)}, headers=headers)

    first = send(digit)
    assert first.status_code == 200
    assert send(digit).content == first.content
    problem(send(_changed(digit)), 422, "upload-1", "another key")


def test_a_key_belongs_to_one_body_and_route(client: httpx.Client) -> None:
    """Another body under a used Idempotency-Key is 422 with the first job's id; on another route
    the key is new.
    """
    headers = {"Idempotency-Key": "once-2"}
    first = post_samples(client, headers, count=1)
    body = problem(post_samples(client, headers, count=2), 422, "once-2", "another key")
    assert body["job_id"] in first.headers["content-location"]
    other = client.post("/v1/manifold", json={"model": MODEL, "size": 1}, headers=headers)
    assert other.status_code == 200


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "tab\tbed"])
def test_a_key_has_a_form(client: httpx.Client, key: str) -> None:
    """An invalid Idempotency-Key is 400, which says what is valid."""
    problem(post_samples(client, {"Idempotency-Key": key}), 400, "255")


def test_requests_at_the_same_time_are_one(client: httpx.Client, stack: Stack) -> None:
    """Eight concurrent requests with one Idempotency-Key get one job and the same bytes."""

    def send(_number: int) -> tuple[int, bytes, str]:
        with httpx.Client(base_url=stack.url, timeout=60) as own:
            payload = {"model": FAULTY, "seconds": 0.3}
            response = own.post("/v1/samples", json=payload, headers={"Idempotency-Key": "crowd"})
            return response.status_code, response.content, response.headers["content-location"]

    with ThreadPoolExecutor(8) as pool:
        responses = set(pool.map(send, range(8)))
    assert len(responses) == 1
    assert responses.pop()[0] == 200


def test_a_repeated_request_finds_the_running_job(client: httpx.Client) -> None:
    """A retry of a running request returns the same 202, or waits for the result."""
    headers = {"Idempotency-Key": "running", **ASYNC}
    payload = {"model": FAULTY, "seconds": 0.7}
    first, second = (client.post("/v1/samples", json=payload, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == second.headers["location"]
    waited = client.post("/v1/samples", json=payload, headers={"Idempotency-Key": "running"})
    assert waited.headers["content-location"] == f"{first.headers['location']}/result"


def test_a_failure_is_returned_again(client: httpx.Client) -> None:
    """A retry of a failed request returns the same problem, without computing again."""
    for seed, status in ((13, 500), (14, 422)):
        before = _failures(client)
        headers = {"Idempotency-Key": f"fails-{seed}"}
        responses = [
            client.post("/v1/samples", json={"model": FAULTY, "seed": seed}, headers=headers) for _ in range(2)
        ]
        first, second = (problem(response, status, f"seed {seed}") for response in responses)
        assert {**first, "request_id": 0} == {**second, "request_id": 0}
        assert len(_failures(client)) == len(before) + 1


def test_a_deleted_job_frees_its_key(client: httpx.Client) -> None:
    """After its job is deleted, an Idempotency-Key can be used for another request."""
    headers = {"Idempotency-Key": "forgotten"}
    first = post_samples(client, headers)
    assert client.delete(first.headers["content-location"].removesuffix("/result")).status_code == 204
    second = post_samples(client, headers, count=2)
    assert second.status_code == 200
    assert second.headers["content-location"] != first.headers["content-location"]


def _failures(client: httpx.Client) -> list[Any]:
    payload: dict[str, str | int] = {"model": FAULTY, "status": "failed", "limit": 100}
    data: list[Any] = client.get("/v1/jobs", params=payload).json()["data"]
    assert len(data) < 100
    return data


def _changed(digit: bytes) -> bytes:
    return png(255 - decode_image(digit)[None])
