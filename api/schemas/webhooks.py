"""Request and response bodies of webhooks and their deliveries."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from api.schemas.common import URL, Page, RequestBody, Resource
from core.webhooks.records import Delivery

EventName = Literal["job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled"]


class WebhookBody(RequestBody, json_schema_extra={"example": {"url": "https://example.com/hooks"}}):
    """Where to send signed requests about a job, and for which events."""

    url: Annotated[str, URL]
    events: Annotated[list[EventName], Field(min_length=1, max_length=20)] = Field(
        ["job.succeeded", "job.failed", "job.cancelled"],
        description="When to send one; by default when the job has ended.",
    )


class EventLinks(Resource):
    """URL paths of the job of an event."""

    self: str
    result: str
    deliveries: str


class EventJob(Resource):
    """A job at the time of an event."""

    id: str
    kind: str
    status: Literal["running", "paused", "succeeded", "failed", "cancelled"]
    progress: float
    model: str
    version: str
    seed: int
    request_id: str
    problem: dict[str, Any] | None = Field(description="Why it failed (RFC 9457).")
    created_at: str
    started_at: str | None
    finished_at: str | None
    links: EventLinks


class WebhookEvent(Resource):
    """The body of a request to a webhook."""

    type: EventName
    timestamp: str = Field(description="When it happened.")
    data: EventJob


class DeliveryResponse(Resource):
    """A request to a webhook, and its last attempt."""

    object: Literal["webhook.delivery"]
    id: str = Field(description="The `webhook-id` of every attempt.")
    job_id: str
    event: EventName
    url: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    response_status: int | None = Field(description="HTTP status of the last attempt's response.")
    error: str | None = Field(description="Why the last attempt failed.")
    created_at: str
    attempted_at: str | None = Field(description="Of the last attempt.")
    next_attempt_at: str | None = Field(description="Of a pending delivery.")
    ended_at: str | None = Field(description="When it was delivered, or given up.")

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """Return the response body of a delivery."""
        return cls(
            object="webhook.delivery",
            id=delivery.id,
            job_id=delivery.job_id,
            event=delivery.event,
            url=delivery.url,
            status=delivery.status,
            attempts=delivery.attempts,
            response_status=delivery.response_status,
            error=delivery.error,
            created_at=_iso(delivery.created_at),
            attempted_at=_iso(delivery.attempted_at) if delivery.attempted_at else None,
            next_attempt_at=_iso(delivery.due_at) if delivery.status == "pending" else None,
            ended_at=_iso(delivery.ended_at) if delivery.ended_at else None,
        )


class DeliveryPage(Page[DeliveryResponse]):
    """A page of deliveries, newest first."""


def _iso(seconds: float) -> str:
    """Return a time in seconds since the epoch as ISO 8601."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
