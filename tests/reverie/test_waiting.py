"""Deadlines and queued jobs in the Python client."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from reverie.client import Client
from reverie.errors import ConflictError, DeadlineExceededError
from reverie.records import Job
from reverie.requests import ApiRequest
from tests.api.helpers import TINY
from tests.reverie.faulty_proxy import FaultyProxy


def test_the_service_stops_at_the_deadline(client: Client, tmp_path: Path) -> None:
    """At its deadline a synchronous request raises and is not retried, and a job fails."""
    slow: dict[str, Any] = {"steps": 500, "seconds": 0.1}
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError) as late:
        client.samples(TINY, deadline_s=0.5, **slow)
    assert (late.value.code, late.value.title) == (504, "Deadline exceeded")
    with pytest.raises(DeadlineExceededError):
        client.save(tmp_path / "late.png", "samples", TINY, deadline_s=0.5, **slow)
    assert time.monotonic() - started < 10
    job = client.wait(client.submit("samples", TINY, deadline_s=1.5, **slow).id, 60)
    assert job.status == "failed"
    assert (job.problem or {})["status"] == 504
    with pytest.raises(ValueError, match="deadline_s"):
        client.samples(TINY, deadline_s=0)
    assert client.samples(TINY, deadline_s=60).model == TINY


def test_a_retry_has_what_is_left_of_the_time(proxied: Client, proxy: FaultyProxy) -> None:
    """The deadline applies to the call with all its retries."""
    proxied.samples(TINY, deadline_s=60)
    first = float(proxy.seen[-1].headers["request-timeout"])
    assert 55 < first <= 60
    request = ApiRequest("GET", "/v1/models", deadline=time.monotonic() + 0.2)
    assert request.may_retry(httpx.ConnectError(""))
    time.sleep(0.25)
    assert not request.may_retry(httpx.ConnectError(""))


def test_a_queued_job_says_where_it_stands(client: Client) -> None:
    """While a client waits, a queued job reports its position and reason, and no longer once it
    runs.
    """
    slow = [client.submit("samples", TINY, steps=20, seconds=0.1, count=40 + number) for number in range(3)]
    queued = [client.submit("samples", TINY, steps=1, seconds=0.1, count=50 + number) for number in range(3)]
    seen: list[Job] = []
    client.wait(queued[-1].id, 120, seen.append)
    waiting = [job for job in seen if job.status == "queued" and job.position is not None]
    assert waiting
    assert all(job.position and job.position >= 1 and job.waiting_reason for job in waiting)
    positions = [job.position or 0 for job in waiting]
    assert positions == sorted(positions, reverse=True)
    assert seen[-1].position is None
    for job in slow:
        with contextlib.suppress(ConflictError):
            client.cancel(job.id)
