"""Define the records of webhooks: the webhook of a job, its deliveries, and their attempts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# A job's webhook may be sent when the job gets one of these statuses.
EVENTS = ("job.running", "job.paused", "job.succeeded", "job.failed", "job.cancelled")
END_EVENTS = ("job.succeeded", "job.failed", "job.cancelled")

PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"


@dataclass(frozen=True)
class Webhook:
    """The webhook of a job: `url` gets a request for each of its `events`, such as job.failed."""

    url: str
    events: tuple[str, ...] = END_EVENTS

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Webhook":
        """Return the webhook in the JSON object that the column `webhook` of a job has."""
        return cls(stored["url"], tuple(stored["events"]))

    def as_dict(self) -> dict[str, Any]:
        """Return the webhook as the JSON object for the column `webhook` of its job."""
        return {**asdict(self), "events": list(self.events)}


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A row of the table `webhook_deliveries`. Times are Unix times in seconds.

    `id` is the `webhook-id` of every attempt. `token` is the fencing token of the last claim. A
    pending delivery can be claimed from `due_at` on, which is the end of the lease while an attempt
    is made. `response_status` and `error` are of the last attempt; `ended_at` is when it was
    delivered or given up.
    """

    id: str
    job_id: str
    owner: str
    event: str
    url: str
    host: str
    body: str
    status: str = PENDING
    attempts: int = 0
    token: int = 0
    due_at: float
    created_at: float
    attempted_at: float | None = None
    ended_at: float | None = None
    response_status: int | None = None
    error: str | None = None


@dataclass(frozen=True)
class Attempt:
    """The outcome of an attempt to deliver: the response's status, or the error without one.

    `retry_after_s` is the time in seconds that the receiver asked to wait; 0 if it did not ask.
    """

    response_status: int | None = None
    error: str | None = None
    retry_after_s: float = 0.0

    @property
    def delivered(self) -> bool:
        """Whether the receiver has accepted the request (2xx)."""
        return self.response_status is not None and 200 <= self.response_status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver has asked for no more requests (410, as Standard Webhooks says)."""
        return self.response_status == 410
