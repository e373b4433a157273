"""Health and metrics, for probes and Prometheus."""

import contextlib
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.auth import VISITOR
from api.dependencies import State
from api.metrics import exposition
from api.openapi import answered
from api.responses.json import json_response
from api.responses.render import JSON

router = APIRouter(tags=["health"])

_STATUS = {"type": "object", "required": ["status"]}


@router.get("/healthz", summary="Liveness of this process", response_class=Response, responses=answered(_STATUS))
async def get_health() -> Response:
    """Return that this process runs."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz",
    summary="Readiness to serve requests",
    response_class=Response,
    responses={
        **answered(_STATUS),
        503: {"description": "Not ready", "content": {JSON: {"schema": _STATUS}}},
    },
)
async def get_readiness(request: Request, state: State) -> Response:
    """Return whether a request would be served now."""
    workers = state.batch_sender.live_workers()
    ready_workers = [name for name, heartbeat in workers.items() if heartbeat["state"] == "ready"]
    draining = request.app.state.draining
    checks = {"queue": await state.batch_sender.ping(), "workers": len(ready_workers), "draining": draining}
    ready = bool(checks["queue"] and ready_workers and not draining)
    models = sorted(
        ref
        for ref in {ref for name in ready_workers for ref in workers[name]["capacity"]}
        if state.permissions.can_use("model", ref.partition("@")[0], VISITOR)
    )
    body = {"status": "ready" if ready else "not ready", "models": models, **checks}
    return json_response(body) if ready else json_response(body, {"Retry-After": "1"}, 503)


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Metrics in a format of Prometheus",
            "content": {"text/plain": {}, "application/openmetrics-text": {}},
        }
    },
)
async def get_metrics(request: Request, state: State) -> Response:
    """Return the metrics of this process, the workers and the queues."""
    queues: dict[Any, int] = {}
    with contextlib.suppress(Exception):  # without the queue server the other metrics still count
        queues = dict(await state.batch_sender.queue_lengths())
    figures = {
        "waiting": state.batch_sender.waiting,
        "resent": state.batch_sender.resent,
        "queues": queues,
        "jobs": state.job_service.counts,
        "workers": state.batch_sender.live_workers(),
    }
    page, media = exposition(request.headers.get("accept", ""), figures)
    return Response(page, headers={"Content-Type": media})
