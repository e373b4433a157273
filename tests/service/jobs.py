"""Jobs of the family `faulty`, with forward passes of a chosen duration."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import httpx
import sqlalchemy as sa

from core.jobs.database import database_url
from core.jobs.schema import jobs
from tests.api import helpers
from tests.stack import Stack

PASS_S = 0.4
END_S = 300.0


def create_job(client: httpx.Client, seed: int, prefer: str = "respond-async", seconds: float = PASS_S) -> str:
    """Request one image whose forward pass takes `seconds`; return the job's id."""
    body = {"model": "faulty", "seed": seed, "seconds": seconds}
    response = client.post("/v1/samples", json=body, headers={"Prefer": prefer})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def held(stack: Stack, part: str | None) -> set[str]:
    """Return the ids of the running jobs: of all of them, or of those of one worker."""
    owner = f"%-{stack.parts[part].pid}-%" if part else "%"
    query = sa.select(jobs.c.id).where(jobs.c.status == "running", jobs.c.lease_holder.like(owner))
    with _engine(stack.database).connect() as connection:
        return set(connection.scalars(query))


@cache
def _engine(url: str) -> sa.Engine:
    return sa.create_engine(database_url(url), poolclass=sa.NullPool)


def in_a_pass(stack: Stack, part: str | None) -> set[str]:
    """Return the ids of the jobs that are in the middle of a forward pass."""
    found = held(stack, part)
    if found:
        time.sleep(PASS_S / 4)
    return found and found & held(stack, part)


def wait_for_running(stack: Stack, part: str | None) -> set[str]:
    """Wait until jobs are in the middle of a forward pass; return their ids."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := in_a_pass(stack, part):
            return found
        time.sleep(0.02)
    raise TimeoutError("no job is running")


def have_ended(stack: Stack, ids: Iterable[str]) -> bool:
    """Return whether none of these jobs is queued or running."""
    query = sa.select(sa.func.count()).where(jobs.c.id.in_(list(ids)), jobs.c.status.in_(["queued", "running"]))
    with _engine(stack.database).connect() as connection:
        return connection.scalar(query) == 0


def finished_jobs(stack: Stack, ids: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Wait until all jobs have ended; return them by seed."""
    deadline = time.monotonic() + END_S
    bodies: dict[int, dict[str, Any]] = {}
    with httpx.Client(base_url=stack.url, timeout=30) as client:
        for seed, job_id in ids.items():
            bodies[seed] = helpers.finished_job(client, job_id, deadline - time.monotonic())
    return bodies


def report(what: str, **figures: float) -> None:
    """Print figures, which `pytest -s` shows."""
    print(what, {name: round(value, 2) for name, value in figures.items()})  # noqa: T201
