"""FastAPI dependencies of routes: the services, the caller, and the job in the path."""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated

from fastapi import Depends, Request

from api.access import caller_of
from api.auth import Caller
from api.errors import InvalidError, NotFoundError
from api.state import AppState
from core.jobs.records import TRAINING, Job

UPLOADS = frozenset({"create_dataset", "import_version"})  # names of routes
JOB_ID = re.compile(r"job_[0-9a-f]{28}")


async def get_state(request: Request) -> AppState:
    """Return the application's services."""
    state: AppState = request.app.state.services
    return state


async def get_caller(request: Request) -> Caller:
    """Return the caller of a request, which the access control has identified by its API key."""
    return caller_of(request.scope)


async def get_owner(request: Request) -> str:
    """Return the owner of new resources: the name of the request's API key, empty without keys."""
    return caller_of(request.scope).name


async def check_query(request: Request) -> None:
    """Raise InvalidError if the request has query parameters that its route does not declare.

    Routes in `UPLOADS` are not checked: they check their query parameters together with the body.
    """
    route = request.scope["route"]
    if route.name in UPLOADS:
        return  # fields of a raw upload are query parameters; the route checks them together with the body
    known = [parameter.alias for parameter in route.dependant.query_params]
    check_query_names(request.query_params, known)


def check_query_names(names: Iterable[str], known: Sequence[str] = ()) -> None:
    """Raise InvalidError if the name of a query parameter is not in `known`.

    The error lists the known names.
    """
    if unknown := sorted({name[:60] for name in names if name not in known})[:10]:
        choice = f"there are: {', '.join(known)}" if known else "this request has none"
        errors = [{"field": f"query.{name}", "detail": "no such query parameter"} for name in unknown]
        raise InvalidError(f"no such query parameter: {', '.join(unknown)}; {choice}", errors=errors)


def check_cursor(after: str | None, *, known: bool) -> None:
    """Raise InvalidError if the query parameter `after` of a list is set, but not `known`.

    `known` says whether the list has an entry with this cursor.
    """
    if after and not known:
        detail = f"no such cursor: {after[:60]!r}; send the `last_id` of a page"
        raise InvalidError(f"after: {detail}", errors=[{"field": "query.after", "detail": detail}])


State = Annotated[AppState, Depends(get_state)]
CurrentCaller = Annotated[Caller, Depends(get_caller)]
Owner = Annotated[str, Depends(get_owner)]


async def find_job(job_id: str, state: State, owner: Owner) -> Job:
    """Return the job that the path names. Raises NotFoundError if the caller has no such job."""
    job = await state.job_service.get(job_id, owner) if JOB_ID.fullmatch(job_id) else None
    if job is None:
        raise NotFoundError(f"no job {job_id[:60]!r}; GET /v1/jobs lists yours")
    return job


async def find_training(job_id: str, state: State, owner: Owner) -> Job:
    """Return the training that the path names.

    Raises NotFoundError if the caller has no such training.
    """
    job = await state.job_service.get(job_id, owner) if JOB_ID.fullmatch(job_id) else None
    if job is None or job.kind != TRAINING:
        raise NotFoundError(f"no training {job_id[:60]!r}; GET /v1/trainings lists yours")
    return job


CurrentJob = Annotated[Job, Depends(find_job)]
CurrentTraining = Annotated[Job, Depends(find_training)]
