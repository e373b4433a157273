"""Methods for jobs of every kind, including trainings."""

from reverie.methods.base import JSON, BaseMethods, ClientMethod, FilePath, JobProgress, Steps, media_type_of
from reverie.records import Job, OperationResult, SavedFile
from reverie.requests import ApiRequest, path_of
from reverie.transfers import ByteProgress


class JobMethods(BaseMethods):
    """List jobs, wait for them, get their results, cancel and delete them.

    They raise NotFoundError for an unknown id.
    """

    @ClientMethod
    def jobs(
        self, *, status: str | None = None, kind: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Job]]:
        """Return your jobs, newest first, at most `limit`; all of them with `limit=None`.

        `status`, `kind` and `model` select jobs.
        """
        entries = yield from self._list("/v1/jobs", limit, status=status, kind=kind, model=model)
        return [Job(body) for body in entries]

    @ClientMethod
    def job(self, job_id: str) -> Steps[Job]:
        """Return the current state of a job."""
        return Job((yield from self._get("jobs", job_id)))

    @ClientMethod
    def wait(self, job_id: str, timeout_s: float | None = None, on_progress: JobProgress | None = None) -> Steps[Job]:
        """Wait until a job has succeeded, failed or been cancelled; return it.

        `on_progress` is called with the job after each poll. Raises StillRunningError after
        `timeout_s` seconds; None means no limit.
        """
        return (yield from self._wait(job_id, timeout_s, on_progress))

    @ClientMethod
    def result(self, job_id: str) -> Steps[OperationResult]:
        """Return the result of a succeeded job.

        Raises ConflictError if the job has not succeeded, and GoneError if the result has expired.
        """
        request = ApiRequest("GET", path_of("jobs", job_id, "result"), headers={"Accept": JSON})
        return OperationResult((yield from self._json(request)))

    @ClientMethod
    def save_result(self, job_id: str, path: FilePath, *, on_progress: ByteProgress | None = None) -> Steps[SavedFile]:
        """Save the result of a succeeded job as a file; the suffix of `path` chooses the format.

        `on_progress` is called with the number of bytes received. Raises ConflictError if the job
        has not succeeded, and GoneError if the result has expired.
        """
        media_type = media_type_of(path)
        request = ApiRequest("GET", path_of("jobs", job_id, "result"), headers={"Accept": media_type})
        return (yield from self._download(request, path, media_type, on_progress))

    @ClientMethod
    def preview(self, job_id: str) -> Steps[bytes]:
        """Return a PNG of the intermediate result of a running job.

        Raises NotFoundError if the job has no preview.
        """
        response = yield from self._send(ApiRequest("GET", path_of("jobs", job_id, "preview")))
        return response.content

    @ClientMethod
    def cancel(self, job_id: str) -> Steps[Job]:
        """Cancel a job and return it. Raises ConflictError if it has succeeded or failed."""
        return Job((yield from self._post("jobs", job_id, "cancel")))

    @ClientMethod
    def delete_job(self, job_id: str) -> Steps[None]:
        """Delete a job and its files. Raises ConflictError if the job has not ended."""
        yield from self._delete("jobs", job_id)
