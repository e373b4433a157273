"""Response bodies of jobs."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from api.schemas.common import Page, Problem, Resource
from api.schemas.webhooks import WebhookBody
from api.wait_estimates import UNKNOWN, WaitEstimate
from core.jobs.records import Job

JobStatus = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class JobLinks(Resource):
    """URL paths of a job."""

    self: str
    events: str
    result: str
    cancel: str
    preview: str
    deliveries: str | None = Field(None, description="Of a job with a webhook.")


class JobFields(Resource):
    """The fields of all jobs, including trainings."""

    id: str
    kind: str = Field(description="An operation, `training`, `estimate`, `import`, `publication` or `dataset`.")
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    model: str
    version: str | None
    seed: int
    request_id: str
    attempts: int
    device_kind: str | None = Field(
        None, description="The kind of device on which all rows are computed, so that they have the same bits."
    )
    position: int | None = Field(
        None, description="The place of a queued job in the order in which workers start jobs; 1 is next."
    )
    waiting_reason: str | None = Field(
        description="Why the job is not run now, for example because other jobs come first or its result cannot be "
        "stored."
    )
    estimated_start_s: float | None = Field(
        None, description="Seconds until a queued job starts, at the present pace of jobs; null if unknown."
    )
    estimated_remaining_s: float | None = Field(
        None, description="Seconds until a running job ends, at its pace so far; null if unknown."
    )
    deadline_at: Timestamp | None = Field(None, description="When the job ends as failed (504), by `Request-Timeout`.")
    problem: Problem | None
    webhook: WebhookBody | None = Field(description="Where requests are sent, and when.")
    links: JobLinks
    created_at: Timestamp
    started_at: Timestamp | None
    finished_at: Timestamp | None


class JobResponse(JobFields):
    """A job: what was requested, its status and its progress."""

    request: dict[str, Any] = Field(description="What was asked for, without pictures.")

    @classmethod
    def of(cls, job: Job, estimate: WaitEstimate = UNKNOWN) -> Self:
        """Return the response body of a job.

        `estimate` says how long the job is going to wait or run.
        """
        return cls.model_validate(job_fields(job, estimate))


class JobPage(Page[JobResponse]):
    """A page of jobs, newest first."""


def job_fields(job: Job, estimate: WaitEstimate = UNKNOWN) -> dict[str, Any]:
    """Return the fields of a job's response body, keyed by name.

    `estimate` says how long the job is going to wait or run.
    """
    copied = ("id", "kind", "status", "progress", "model", "version", "seed", "request", "request_id", "attempts")
    path = f"/v1/jobs/{job.id}"
    links = ("events", "result", "cancel", "preview", *(("deliveries",) if job.webhook else ()))
    return {
        **{name: getattr(job, name) for name in copied},
        "device_kind": job.device_kind,
        "position": estimate.position,
        "waiting_reason": estimate.reason or job.blocked_reason,
        "estimated_start_s": _rounded(estimate.start_s),
        "estimated_remaining_s": _rounded(estimate.remaining_s),
        "deadline_at": _timestamp(job.deadline_at),
        "problem": {**job.problem, "request_id": job.request_id} if job.problem else None,
        "webhook": job.webhook,
        "links": {"self": path, **{name: f"{path}/{name}" for name in links}},
        "created_at": _timestamp(job.created_at),
        "started_at": _timestamp(job.started_at),
        "finished_at": _timestamp(job.finished_at),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _timestamp(seconds: float | None) -> str | None:
    """Return a time in seconds since the epoch as ISO 8601; None for None."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None
