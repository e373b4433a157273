"""Deadlines by `Request-Timeout`: the work stops, and the response or the job fails with 504."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.helpers import TINY, finished_job, job_when, problem
from tests.datasets import add_digits
from tests.stack import Stack
from tests.waiting import wait_until

SLOW: dict[str, Any] = {"model": TINY, "seed": 3, "count": 1, "steps": 500, "seconds": 0.1}  # 50 s


def _busy_rows(client: httpx.Client) -> int:
    """Return the number of synchronous requests that wait or run, from the metrics."""
    line = next(one for one in client.get("/metrics").text.splitlines() if one.startswith("reverie_waiting_requests "))
    return int(float(line.rpartition(" ")[2]))


def test_a_synchronous_request_gets_504_at_its_deadline(client: httpx.Client) -> None:
    """A synchronous request gets 504 at its deadline and no longer waits."""
    started = time.monotonic()
    response = client.post("/v1/samples", json=SLOW, headers={"Request-Timeout": "0.5"})
    problem(response, 504, "deadline")
    assert response.json()["title"] == "Deadline exceeded"
    assert 0.4 < time.monotonic() - started < 10
    wait_until(lambda: _busy_rows(client) == 0, "the worker is free", 5)


def test_a_request_that_is_done_in_time_is_as_without_a_deadline(client: httpx.Client) -> None:
    """A request that meets its deadline gets the same bytes as without one."""
    body = {"model": TINY, "seed": 3, "count": 2}
    bounded = client.post("/v1/samples", json=body, headers={"Request-Timeout": "60.33333333333333"})
    assert bounded.status_code == 200
    assert bounded.content == client.post("/v1/samples", json=body).content


@pytest.mark.parametrize("prefer", ["respond-async", "wait=1"], ids=["queued", "adopted"])
def test_a_job_fails_with_504_at_its_deadline(client: httpx.Client, prefer: str) -> None:
    """A job, also one that began as a synchronous request, fails with 504 at `deadline_at` and
    frees the worker.
    """
    response = client.post("/v1/samples", json=SLOW, headers={"Request-Timeout": "2.5", "Prefer": prefer})
    assert response.status_code == 202, response.text
    job = response.json()
    assert job["deadline_at"] > job["created_at"]
    ended = finished_job(client, job["id"], 30)
    assert ended["status"] == "failed"
    assert (ended["problem"]["status"], ended["problem"]["title"]) == (504, "Deadline exceeded")
    assert "Request-Timeout" in ended["problem"]["detail"]
    assert ended["finished_at"] >= ended["deadline_at"]
    problem(client.get(f"/v1/jobs/{job['id']}/result"), 409, "failed")
    wait_until(lambda: _busy_rows(client) == 0, "the worker is free", 5)
    quick = {"model": TINY, "seed": 3, "count": 1}
    assert client.post("/v1/samples", json=quick, headers={"Prefer": "wait=30"}).status_code == 200  # worker is free


def test_a_retry_with_a_key_finds_the_job_of_the_first_deadline(client: httpx.Client) -> None:
    """A retry with an Idempotency-Key finds the job with the first deadline, and waits no longer
    than its own deadline.
    """
    headers = {"Idempotency-Key": "a deadline", "Request-Timeout": "3", "Prefer": "wait=1"}
    first = client.post("/v1/samples", json=SLOW, headers=headers)
    assert first.status_code == 202
    again = client.post("/v1/samples", json=SLOW, headers=headers | {"Request-Timeout": "0.3"})
    problem(again, 504)
    late = client.post("/v1/samples", json=SLOW, headers=headers | {"Request-Timeout": "60", "Prefer": "wait=30"})
    problem(late, 504, "Request-Timeout")
    assert finished_job(client, first.json()["id"])["status"] == "failed"


def test_an_upload_stops_at_its_deadline(client: httpx.Client, tmp_path: Path) -> None:
    """The conversion of an upload stops at the deadline, and no dataset is left."""
    file = tmp_path / "many.npz"
    np.savez_compressed(file, images=np.zeros((60_000, 64, 64), np.uint8))
    with file.open("rb") as opened:
        response = client.post(
            "/v1/datasets?name=late-upload",
            content=opened.read(),
            headers={"Content-Type": "application/x-npz", "Request-Timeout": "0.3"},
        )
    problem(response, 504)
    problem(client.get("/v1/datasets/late-upload"), 404)


def test_an_upscale_stops_at_its_deadline(client: httpx.Client, digit: bytes) -> None:
    """A synchronous upscale gets 504 at its deadline."""
    response = client.post(
        "/v1/upscales?model=enlarge&seconds=1",
        content=digit,
        headers={"Content-Type": "image/png", "Request-Timeout": "0.2", "Prefer": "wait=30"},
    )
    problem(response, 504)


@pytest.mark.slow
def test_a_training_ends_at_its_deadline_and_keeps_its_checkpoint(client: httpx.Client, stack: Stack) -> None:
    """A training fails with 504 at its deadline, and its process stops."""
    add_digits(stack, "late-digits")
    recipe = {"config": {"hidden": [16], "latents": 3}, "training": {"epochs": 100_000, "batch_size": 50}}
    body = {"family": "vae", "dataset": "late-digits", "name": "late", "recipe": recipe}
    response = client.post("/v1/trainings", json=body, headers={"Request-Timeout": "20"})
    assert response.status_code == 202, response.text
    job_id = response.json()["id"]
    training = client.get(f"/v1/trainings/{job_id}").json()
    assert training["deadline_at"]
    ended = job_when(client, job_id, lambda job: job["status"] == "failed", 60)
    assert ended["problem"]["status"] == 504
    job_when(client, job_id, lambda _: _stopped(stack, job_id), 60)


def _stopped(stack: Stack, job_id: str) -> bool:
    """Return whether no process has the job's id in its command line."""
    lines = [Path(f"/proc/{entry.name}/cmdline") for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    try:
        return not any(job_id.encode() in line.read_bytes() for line in lines if line.exists())
    except OSError:
        return False


@pytest.mark.parametrize("value", ["0", "-5", "-0.001", "1e300", "99999999999"])
def test_a_deadline_in_the_past_or_too_far_away_is_invalid(client: httpx.Client, value: str) -> None:
    """A deadline that is not in the allowed range is rejected, and the problem says what is
    valid.
    """
    response = client.post("/v1/samples", json={"model": TINY}, headers={"Request-Timeout": value})
    if value == "1e300":
        problem(response, 400, "1e300", "30")
    else:
        assert problem(response, 422, "more than 0")["errors"][0]["field"] == "header.Request-Timeout"


@pytest.mark.parametrize(
    "value", ["soon", "", "5s", "NaN", "inf", "1,2", "٣", "2026-01-01T00:00:00Z", "0x10", "1" * 400]
)
def test_a_deadline_that_is_no_number_is_malformed(client: httpx.Client, value: str) -> None:
    """A value of `Request-Timeout` that is not a decimal number is 400 on every route."""
    headers = {"Request-Timeout": value.encode()}
    for response in (
        client.post("/v1/samples", json={"model": TINY}, headers=headers),  # type: ignore[arg-type]
        client.get("/v1/models", headers=headers),  # type: ignore[arg-type]
    ):
        problem(response, 400, "Request-Timeout")
