"""Every way a call can fail: one class for each status of a problem, and for what goes wrong on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import httpx

if TYPE_CHECKING:
    from reverie.records import Job


class ReverieError(Exception):
    """Anything that this package raises of its own."""


class UnreachableError(ReverieError):
    """No answer came, however often it was tried."""

    @classmethod
    def of(cls, error: httpx.TransportError) -> Self:
        """What was asked for, and what the connection said last."""
        return cls(f"no answer from {error.request.url}: {error or type(error).__name__}")


class JobFailedError(ReverieError):
    """A job ended without a result: it failed, for the reason in `job.problem`, or was cancelled."""

    def __init__(self, job: Job) -> None:
        """The job as it ended."""
        why = (job.problem or {}).get("detail") or "it has no result"
        super().__init__(f"{job.id} {job.status}: {why}")
        self.job = job


class StillRunningError(ReverieError):
    """The time to wait was up before the job's end; it goes on."""

    def __init__(self, job: Job) -> None:
        """The job as it stood."""
        super().__init__(f"{job.id} is {job.status} at {job.progress:.0%}; it goes on")
        self.job = job


class UnexpectedContentError(ReverieError):
    """A response was not the kind of file that was asked for; nothing was written."""

    def __init__(self, path: Path, media: str, response: httpx.Response | None) -> None:
        """`media` was asked for, to be saved at `path`."""
        found = "nothing"
        if response is not None:
            found = f"{response.headers.get('content-type') or 'no content type'} (status {response.status_code})"
        hint = "; to save that, name the file .json" if found.startswith("application/json") else ""
        super().__init__(f"{path} was not written: the service sent {found}, not {media}{hint}")


class ProblemError(ReverieError):
    """The service said no, and what would work (RFC 9457)."""

    status: ClassVar[int | None] = None

    def __init__(self, response: httpx.Response) -> None:
        """What the answer's body says, or a proxy's status line."""
        body = _body(response)
        self.code = response.status_code
        self.title = str(body.get("title") or response.reason_phrase)
        self.detail = str(body.get("detail") or response.text[:200] or f"status {self.code}")
        self.request_id = str(body.get("request_id") or response.headers.get("x-request-id", ""))
        self.errors: list[dict[str, str]] = body.get("errors") or []
        self.body = body
        super().__init__(f"{self.title} ({self.code}): {self.detail}")

    @staticmethod
    def of(response: httpx.Response) -> ProblemError:
        """The class that owns the answer's status, or the general one."""
        kinds = {kind.status: kind for kind in ProblemError.__subclasses__()}
        return kinds.get(response.status_code, ProblemError)(response)


def _body(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


class MalformedError(ProblemError):
    """What was sent could not be read at all."""

    status = 400


class UnauthorizedError(ProblemError):
    """The service wants a key that it knows."""

    status = 401


class ForbiddenError(ProblemError):
    """The key lacks a role, or what is to be changed is another owner's."""

    status = 403


class NotFoundError(ProblemError):
    """No such model, job, data set or training, or not of this caller's."""

    status = 404


class NotAcceptableError(ProblemError):
    """The answer has no such form."""

    status = 406


class ConflictError(ProblemError):
    """Not in this state: the result of a running job, a name that is taken, what is in use."""

    status = 409


class GoneError(ProblemError):
    """It was kept for its time and then dropped."""

    status = 410


class TooLargeError(ProblemError):
    """More than this route takes."""

    status = 413


class UnsupportedMediaError(ProblemError):
    """A body of a type that the route does not read."""

    status = 415


class InvalidError(ProblemError):
    """Understood and not granted; `errors` names the fields."""

    status = 422


class TooManyRequestsError(ProblemError):
    """A limit of this key's is reached; `body["limit"]` names it, where it is one that `Client.me` shows."""

    status = 429


class FaultError(ProblemError):
    """The model or the service failed; the service's log knows more under `request_id`."""

    status = 500


class OverloadedError(ProblemError):
    """Too much work waits, and went on waiting while this was tried again."""

    status = 503


class DiskFullError(ProblemError):
    """The service has no room for what was sent."""

    status = 507
