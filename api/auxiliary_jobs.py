"""Auxiliary jobs: short work that a training worker does for a request, which may wait for it."""

import time
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request

from api.auth import Caller
from api.dependencies import owner_of
from api.errors import InvalidError, request_id_of
from api.responses.job_results import failed
from api.state import AppState
from core.broker.codec import unpack
from core.jobs.store import Job, new_id


def auxiliary_row(request: Request, kind: str, model: str, body: dict[str, Any], seed: int = 0) -> Job:
    """Return the row of a job for the training workers."""
    now = time.time()
    return {
        "id": new_id(),
        "kind": kind,
        "owner": owner_of(request),
        "status": "queued",
        "model": model,
        "version": "",
        "method": kind,
        "options": "{}",
        "request": orjson.dumps(body).decode(),
        "request_id": request_id_of(request),
        "seed": seed,
        "rows": 1,
        "turn": now,
        "created_at": now,
    }


async def run_auxiliary_job(
    state: AppState, caller: Caller, row: Job, wait_s: float, committed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any] | None, Job]:
    """Insert an auxiliary job and wait for it; return its result, None if it has not ended in time, and the job.

    `committed` is called once the row is committed, whatever comes of the wait.
    Raises the ProblemError that the worker reported.
    """
    async with state.quotas.job(caller):
        await state.job_service.change(lambda job_store: job_store.add([row]))
    committed()
    await state.job_service.rouse(row["id"])
    job = await state.job_service.wait(row["id"], row["owner"], wait_s) or row
    if job["status"] == "succeeded":
        chunks = await state.job_service.look(lambda job_store: job_store.result(row["id"]))
        return dict(unpack(chunks[0][0] or b"")), job
    if job["status"] == "failed":
        problem = orjson.loads(job["problem"])
        raise InvalidError(problem["detail"], job_id=row["id"]) if problem["status"] == 422 else failed(problem)
    return None, job
