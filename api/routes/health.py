"""The routes by which probes check liveness and readiness, and Prometheus reads metrics."""

import contextlib

from fastapi import APIRouter, Request, Response

from api.auth import VISITOR
from api.dependencies import State
from api.metrics import ServiceCollector, exposition
from api.openapi import Schema
from api.responses.render import JsonRoute
from api.schemas.service import HealthResponse, ReadinessResponse
from api.state import AppState
from core.broker.keys import QueueName

router = APIRouter(tags=["health"], route_class=JsonRoute)

_READINESS: dict[int | str, Schema] = {503: {"description": "Not ready", "model": ReadinessResponse}}
_FORMATS = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
_METRICS: dict[int | str, Schema] = {200: {"description": "Metrics in a format of Prometheus", "content": _FORMATS}}


@router.get("/healthz", summary="Liveness of this process")
async def get_health() -> HealthResponse:
    """Return 200: the process runs."""
    return HealthResponse(status="alive")


@router.get("/readyz", summary="Readiness to serve requests", responses=_READINESS)
async def get_readiness(request: Request, response: Response, state: State) -> ReadinessResponse:
    """Return 200 if requests can be served now, else 503.

    The service is ready if the queue server replies, a worker is ready, and this process is not
    shutting down. A worker is ready when it has loaded a first model. A request for a model that is
    still loading waits until it is loaded.
    """
    workers = state.batch_sender.live_workers()
    ready_workers = [name for name, heartbeat in workers.items() if heartbeat["state"] == "ready"]
    draining = request.app.state.draining
    checks = {"queue": await state.batch_sender.ping(), "workers": len(ready_workers), "draining": draining}
    ready = bool(checks["queue"] and ready_workers and not draining)
    loaded = {ref for name in ready_workers for ref in workers[name]["capacity"]}
    loading = {ref for heartbeat in workers.values() for ref in heartbeat.get("loading", ())} - loaded
    if not ready:
        response.status_code, response.headers["Retry-After"] = 503, "1"
    models = {"models": _public(state, loaded), "loading": _public(state, loading)}
    return ReadinessResponse.model_validate({"status": "ready" if ready else "not ready", **models, **checks})


def _public(state: AppState, refs: set[str]) -> list[str]:
    """Return the versions of models that everybody may use, sorted."""
    return [ref for ref in sorted(refs) if state.permissions.can_use("model", ref.partition("@")[0], VISITOR)]


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=_METRICS)
async def get_metrics(request: Request, state: State) -> Response:
    """Return metrics of this process, the workers and the queues for Prometheus."""
    lengths: dict[QueueName, int] = {}
    with contextlib.suppress(Exception):  # without the queue server the other metrics still count
        lengths = await state.batch_sender.queue_lengths()
    collector = ServiceCollector(state, lengths, await state.job_service.training_workers.live())
    page, media = exposition(request.headers.get("accept", ""), collector)
    return Response(page, headers={"Content-Type": media})
