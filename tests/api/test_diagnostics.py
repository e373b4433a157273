"""Diagnostics in results, for any family: acceptance rates, importance weights, layers, and
previews of long jobs.
"""

import io
import json
import time
from itertools import pairwise
from typing import Any

import httpx
import numpy as np

from core.imaging.pictures import png
from tests.api.helpers import (
    TINY,
    b64,
    create_job,
    decode_image,
    decode_image_base64,
    finished_job,
    job_when,
    post_samples,
    problem,
)

IMAGE = b64(png(np.arange(64, dtype=np.uint8).reshape(1, 8, 8)))


def tiny(client: httpx.Client, /, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    """Return the response to a request for samples of the family `tiny`."""
    return client.post("/v1/samples", json={"model": TINY, "seed": 3, **fields}, headers=headers)


# --- rejection ---


def test_samples_drawn_by_rejection_say_how_many_it_took(client: httpx.Client) -> None:
    """Each row has `accepted` and `proposals`; the request has their ratio, in every media type."""
    body = tiny(client, count=40, threshold=0.3).json()
    assert all(np.mean(decode_image_base64(image)) < 0.31 * 255 for image in _accepted(body))
    assert 0 < sum(body["accepted"]) < 40
    assert all(1 <= number <= 8 for number in body["proposals"])
    rate = sum(body["accepted"]) / sum(body["proposals"])
    assert body["acceptance_rate"] == rate
    assert abs(rate - 0.3) < 0.15
    arrays = tiny(client, {"Accept": "application/x-npz"}, count=40, threshold=0.3)
    with np.load(io.BytesIO(arrays.content)) as kept:
        assert kept["accepted"].dtype == bool
        assert kept["proposals"].tolist() == body["proposals"]
        assert float(kept["acceptance_rate"]) == rate
    picture = tiny(client, {"Accept": "image/png"}, count=40, threshold=0.3)
    assert float(picture.headers["reverie-acceptance-rate"]) == round(rate, 6)


def test_a_job_has_the_same_result_as_a_synchronous_request(client: httpx.Client) -> None:
    """The acceptance rate of a job covers all its slices, as that of a synchronous response."""
    payload = {"model": TINY, "seed": 3, "count": 3000, "threshold": 0.3}
    job_id = create_job(client, "/v1/samples", **payload)
    finished_job(client, job_id)
    result = client.get(f"/v1/jobs/{job_id}/result")
    assert result.content == tiny(client, count=3000, threshold=0.3).content
    assert float(result.headers["reverie-acceptance-rate"]) == round(result.json()["acceptance_rate"], 6)


def test_a_threshold_that_no_sample_meets_still_returns(client: httpx.Client) -> None:
    """If no proposal is accepted, the request ends after all proposals with an acceptance rate of
    0.
    """
    response = tiny(client, count=5, threshold=0.0)
    body = response.json()
    assert response.elapsed.total_seconds() < 5
    assert (body["accepted"], body["proposals"], body["acceptance_rate"]) == ([False] * 5, [8] * 5, 0.0)
    assert len(body["images"]) == 5
    assert response.headers["reverie-acceptance-rate"] == "0"


def test_other_operations_have_no_acceptance_fields(client: httpx.Client) -> None:
    """Samples without rejection have no acceptance rate."""
    for response in (tiny(client), post_samples(client)):
        assert "acceptance_rate" not in response.json()
        assert "reverie-acceptance-rate" not in response.headers


def _accepted(body: dict[str, Any]) -> list[str]:
    return [image for image, kept in zip(body["images"], body["accepted"], strict=True) if kept]


# --- fields of results ---


def test_fields_of_any_name_pass_through(client: httpx.Client) -> None:
    """Per-row numbers are lists, per-model numbers are scalars, and non-finite numbers are null."""
    payload = {"model": TINY, "seed": 3, "images": [IMAGE, IMAGE]}
    body = client.post("/v1/likelihoods", json=payload).json()
    assert (body["log_z"], body["log_z_standard_error"], body["k"]) == (-1.25, 0.5, 10)
    assert [len(body[name]) for name in ("log_p", "effective_sample_size")] == [2, 2]
    assert body["log_p_star"] == [None, None]
    response = client.post("/v1/likelihoods", json=payload, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(response.content)) as kept:
        assert float(kept["log_z"]) == -1.25
        assert kept["log_p"].shape == (2,)
        assert np.isneginf(kept["log_p_star"]).all()


def test_a_sample_size_beyond_the_limit_is_refused(client: httpx.Client) -> None:
    """An option outside its range is 422, with the option and the limit."""
    payload = {"model": TINY, "images": [IMAGE]}
    problem(client.post("/v1/likelihoods", json={**payload, "k": 1001}), 422, "options.k", "1000")
    problem(client.post("/v1/likelihoods", json={**payload, "k": 1}), 422, "options.k", "2")
    problem(tiny(client, steps=501), 422, "options.steps", "500")


def test_layers_are_a_list_of_layers(client: httpx.Client) -> None:
    """JSON has a list of layers, each with one code per image; NPZ has one array per layer."""
    payload = {"model": TINY, "images": [IMAGE] * 4, "seed": 1}
    body = client.post("/v1/encodings", json=payload).json()
    assert set(body) == {"model", "version", "seed", "layers"}
    assert [np.shape(layer) for layer in body["layers"]] == [(4, 3), (4, 2)]
    response = client.post("/v1/encodings", json=payload, headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(response.content)) as kept:
        for number, layer in enumerate(body["layers"]):
            np.testing.assert_allclose(kept[f"layers.{number}"], layer, rtol=1e-6)


# --- long runs ---


def test_a_long_run_can_be_watched(client: httpx.Client) -> None:
    """Events announce previews, at most two a second; the link leads to an image of the current
    state.
    """
    job_id = create_job(client, "/v1/samples", model=TINY, count=4, steps=60, seconds=0.05, seed=3)
    here = f"/v1/jobs/{job_id}"
    shown: list[tuple[float, float]] = []
    with client.stream("GET", f"{here}/events") as stream:
        assert stream.status_code == 200
        kind = ""
        for line in stream.iter_lines():
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            if kind == "preview" and line.startswith("data: "):
                link = json.loads(line.removeprefix("data: "))["link"]
                assert link == f"{here}/preview"
                picture = client.get(link)
                if picture.status_code == 200:
                    assert picture.headers["content-type"] == "image/png"
                    assert picture.headers["cache-control"] == "no-store"
                    assert decode_image(picture.content).shape == (16, 16)
                    shown.append((time.monotonic(), float(decode_image(picture.content).mean())))
    assert len(shown) >= 3
    assert len(shown) <= 2 + 2 * (shown[-1][0] - shown[0][0])
    assert [brightness for _, brightness in shown] == sorted(brightness for _, brightness in shown)
    assert min(b[0] - a[0] for a, b in pairwise(shown)) > 0.3
    problem(client.get(f"{here}/preview"), 404, "succeeded")
    result = client.get(f"{here}/result").json()
    assert result["images"] == tiny(client, count=4).json()["images"]


def test_a_request_that_became_a_job_can_be_watched_too(client: httpx.Client) -> None:
    """A request that became a job has a preview; cancelling it stops the work and removes the
    preview.
    """
    payload = {"model": TINY, "steps": 500, "seconds": 0.05, "seed": 3}
    job = client.post("/v1/samples", json=payload, headers={"Prefer": "wait=1"}).json()
    assert job["links"]["preview"] == f"/v1/jobs/{job['id']}/preview"
    job_when(client, job["id"], lambda job: job["progress"] > 0)
    picture = client.get(job["links"]["preview"])
    assert picture.status_code == 200
    assert decode_image(picture.content).shape == (8, 8)
    started = time.monotonic()
    assert client.post(job["links"]["cancel"]).json()["status"] == "cancelled"
    assert tiny(client).status_code == 200
    assert time.monotonic() - started < 10  # the whole job takes 25 s
    problem(client.get(job["links"]["preview"]), 404, "cancelled")


def test_a_watched_run_is_cancelled_between_two_slices(client: httpx.Client) -> None:
    """A long job stops when it is cancelled, long before its end, and the worker is free."""
    job_id = create_job(client, "/v1/samples", model=TINY, steps=500, seconds=0.06)
    job_when(client, job_id, lambda job: 0 < job["progress"] < 0.5)
    started = time.monotonic()
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert tiny(client).status_code == 200
    assert time.monotonic() - started < 10  # the whole job takes 30 s
    events = client.get(f"/v1/jobs/{job_id}/events").text
    assert events.rstrip().endswith('data: {"status":"cancelled"}')


def test_a_run_without_pictures_has_no_preview(client: httpx.Client) -> None:
    """The preview of a job without one is 404."""
    job_id = create_job(client, "/v1/samples", model=TINY, seconds=0.5)
    problem(client.get(f"/v1/jobs/{job_id}/preview"), 404, "no preview")
    finished_job(client, job_id)
