"""Lists the deliveries of a job's webhook."""

from fastapi import APIRouter

from api.dependencies import JOB_ID, Owner, State, check_cursor
from api.errors import NotFoundError
from api.openapi import problem_responses
from api.responses.render import JsonRoute
from api.routes.jobs import After, Limit
from api.schemas.webhooks import DeliveryPage, DeliveryResponse

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)


@router.get("/{job_id}/deliveries", summary="Requests to a job's webhook", responses=problem_responses(404, 422))
async def list_deliveries(
    state: State, owner: Owner, job_id: str, after: After = None, limit: Limit = 20
) -> DeliveryPage:
    """Return a page of the requests to a job's webhook, newest first.

    The requests are kept two days longer than the job's result, even if the job is deleted.
    """
    store = state.webhooks.deliveries
    found = []
    if JOB_ID.fullmatch(job_id):
        found = await state.job_service.read(lambda _: store.listing(job_id, owner, after, limit + 1))
    if not found:
        known = bool(await state.job_service.read(lambda _: store.listing(job_id, owner, None, 1)))
        if not known and (not JOB_ID.fullmatch(job_id) or await state.job_service.get(job_id, owner) is None):
            raise NotFoundError(f"no job {job_id[:60]!r}; GET /v1/jobs lists yours")
    if after:
        known_cursor = await state.job_service.read(lambda _: store.exists(after, job_id, owner))
        check_cursor(after, known=known_cursor)
    return DeliveryPage.of([DeliveryResponse.of(delivery) for delivery in found], "id", limit)
