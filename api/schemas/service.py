"""Response bodies about the caller and the health of the service."""

from typing import Literal

from pydantic import Field

from api.schemas.common import Resource


class CallerResponse(Resource):
    """The caller with its roles, limits and usage."""

    object: Literal["caller"]
    name: str | None = Field(description="Of the key; null without keys.")
    roles: list[Literal["admin", "run", "train", "read"]]
    key_expires_at: str | None
    limits: dict[str, int | None] = Field(description="Null is no limit.")
    usage: dict[str, int] = Field(description="Of these limits; waiting requests and rows are those of this process.")


class HealthResponse(Resource):
    """Whether the process runs."""

    status: Literal["alive"]


class ReadinessResponse(Resource):
    """Whether a request would be served now."""

    status: Literal["ready", "not ready"]
    models: list[str] = Field(description="Versions that a ready worker has loaded, and everybody may use.")
    loading: list[str] = Field(
        description="Active versions that workers are still loading; a request for one waits until it is loaded."
    )
    queue: bool
    workers: int = Field(description="Ready workers.")
    draining: bool
