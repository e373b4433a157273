"""Jobs, their results and events over HTTP, on a real service."""

import threading
import time

import httpx
import numpy as np
import pytest

from core.imaging.pictures import png
from core.jobs.store import JobStore
from tests.api.helpers import (
    FAULTY,
    MODEL,
    b64,
    create_job,
    finished_job,
    job_when,
    post_samples,
    problem,
)
from tests.stack import Stack


def _small() -> bytes:
    """Return an image of the size that the family `faulty` takes."""
    return png(np.full((1, 8, 8), 100, np.uint8))


def test_jobs_are_listed_newest_first_page_by_page(client: httpx.Client) -> None:
    """`limit` and `after` page through the jobs, newest first; filters select by model, kind and
    status.
    """
    made = [create_job(client, "/v1/samples", model=FAULTY, seed=seed) for seed in (1, 2, 13)]
    for job_id in made:
        finished_job(client, job_id)
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
    """An invalid query parameter gets 422, which names it."""
    body = problem(client.get(f"/v1/jobs?{query}"), 422, query.partition("=")[0])
    assert body["errors"]


@pytest.mark.parametrize("job_id", ["job_" + "0" * 28, "nonsense", "%00", "a b", "x" * 3000, "job_" + "g" * 28])
def test_an_unknown_job_is_a_problem(client: httpx.Client, job_id: str) -> None:
    """Every route of a job returns 404 for an unknown or malformed id."""
    here = f"/v1/jobs/{job_id}"
    for method, path in [("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", "")]:
        problem(client.request(method, here + path), 404, "/v1/jobs")


def test_a_running_job_is_looked_at_and_cancelled(client: httpx.Client, digit: bytes) -> None:
    """A running job reports progress and can be cancelled, which frees the worker within seconds.

    Until then it has no result and cannot be deleted (409).
    """
    image = b64(_small())
    job_id = create_job(client, "/v1/likelihoods", model=FAULTY, images=[image], k=1000, seconds=0.05)
    here = f"/v1/jobs/{job_id}"
    job = job_when(client, job_id, lambda job: job["progress"] > 0)
    assert job["status"] == "running"
    assert client.get(here).headers["retry-after"] == "1"
    assert problem(client.get(f"{here}/result"), 409, "running")["job_status"] == "running"
    problem(client.delete(here), 409, "cancel it first")
    cancelled = client.post(f"{here}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    started = time.monotonic()
    assert post_samples(client).status_code == 200
    assert time.monotonic() - started < 5
    assert client.post(f"{here}/cancel").json()["status"] == "cancelled"  # cancelling again has no effect
    problem(client.get(f"{here}/result"), 409, "cancelled")
    assert finished_job(client, job_id)["status"] == "cancelled"
    assert client.delete(here).status_code == 204
    problem(client.get(here), 404)


def test_a_queued_job_is_cancelled_before_it_runs(client: httpx.Client) -> None:
    """A queued job that is cancelled is never started."""
    first = create_job(client, "/v1/samples", model=FAULTY, seconds=1)
    job_when(client, first, lambda job: job["status"] == "running")
    second = create_job(client, "/v1/samples", model=MODEL)
    assert client.post(f"/v1/jobs/{second}/cancel").json()["status"] == "cancelled"
    assert finished_job(client, first)["status"] == "succeeded"
    assert client.get(f"/v1/jobs/{second}").json()["started_at"] is None


def test_an_adopted_job_is_cancelled(client: httpx.Client) -> None:
    """A synchronous request that became a job while it ran can be cancelled."""
    fields = {"model": FAULTY, "images": [b64(_small())], "k": 1000, "seconds": 0.05}
    job = client.post("/v1/likelihoods", json=fields, headers={"Prefer": "wait=1"}).json()
    assert job_when(client, job["id"], lambda job: job["progress"] > 0)["status"] == "running"
    assert client.post(job["links"]["cancel"]).json()["status"] == "cancelled"
    started = time.monotonic()
    assert post_samples(client).status_code == 200
    assert time.monotonic() - started < 5
    assert client.get(job["links"]["self"]).json()["status"] == "cancelled"


def test_an_ended_job_cannot_be_cancelled(client: httpx.Client) -> None:
    """Cancelling an ended job is 409 with its status; after it is deleted, all its routes return
    404.
    """
    job_id = create_job(client, "/v1/samples", model=MODEL)
    finished_job(client, job_id)
    problem(client.post(f"/v1/jobs/{job_id}/cancel"), 409, "succeeded")
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    for path in ("", "/result", "/events"):
        problem(client.get(f"/v1/jobs/{job_id}{path}"), 404)


def test_a_failed_job_says_why(client: httpx.Client) -> None:
    """A failed job has the problem; a request for its result gets 409 with the same problem."""
    job_id = create_job(client, "/v1/samples", model=FAULTY, seed=13)
    job = finished_job(client, job_id)
    assert job["status"] == "failed"
    assert "bad luck" in job["problem"]["detail"]
    assert problem(client.get(job["links"]["result"]), 409, "failed")["job_problem"] == job["problem"]


def test_a_result_is_cached_resumed_and_refused(client: httpx.Client) -> None:
    """The result has a strong ETag and supports 304, ranges (206 and 416) and `If-Range`; 406 for
    other media types.
    """
    job_id = create_job(client, "/v1/samples", model=MODEL, count=4, seed=8)
    finished_job(client, job_id)
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
    assert client.get(here).headers["etag"] != tag  # each media type has its ETag
    problem(client.get(here, headers={"Accept": "text/html"}), 406)


def test_an_expired_result_is_gone(client: httpx.Client, stack: Stack) -> None:
    """An expired result is 410, which says that the same seed gives it again; the job stays."""
    job_id = create_job(client, "/v1/samples", model=MODEL)
    finished_job(client, job_id)
    job_store = JobStore(stack.database)
    assert job_id in job_store.kept_results(1000)
    job_store.mark_expired([job_id])
    job_store.engine.dispose()
    problem(client.get(f"/v1/jobs/{job_id}/result"), 410, "same seed")
    assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "succeeded"


def test_bulk_results_are_complete(client: httpx.Client) -> None:
    """The result of a job of many slices equals the synchronous response."""
    job_id = create_job(client, "/v1/samples", model=MODEL, count=3000, seed=5)
    assert finished_job(client, job_id)["status"] == "succeeded"
    result = client.get(f"/v1/jobs/{job_id}/result", headers={"Accept": "application/x-npz"})
    assert result.content == post_samples(client, {"Accept": "application/x-npz"}, count=3000, seed=5).content


# --- events ---


def _events(response: httpx.Response) -> list[dict[str, str]]:
    """Return the events of a complete stream, without comments."""
    blocks = [block for block in response.text.split("\n\n") if block.startswith("id:")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_events_follow_a_job_to_its_end(client: httpx.Client) -> None:
    """Events are numbered from 1 and report status and progress until the job ends; `Last-Event-ID`
    resumes after an event.
    """
    fields = {"model": FAULTY, "images": [b64(_small())], "k": 8, "seconds": 0.1}
    job_id = create_job(client, "/v1/likelihoods", **fields)
    response = client.get(f"/v1/jobs/{job_id}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    events = _events(response)
    assert [int(event["id"]) for event in events] == list(range(1, len(events) + 1))
    statuses = [event["data"] for event in events if event["event"] == "status"]
    assert statuses == ['{"status":"queued"}', '{"status":"running"}', '{"status":"succeeded"}']
    assert sum(event["event"] == "progress" for event in events) >= 2

    def since(seen: str) -> httpx.Response:
        return client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": seen})

    assert _events(since("2")) == events[2:]
    last = since(events[-1]["id"])
    assert (last.status_code, last.content) == (204, b"")
    assert since("99999").status_code == 204
    for wrong in ("-1", "x", "1.5", "9" * 30):
        problem(since(wrong), 422, "Last-Event-ID")


def test_a_last_event_id_beyond_the_end_gets_the_rest(client: httpx.Client, stack: Stack) -> None:
    """A `Last-Event-ID` above the newest event of a running job returns the events that follow,
    until the job ends.
    """
    job_id = create_job(client, "/v1/likelihoods", model=FAULTY, images=[b64(_small())], k=1000, seconds=0.05)
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
