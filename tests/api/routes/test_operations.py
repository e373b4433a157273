"""The operations, models and jobs over HTTP, on a real service."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from core.imaging.pictures import png
from core.jobs.store import JobStore
from tests.api.telling import (
    ENLARGE,
    FAULTY,
    MODEL,
    TINY,
    b64,
    encoded,
    ended,
    opened,
    opened_text,
    problem,
    promised,
    reached,
    samples,
)
from tests.stack import Stack

ASYNC = {"Prefer": "respond-async"}


# --- operations ---


def test_samples_come_as_json_with_pngs(client: httpx.Client) -> None:
    """Two samples are two PNGs of the model's size, with the seed and the version that made them."""
    answer = samples(client, count=2, seed=3)
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"model", "version", "seed", "images"}
    assert (body["model"], body["version"], body["seed"]) == (MODEL, "1", 3)
    pictures = [opened_text(image) for image in body["images"]]
    assert [picture.shape for picture in pictures] == [(28, 28)] * 2
    assert pictures[0].std() > 10  # something is drawn


def test_same_seed_same_bytes(client: httpx.Client) -> None:
    """A row depends on its seed and number alone: not on count, batch-mates or repetition."""
    eight = samples(client, count=8, seed=11).json()["images"]
    four = samples(client, count=4, seed=11).json()["images"]
    many = samples(client, count=2000, seed=11).json()["images"]
    assert eight[:4] == four
    assert many[:8] == eight
    assert len(set(many)) > 1900


def test_one_answer_in_three_forms(client: httpx.Client) -> None:
    """JSON, a PNG grid and an NPZ of the same request hold the same pixels."""
    plain = samples(client, count=5, seed=3)
    grid = samples(client, {"Accept": "image/png"}, count=5, seed=3)
    arrays = samples(client, {"Accept": "application/x-npz"}, count=5, seed=3)
    assert [one.headers["content-type"] for one in (grid, arrays)] == ["image/png", "application/x-npz"]
    assert "Accept" in plain.headers["vary"]
    assert grid.headers["reverie-seed"] == "3"
    with np.load(io.BytesIO(arrays.content)) as kept:
        pixels = kept["images"]
        assert int(kept["seed"]) == 3
        assert (str(kept["model"]), str(kept["version"])) == (MODEL, "1")
    assert (pixels.shape, pixels.dtype) == ((5, 1, 28, 28), np.uint8)
    assert (opened_text(plain.json()["images"][4]) == pixels[4, 0]).all()
    sheet = opened(grid.content)
    assert sheet.shape == (2 * 28, 3 * 28)
    assert (sheet[28:, 28:56] == pixels[4, 0]).all()
    one = samples(client, {"Accept": "image/*"}, seed=3)
    assert (opened(one.content) == pixels[0, 0]).all()


def test_a_form_there_is_none_of_is_refused(client: httpx.Client, digit: bytes) -> None:
    """406 lists the forms; numbers have no PNG."""
    problem(samples(client, {"Accept": "text/html"}), 406, "image/png", "application/json")
    asked = {"model": MODEL, "images": [b64(digit)]}
    answer = client.post("/v1/energies", json=asked, headers={"Accept": "image/png"})
    problem(answer, 406, "application/x-npz")


def test_the_manifold_is_a_grid(client: httpx.Client) -> None:
    """size² pictures row by row, as one square PNG where that is asked for."""
    asked = {"model": MODEL, "size": 4, "seed": 0}
    images = client.post("/v1/manifold", json=asked).json()["images"]
    sheet = opened(client.post("/v1/manifold", json=asked, headers={"Accept": "image/png"}).content)
    assert len(images) == 16
    assert sheet.shape == (112, 112)
    assert (sheet[28:56, 56:84] == opened_text(images[6])).all()
    problem(client.post("/v1/manifold", json={"model": MODEL, "size": 65}), 422, "size", "64")


def test_encodings_have_mean_and_standard_deviation(client: httpx.Client, digit: bytes) -> None:
    """One row an image, one column a latent."""
    body = client.post("/v1/encodings", json={"model": MODEL, "images": [b64(digit)] * 3}).json()
    assert set(body) == {"model", "version", "seed", "mean", "standard_deviation", "binarization"}
    assert np.shape(body["mean"]) == np.shape(body["standard_deviation"]) == (3, 2)
    assert np.min(body["standard_deviation"]) > 0


def test_reconstructions_are_pictures(client: httpx.Client, digit: bytes) -> None:
    """One picture for each sent, and not far from it."""
    body = client.post("/v1/reconstructions", json={"model": MODEL, "images": [b64(digit)] * 2}).json()
    assert set(body) == {"model", "version", "seed", "images", "binarization"}
    assert len(body["images"]) == 2
    pixels = opened_text(body["images"][0]).astype(float)
    assert pixels[8:20, 12:16].mean() > pixels[8:20, :6].mean() + 50


def test_interpolations_walk_from_the_first_image_to_the_second(client: httpx.Client, digit: bytes) -> None:
    """`steps` pictures, whose ends are the reconstructions of the two."""
    other = encoded(Image.open(io.BytesIO(digit)).rotate(90))
    whole = {"model": MODEL, "images": [b64(digit), b64(other)], "seed": 1, "binarization": "threshold"}
    body = client.post("/v1/interpolations", json={**whole, "steps": 5}).json()
    assert len(body["images"]) == 5
    ends = client.post("/v1/reconstructions", json=whole).json()["images"]
    for end, picture in zip(ends, (body["images"][0], body["images"][-1]), strict=True):
        assert abs(opened_text(end).astype(int) - opened_text(picture).astype(int)).max() <= 1
    assert body["images"][0] != body["images"][-1]


def test_energies_have_a_unit(client: httpx.Client, digit: bytes) -> None:
    """One number an image, and what it is measured in; noise has more energy than a digit."""
    noise = np.random.default_rng(0).integers(0, 2, (1, 28, 28), np.uint8) * 255
    body = client.post("/v1/energies", json={"model": MODEL, "images": [b64(digit), b64(png(noise))]}).json()
    assert set(body) == {"model", "version", "seed", "energies", "unit", "binarization"}
    assert body["unit"] == "nats"
    assert body["energies"][0] < body["energies"][1]


def test_likelihoods_say_how_sure_they_are(client: httpx.Client, digit: bytes) -> None:
    """log p, its standard error and effective sample size for each image, and K."""
    asked = {"model": MODEL, "images": [b64(digit)] * 2, "k": 200, "seed": 2}
    body = client.post("/v1/likelihoods", json=asked).json()
    said = {"log_p", "standard_error", "effective_sample_size", "k", "unit", "binarization"}
    assert set(body) == {"model", "version", "seed", *said}
    assert body["k"] == 200
    assert len(body["log_p"]) == len(body["standard_error"]) == 2
    assert all(-1000 < one < 0 for one in body["log_p"])
    assert all(1 <= size <= 200 for size in body["effective_sample_size"])


def test_what_a_model_refuses_is_told(client: httpx.Client) -> None:
    """A ValueError of a model is a 422 with its words, another error a 500 that names it."""
    problem(client.post("/v1/samples", json={"model": FAULTY, "seed": 14}), 422, "seed 14 is not for this model")
    body = problem(client.post("/v1/samples", json={"model": FAULTY, "seed": 13}), 500, "RuntimeError", "bad luck")
    assert body["title"] == "Model failed"


# --- models ---


def test_models_are_listed_with_their_cards(client: httpx.Client) -> None:
    """The list has each model; its entry is its card, and says where each operation is."""
    listed = client.get("/v1/models").json()
    assert [model["name"] for model in listed["data"]] == [ENLARGE, FAULTY, TINY, MODEL]
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (ENLARGE, MODEL)
    card = client.get(f"/v1/models/{MODEL}").json()
    assert card == listed["data"][3]
    assert card["image"] == {"channels": 1, "height": 28, "width": 28}
    assert (card["version"], card["versions"], card["family"]) == ("1", ["1"], "vae")
    assert card["operations"]["manifold"]["options"]["properties"]["size"]["default"] == 20
    assert card["links"]["manifold"] == "/v1/manifold"
    for path, link in card["links"].items():
        assert client.get(link).status_code == (200 if path == "self" else 405)


def test_an_unknown_model_has_no_card(client: httpx.Client) -> None:
    """404 says where the models are listed."""
    problem(client.get("/v1/models/gan"), 404, "gan", "/v1/models")


# --- waiting or not ---


def test_a_request_may_ask_for_a_job_at_once(client: httpx.Client) -> None:
    """`respond-async` gives 202 with where to look, and the job ends with the bytes of a direct answer."""
    answer = samples(client, ASYNC, count=3, seed=21)
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["preference-applied"] == "respond-async"
    assert job["status"] == "queued"
    assert (job["kind"], job["model"], job["progress"], job["problem"]) == ("samples", MODEL, 0, None)
    assert job["request"] == {"model": f"{MODEL}@1", "seed": 21, "options": job["request"]["options"], "count": 3}
    assert job["created_at"].endswith("+00:00")
    done = ended(client, job["id"])
    assert (done["status"], done["progress"]) == ("succeeded", 1)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    for media in ("application/json", "image/png", "application/x-npz"):
        result = client.get(job["links"]["result"], headers={"Accept": media})
        assert result.headers["content-type"] == media
        assert result.content == samples(client, {"Accept": media}, count=3, seed=21).content


def test_a_request_waits_no_longer_than_it_may(client: httpx.Client) -> None:
    """`wait=1` of a request of four seconds gives 202 after one, and the same work goes on to the same bytes."""
    fields = {"model": FAULTY, "seed": 31}
    begun = time.monotonic()
    asked = {**fields, "seconds": 4}
    answer = client.post("/v1/samples", json=asked, headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - begun < 3
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=1"
    job = answer.json()
    assert job["status"] == "running"
    done = ended(client, job["id"])
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
def test_a_preference_that_is_followed_is_said(
    client: httpx.Client, headers: list[tuple[str, str]], applied: str | None
) -> None:
    """Preference-Applied echoes what was heeded, within the limit; what is not known is ignored."""
    answer = client.post("/v1/samples", json={"model": MODEL, "seed": 1}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers.get("preference-applied") == applied
    assert "Prefer" in answer.headers["vary"]


def test_wait_zero_is_a_job_at_once(client: httpx.Client) -> None:
    """A client that will not wait gets its promise."""
    answer = samples(client, {"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")


# --- jobs ---


def test_jobs_are_listed_newest_first_page_by_page(client: httpx.Client) -> None:
    """`after` and `limit` walk the list; filters leave others out."""
    made = [promised(client, "/v1/samples", model=FAULTY, seed=seed) for seed in (1, 2, 13)]
    for job_id in made:
        ended(client, job_id)
    page = client.get("/v1/jobs", params={"limit": 2, "model": FAULTY}).json()
    assert [job["id"] for job in page["data"]] == [made[2], made[1]]
    assert (page["object"], page["has_more"], page["first_id"], page["last_id"]) == ("list", True, made[2], made[1])
    rest = client.get("/v1/jobs", params={"after": page["last_id"], "limit": 1}).json()
    assert rest["data"][0]["id"] == made[0]
    failed = client.get("/v1/jobs", params={"status": "failed", "limit": 1}).json()["data"]
    assert failed[0]["id"] == made[2]
    assert failed[0]["problem"]["status"] == 500
    empty = client.get("/v1/jobs", params={"kind": "energies", "status": "queued"}).json()
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    "query",
    ["status=done", "status=", "limit=0", "limit=101", "limit=x", "after=" + "x" * 61, "after=job_0", "kind=%00"],
)
def test_a_wrong_filter_is_refused(client: httpx.Client, query: str) -> None:
    """422 names the parameter."""
    body = problem(client.get(f"/v1/jobs?{query}"), 422, query.partition("=")[0])
    assert body["errors"]


@pytest.mark.parametrize("job_id", ["job_" + "0" * 28, "nonsense", "%00", "a b", "x" * 3000, "job_" + "g" * 28])
def test_an_unknown_job_is_a_problem(client: httpx.Client, job_id: str) -> None:
    """404 on every route of a job."""
    here = f"/v1/jobs/{job_id}"
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        problem(client.request(method, here + path), 404, "/v1/jobs")


def test_a_running_job_is_looked_at_and_cancelled(client: httpx.Client, digit: bytes) -> None:
    """It shows progress, has no result yet, cannot be deleted; cancelling it ends it and frees the worker at once."""
    image = b64(_small())
    job_id = promised(client, "/v1/likelihoods", model=FAULTY, images=[image], k=1000, seconds=0.05)
    here = f"/v1/jobs/{job_id}"
    job = reached(client, job_id, lambda job: job["progress"] > 0)
    assert job["status"] == "running"
    assert client.get(here).headers["retry-after"] == "1"
    assert problem(client.get(f"{here}/result"), 409, "running")["job_status"] == "running"
    problem(client.delete(here), 409, "cancel it first")
    cancelled = client.post(f"{here}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    begun = time.monotonic()
    assert samples(client).status_code == 200
    assert time.monotonic() - begun < 5
    assert client.post(f"{here}/cancel").json()["status"] == "cancelled"  # again is no harm
    problem(client.get(f"{here}/result"), 409, "cancelled")
    assert ended(client, job_id)["status"] == "cancelled"
    assert client.delete(here).status_code == 204
    problem(client.get(here), 404)


def test_a_queued_job_is_cancelled_before_it_runs(client: httpx.Client) -> None:
    """Its turn never comes."""
    first = promised(client, "/v1/samples", model=FAULTY, seconds=1)
    reached(client, first, lambda job: job["status"] == "running")
    second = promised(client, "/v1/samples", model=MODEL)
    assert client.post(f"/v1/jobs/{second}/cancel").json()["status"] == "cancelled"
    assert ended(client, first)["status"] == "succeeded"
    assert client.get(f"/v1/jobs/{second}").json()["started_at"] is None


def test_an_adopted_job_is_cancelled(client: httpx.Client) -> None:
    """A request that became a job while it ran can be cancelled like any."""
    asked = {"model": FAULTY, "images": [b64(_small())], "k": 1000, "seconds": 0.05}
    job = client.post("/v1/likelihoods", json=asked, headers={"Prefer": "wait=1"}).json()
    assert reached(client, job["id"], lambda job: job["progress"] > 0)["status"] == "running"
    assert client.post(job["links"]["cancel"]).json()["status"] == "cancelled"
    begun = time.monotonic()
    assert samples(client).status_code == 200
    assert time.monotonic() - begun < 5
    assert client.get(job["links"]["self"]).json()["status"] == "cancelled"


def test_an_ended_job_cannot_be_cancelled(client: httpx.Client) -> None:
    """409 says how it ended; forgetting it works, and then there is no trace."""
    job_id = promised(client, "/v1/samples", model=MODEL)
    ended(client, job_id)
    problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "succeeded")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    for path in ("", "/result", "/events"):
        problem(client.get(f"/v1/jobs/{job_id}{path}"), 404)


def test_a_failed_job_says_why(client: httpx.Client) -> None:
    """The job carries the problem, and its result is refused with it."""
    job_id = promised(client, "/v1/samples", model=FAULTY, seed=13)
    job = ended(client, job_id)
    assert job["status"] == "failed"
    assert "bad luck" in job["problem"]["detail"]
    assert problem(client.get(job["links"]["result"]), 409, "failed")["job_problem"] == job["problem"]


def test_a_result_is_cached_resumed_and_refused(client: httpx.Client) -> None:
    """Strong ETag, 304, ranges with 206 and 416, and If-Range."""
    job_id = promised(client, "/v1/samples", model=MODEL, count=4, seed=8)
    ended(client, job_id)
    here = f"/v1/jobs/{job_id}/result"
    whole = client.get(here, headers={"Accept": "application/x-npz"})
    tag = whole.headers["etag"]
    assert tag.startswith('"')
    assert whole.headers["accept-ranges"] == "bytes"
    assert "private" in whole.headers["cache-control"]

    def again(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.get(here, headers={"Accept": "application/x-npz", **named})

    same = again(if_none_match=tag)
    assert (same.status_code, same.content) == (304, b"")
    begin, rest = again(range="bytes=0-99"), again(range="bytes=100-", if_range=tag)
    assert (begin.status_code, rest.status_code) == (206, 206)
    assert begin.headers["content-range"] == f"bytes 0-99/{len(whole.content)}"
    assert begin.content + rest.content == whole.content
    assert again(range="bytes=100-", if_range='"other"').content == whole.content
    outside = again(range="bytes=999999999-")
    problem(outside, 416, str(len(whole.content)))
    assert outside.headers["content-range"] == f"bytes */{len(whole.content)}"
    assert client.head(here, headers={"Accept": "application/x-npz"}).headers["etag"] == tag
    assert client.get(here).headers["etag"] != tag  # another form is another result
    problem(client.get(here, headers={"Accept": "text/html"}), 406)


def test_an_expired_result_is_gone(client: httpx.Client, stack: Stack) -> None:
    """410 says that the seed gives it again; the job itself stays."""
    job_id = promised(client, "/v1/samples", model=MODEL)
    ended(client, job_id)
    job_store = JobStore(f"sqlite:///{stack.state / 'state' / 'jobs.sqlite3'}")
    assert job_id in job_store.kept_results(1000)
    job_store.mark_expired([job_id])
    job_store.engine.dispose()
    problem(client.get(f"/v1/jobs/{job_id}/result"), 410, "same seed")
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "succeeded"


def test_bulk_answers_come_whole(client: httpx.Client) -> None:
    """A job of many slices has its rows in order, the same as a direct answer's."""
    job_id = promised(client, "/v1/samples", model=MODEL, count=3000, seed=5)
    assert ended(client, job_id)["status"] == "succeeded"
    result = client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/x-npz"})
    assert result.content == samples(client, {"Accept": "application/x-npz"}, count=3000, seed=5).content


# --- events ---


def _events(answer: httpx.Response) -> list[dict[str, str]]:
    """The events of a whole stream; comments are left out."""
    blocks = [block for block in answer.text.split("\n\n") if block.startswith("id:")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]  # type: ignore[misc]


def test_events_follow_a_job_to_its_end(client: httpx.Client) -> None:
    """Numbered from 1: queued, running, progress, succeeded; then the stream closes."""
    asked = {"model": FAULTY, "images": [b64(_small())], "k": 8, "seconds": 0.1}
    job_id = promised(client, "/v1/likelihoods", **asked)
    answer = client.get(f"/v1/jobs/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    events = _events(answer)
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    said = [event["data"] for event in events if event["event"] == "status"]
    assert said == ['{"status":"queued"}', '{"status":"running"}', '{"status":"succeeded"}']
    assert sum(event["event"] == "progress" for event in events) >= 2

    def since(seen: str) -> httpx.Response:
        return client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": seen})

    assert _events(since("2")) == events[2:]
    last = since(events[-1]["id"])
    assert (last.status_code, last.content) == (204, b"")
    assert since("99999").status_code == 204
    for wrong in ("-1", "x", "1.5", "9" * 30):
        problem(since(wrong), 422, "Last-Event-ID")


def test_whoever_claims_to_have_seen_too_much_sees_the_rest(client: httpx.Client, stack: Stack) -> None:
    """A Last-Event-ID ahead of a running job counts as the last there is, and the stream ends with the job."""
    job_id = promised(client, "/v1/likelihoods", model=FAULTY, images=[b64(_small())], k=1000, seconds=0.05)
    here = f"/v1/jobs/{job_id}"

    def finish() -> None:
        time.sleep(0.5)
        with httpx.Client(base_url=stack.url, timeout=60) as other:
            other.post(f"{here}/cancel")

    thread = threading.Thread(target=finish)
    thread.start()
    events = _events(client.get(f"{here}/events", headers={"Last-Event-ID": "99999"}))
    thread.join()
    assert events[-1]["data"] == '{"status":"cancelled"}'
    assert int(events[0]["id"]) > 1


# --- once and only once ---


def test_a_repeated_request_is_answered_again_and_done_once(client: httpx.Client) -> None:
    """The same key and body give the same seed and bytes; any form of it may be asked for; the key may be quoted."""
    headers = {"Idempotency-Key": "once-1"}
    first = samples(client, headers, count=2)
    assert first.status_code == 200
    for key in ("once-1", '"once-1"'):
        again = samples(client, {"Idempotency-Key": key}, count=2)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["content-location"] == first.headers["content-location"]
    ranged = samples(client, {**headers, "Range": "bytes=0-9", "If-None-Match": "*"}, count=2)
    assert (ranged.status_code, ranged.content) == (200, first.content)  # these are for GET alone
    job = client.get(first.headers["content-location"].removesuffix("/result")).json()
    assert job["seed"] == first.json()["seed"]
    picture = samples(client, {**headers, "Accept": "image/png"}, count=2)
    assert picture.headers["reverie-seed"] == str(job["seed"])


def test_a_repeated_upload_is_recognised(client: httpx.Client, digit: bytes) -> None:
    """A form is the same request though its boundary is another; other pixels are another request."""
    headers = {"Idempotency-Key": "upload-1"}

    def send(file: bytes) -> httpx.Response:
        return client.post("/v1/encodings", data={"model": MODEL}, files={"images": ("a.png", file)}, headers=headers)

    first = send(digit)
    assert first.status_code == 200
    assert send(digit).content == first.content
    problem(send(_changed(digit)), 422, "upload-1", "another key")


def test_a_key_belongs_to_one_body_and_route(client: httpx.Client) -> None:
    """Another body under the same key is refused with the job that has it; another route is another matter."""
    headers = {"Idempotency-Key": "once-2"}
    first = samples(client, headers, count=1)
    body = problem(samples(client, headers, count=2), 422, "once-2", "another key")
    assert body["job_id"] in first.headers["content-location"]
    other = client.post("/v1/manifold", json={"model": MODEL, "size": 1}, headers=headers)
    assert other.status_code == 200


@pytest.mark.parametrize("key", ["", '""', "x" * 256, "tab\tbed"])
def test_a_key_has_a_form(client: httpx.Client, key: str) -> None:
    """400 says which."""
    problem(samples(client, {"Idempotency-Key": key}), 400, "255")


def test_requests_at_the_same_time_are_one(client: httpx.Client, stack: Stack) -> None:
    """Eight clients with one key get one job and the same bytes."""

    def send(_number: int) -> tuple[int, bytes, str]:
        with httpx.Client(base_url=stack.url, timeout=60) as own:
            asked = {"model": FAULTY, "seconds": 0.3}
            answer = own.post("/v1/samples", json=asked, headers={"Idempotency-Key": "crowd"})
            return answer.status_code, answer.content, answer.headers["content-location"]

    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(send, range(8)))
    assert len(answers) == 1
    assert answers.pop()[0] == 200


def test_a_repeated_request_finds_the_running_job(client: httpx.Client) -> None:
    """While the work goes on, each repetition that will not wait gets the same 202."""
    headers = {"Idempotency-Key": "running", **ASYNC}
    asked = {"model": FAULTY, "seconds": 0.7}
    first, second = (client.post("/v1/samples", json=asked, headers=headers) for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.headers["location"] == second.headers["location"]
    waited = client.post("/v1/samples", json=asked, headers={"Idempotency-Key": "running"})
    assert waited.headers["content-location"] == f"{first.headers['location']}/result"


def test_a_failure_is_answered_again(client: httpx.Client) -> None:
    """The model is not asked a second time what it could not do the first."""
    for seed, status in ((13, 500), (14, 422)):
        before = _failures(client)
        headers = {"Idempotency-Key": f"fails-{seed}"}
        told = [client.post("/v1/samples", json={"model": FAULTY, "seed": seed}, headers=headers) for _ in range(2)]
        first, second = (problem(answer, status, f"seed {seed}") for answer in told)
        assert {**first, "request_id": 0} == {**second, "request_id": 0}
        assert len(_failures(client)) == len(before) + 1


def test_a_forgotten_job_frees_its_key(client: httpx.Client) -> None:
    """After DELETE the key begins anew."""
    headers = {"Idempotency-Key": "forgotten"}
    first = samples(client, headers)
    assert client.delete(first.headers["content-location"].removesuffix("/result")).status_code == 204
    second = samples(client, headers, count=2)
    assert second.status_code == 200
    assert second.headers["content-location"] != first.headers["content-location"]


def _failures(client: httpx.Client) -> list[Any]:
    asked = {"model": FAULTY, "status": "failed", "limit": 100}
    data: list[Any] = client.get("/v1/jobs", params=asked).json()["data"]
    assert len(data) < 100
    return data


def _small() -> bytes:
    """A picture of the faulty family's size."""
    return png(np.full((1, 8, 8), 100, np.uint8))


def _changed(digit: bytes) -> bytes:
    return png(255 - opened(digit)[None])
