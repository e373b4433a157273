"""Auxiliary jobs: short work that a training worker does for a request, which may wait for it."""

from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from api.auth import Caller
from api.dependencies import owner_of
from api.errors import InvalidError, request_id_of
from api.responses.job_results import failed
from api.state import AppState
from core.broker.codec import unpack
from core.jobs.records import Job


def auxiliary_row(request: Request, kind: str, model: str, body: dict[str, Any], seed: int = 0) -> Job:
    """Return a new job for the training workers."""
    return Job(
        kind=kind,
        owner=owner_of(request),
        model=model,
        method=kind,
        request=body,
        request_id=request_id_of(request),
        seed=seed,
    )


async def run_auxiliary_job(
    state: AppState, caller: Caller, row: Job, wait_s: float, committed: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any] | None, Job]:
    """Insert an auxiliary job and wait for it; return its result, None if it has not ended in time, and the job.

    `committed` is called once the row is committed, whatever comes of the wait.
    Raises the ProblemError that the worker reported.
    """
    async with state.quotas.job(caller):
        await state.job_service.write(lambda job_store: job_store.insert(row))
    committed()
    await state.job_service.wake_training_workers(row.id)
    job = await state.job_service.wait(row.id, row.owner, wait_s) or row
    if job.status == "succeeded":
        chunks = await state.job_service.read(lambda job_store: job_store.result(row.id))
        return dict(unpack(chunks[0].data or b"")), job
    if (problem := job.problem) is not None:
        raise InvalidError(problem["detail"], job_id=row.id) if problem["status"] == 422 else failed(problem)
    return None, job
