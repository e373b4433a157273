"""Define the exceptions of the client.

    ReverieError
    ├── UnreachableError              no response, after all retries
    ├── UnexpectedContentError        a response is not the file that was asked for
    ├── JobFailedError                a job failed or was cancelled
    ├── StillRunningError             a job did not end within the time given
    └── ProblemError                  an error response (RFC 9457), one class per status
        ├── BadRequestError           400
        ├── UnauthorizedError         401
        ├── ForbiddenError            403
        ├── NotFoundError             404
        ├── NotAcceptableError        406
        ├── ConflictError             409
        ├── GoneError                 410
        ├── TooLargeError             413
        ├── UnsupportedMediaError     415
        ├── InvalidError              422
        ├── TooManyRequestsError      429
        ├── InternalServerError       500
        ├── ServiceUnavailableError   503
        ├── DeadlineExceededError     504
        └── DiskFullError             507

An error response with another status raises ProblemError itself.
"""

from pathlib import Path
from typing import Any, ClassVar

import httpx

from reverie.records import Job


class ReverieError(Exception):
    """Base class of this package's exceptions."""


class UnreachableError(ReverieError):
    """The service sent no response to a request or to any retry of it."""


class UnexpectedContentError(ReverieError):
    """A response has another content type than the requested one; no file was written."""

    def __init__(self, path: Path, media_type: str, response: httpx.Response | None) -> None:
        """Set the message: `path` was not written, because `response` is not of `media_type`.

        `response` is None if there was no response.
        """
        received = "nothing"
        if response is not None:
            received = f"{response.headers.get('content-type') or 'no content type'} (status {response.status_code})"
        hint = "; to save JSON, give the file the suffix .json" if received.startswith("application/json") else ""
        super().__init__(f"{path} was not written: the service sent {received}, not {media_type}{hint}")


class JobFailedError(ReverieError):
    """A job ended without a result: it failed (`job.problem` has the reason) or was cancelled."""

    def __init__(self, job: Job) -> None:
        """Set the message from the ended job, and keep the job in the attribute `job`."""
        reason = (job.problem or {}).get("detail") or "it has no result"
        super().__init__(f"{job.id} {job.status}: {reason}")
        self.job = job


class StillRunningError(ReverieError):
    """A job has not ended within the given time; it continues."""

    def __init__(self, job: Job) -> None:
        """Set the message from `job`, as it was when last read; keep it in the attribute `job`."""
        super().__init__(f"{job.id} is {job.status} at {job.progress:.0%} and has not ended yet")
        self.job = job


class ProblemError(ReverieError):
    """The service sent an error response.

    Attributes: `code` (the HTTP status), `title`, `detail`, `request_id` (by which to find the
    request in the service's log), `errors` (the invalid fields, each with `field` and `detail`) and
    `body` (the JSON object of the response).
    """

    status: ClassVar[int | None] = None

    def __init_subclass__(cls, status: int) -> None:
        """Make the subclass `cls` the exception for responses with the HTTP status `status`."""
        super().__init_subclass__()
        cls.status = status

    def __init__(self, response: httpx.Response) -> None:
        """Set the attributes from the problem in the body of an error response.

        If the body is not a JSON object, for example because a proxy sent the response, the
        attributes are made of the body's text and the status line.
        """
        body = _json_object(response)
        self.code = response.status_code
        self.title = str(body.get("title") or response.reason_phrase)
        self.detail = str(body.get("detail") or response.text[:200] or f"status {self.code}")
        self.request_id = str(body.get("request_id") or response.headers.get("x-request-id", ""))
        self.errors: list[dict[str, str]] = body.get("errors") or []
        self.body = body
        super().__init__(f"{self.title} ({self.code}): {self.detail}")

    @staticmethod
    def from_response(response: httpx.Response) -> "ProblemError":
        """Return the exception for an error response, an instance of the class for its status."""
        classes = {cls.status: cls for cls in ProblemError.__subclasses__()}
        return classes.get(response.status_code, ProblemError)(response)


def _json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object in the body of a response; an empty one if the body has none."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


class BadRequestError(ProblemError, status=400):
    """The service could not parse the request (400)."""


class UnauthorizedError(ProblemError, status=401):
    """The API key is missing, unknown or expired (401)."""


class ForbiddenError(ProblemError, status=403):
    """The API key lacks a role, or the resource belongs to another owner (403)."""


class NotFoundError(ProblemError, status=404):
    """There is no such model, job, dataset or training, or you may not see it (404)."""


class NotAcceptableError(ProblemError, status=406):
    """The result cannot be returned in the requested format (406)."""


class ConflictError(ProblemError, status=409):
    """The request is not possible now: for example, a job is running or a name is in use (409)."""


class GoneError(ProblemError, status=410):
    """The result of a job has expired and was deleted (410)."""


class TooLargeError(ProblemError, status=413):
    """The body of the request is larger than its route accepts (413)."""


class UnsupportedMediaError(ProblemError, status=415):
    """The route does not read the content type of the request (415)."""


class InvalidError(ProblemError, status=422):
    """The request is well-formed but invalid (422); `errors` has the fields that are wrong."""


class TooManyRequestsError(ProblemError, status=429):
    """A limit of the API key is exceeded (429).

    `body["limit"]` is the name of the limit, if it is one of those that `Client.me` returns.
    """


class InternalServerError(ProblemError, status=500):
    """The model or the service failed (500); search the service's log for `request_id`."""


class ServiceUnavailableError(ProblemError, status=503):
    """The service was overloaded or had no worker (503), at the last retry too."""


class DeadlineExceededError(ProblemError, status=504):
    """The deadline of the request passed before its result, and the work was stopped (504)."""


class DiskFullError(ProblemError, status=507):
    """The service has no disk space for the request (507)."""
