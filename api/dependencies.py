"""Dependencies of routes: the services, the caller, and the resource that a path names."""

import re
from typing import Annotated

from fastapi import Depends, Request

from api.access import caller_of
from api.auth import Caller
from api.errors import NotFoundError
from api.state import AppState
from core.jobs.store import TRAINING, Job

_JOB_ID = re.compile(r"job_[0-9a-f]{28}")


def owner_of(request: Request) -> str:
    """Return the owner of what a request creates: the name of its key, empty where keys are not used."""
    return str(request.scope.get("reverie_owner") or "")


async def get_state(request: Request) -> AppState:
    """Return the services of the application."""
    state: AppState = request.app.state.services
    return state


async def get_caller(request: Request) -> Caller:
    """Return the caller of a request."""
    return caller_of(request.scope)


async def get_owner(request: Request) -> str:
    """Return the owner of what a request creates."""
    return owner_of(request)


State = Annotated[AppState, Depends(get_state)]
CurrentCaller = Annotated[Caller, Depends(get_caller)]
Owner = Annotated[str, Depends(get_owner)]


async def find_job(job_id: str, state: State, owner: Owner) -> Job:
    """Return the caller's job of the path. Raises NotFoundError."""
    job = await state.job_service.get(job_id, owner) if _JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise NotFoundError(f"no job {job_id[:60]!r}; GET /v1/jobs lists yours")
    return job


async def find_training(job_id: str, state: State, owner: Owner) -> Job:
    """Return the caller's training of the path. Raises NotFoundError."""
    job = await state.job_service.get(job_id, owner) if _JOB_ID.fullmatch(job_id) else None
    if job is None or job["kind"] != TRAINING:
        raise NotFoundError(f"no training {job_id[:60]!r}; GET /v1/trainings lists yours")
    return job


CurrentJob = Annotated[Job, Depends(find_job)]
CurrentTraining = Annotated[Job, Depends(find_training)]
