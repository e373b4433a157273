"""Publishing a checkpoint while another run of the same model is being published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from core.jobs.records import TRAINING, Job
from core.jobs.store import JobStore
from tests.stack import Stack


def row(model: str, kind: str, status: str, owner: str = "", **request: Any) -> Job:
    """Return a job that no worker claims, because it has ended or is held by this test."""
    held: dict[str, Any] = {"lease_holder": "a-test", "lease_until": time.time() + 600}
    fields = {"family": "vae", "dataset": "digits", "name": model, "recipe": {}, **request}
    job = Job(kind=kind, owner=owner, status=status, model=model, method=kind, request=fields)
    return replace(job, **held) if status == "running" else job


@pytest.fixture
def store(stack: Stack) -> Iterator[JobStore]:
    """The job store of the service; unfinished publications and trainings are cancelled after the
    test.
    """
    opened = JobStore(stack.database)
    yield opened
    for job_id in opened.unfinished_ids(kinds=("publication", TRAINING)):
        opened.cancel(job_id)
    opened.engine.dispose()


def runs(stack: Stack, store: JobStore, model: str) -> list[Job]:
    """Insert two cancelled trainings of one model, each with a checkpoint; return them."""
    made = [row(model, TRAINING, "cancelled") for _ in range(2)]
    store.insert(*made)
    for job in made:
        folder = stack.state / "state" / "runs" / job.id
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"")
    stack.share_state()
    return made


def test_another_run_of_the_model_is_not_published_meanwhile(
    client: httpx.Client, stack: Stack, store: JobStore
) -> None:
    """Publishing another run of the model is 409; repeating the first request returns the running
    publication.
    """
    first, second = runs(stack, store, "published-twice")
    under_way = row("published-twice", "publication", "running", training=first.id)
    store.insert(under_way)
    again = client.post(f"/v1/trainings/{first.id}/publish")
    assert (again.status_code, again.json()["id"]) == (202, under_way.id)
    other = client.post(f"/v1/trainings/{second.id}/publish")
    assert other.status_code == 409, other.text
    assert other.json()["job_id"] == under_way.id
    assert "publication of published-twice is running" in other.json()["detail"]
    assert store.unfinished_ids(kinds=("publication",)) == [under_way.id]


def test_a_conflict_does_not_name_somebody_elses_job(client: httpx.Client, stack: Stack, store: JobStore) -> None:
    """The 409 of a publication does not show ids of another owner's jobs."""
    first, _ = runs(stack, store, "published-elsewhere")
    hidden = [
        row("published-elsewhere", kind, "running", "somebody", training="x") for kind in ("publication", TRAINING)
    ]
    store.insert(*hidden)
    published = client.post(f"/v1/trainings/{first.id}/publish")
    assert published.status_code == 409, published.text
    assert not any(job.id in published.text for job in hidden)
