"""How a job of a training worker can end without a result."""

from typing import Any

from core.storage import INSUFFICIENT_STORAGE


class WorkerStoppingError(Exception):
    """This worker is stopping; its jobs are requeued."""


class ClaimLostError(Exception):
    """The claim on a job no longer holds: the job was cancelled, paused or claimed by another worker."""


class TrainingFailedError(Exception):
    """A job cannot be completed; `problem` (RFC 9457) tells the client why."""

    def __init__(self, title: str, detail: str, status: int = 500) -> None:
        super().__init__(detail)
        self.title, self.status = title, status
        self.problem: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": detail}

    def with_detail(self, more: str) -> "TrainingFailedError":
        """Return the same error with more detail."""
        return TrainingFailedError(self.title, f"{self}; {more}", self.status)


def disk_full_error(reason: str) -> TrainingFailedError:
    """Return the error (507) of a job that has no room on the disk."""
    detail = f"{reason}; delete trainings or datasets that are not needed"
    return TrainingFailedError("Disk full", detail, INSUFFICIENT_STORAGE)
