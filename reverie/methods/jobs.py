"""Methods for jobs of every kind, and for trainings, which are jobs."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from reverie.methods.base import (
    JSON,
    PNG,
    BaseMethods,
    ClientMethod,
    FilePath,
    JobProgress,
    Steps,
    Webhook,
    media_type_of,
    webhook_body,
)
from reverie.records import Delivery, Job, OperationResult, SavedFile, Training
from reverie.requests import ApiRequest, ByteProgress, deadline_after, path_of


class JobMethods(BaseMethods):
    """List jobs, wait for them, get their results, cancel and delete them.

    They raise NotFoundError for an unknown id.
    """

    @ClientMethod
    def jobs(
        self, *, status: str | None = None, kind: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Job]]:
        """Return your jobs, newest first, at most `limit`; all of them with `limit=None`.

        `status` (such as "running"), `kind` (an operation such as "samples", or "training" and so
        on) and `model` select jobs; None selects all.
        """
        return [Job(body) for body in (yield from self._list("/v1/jobs", limit, status=status, kind=kind, model=model))]

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
        """Save the result of a succeeded job as a file; return the file's path and format.

        The suffix of `path` chooses the format. `on_progress` is called with the number of bytes
        received so far. Raises ConflictError if the job
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
        return (yield from self._send(ApiRequest("GET", path_of("jobs", job_id, "preview")))).content

    @ClientMethod
    def deliveries(self, job_id: str, limit: int | None = 20) -> Steps[list[Delivery]]:
        """Return the requests to a job's webhook, newest first, at most `limit`; all with
        `limit=None`.
        """
        return [Delivery(body) for body in (yield from self._list(path_of("jobs", job_id, "deliveries"), limit))]

    @ClientMethod
    def cancel(self, job_id: str) -> Steps[Job]:
        """Cancel a job and return it; a cancelled job is returned unchanged.

        Raises ConflictError if the job has succeeded or failed.
        """
        return Job((yield from self._post("jobs", job_id, "cancel")))

    @ClientMethod
    def delete_job(self, job_id: str) -> Steps[None]:
        """Delete a job and its files. Raises ConflictError if the job has not ended."""
        yield from self._delete("jobs", job_id)


class TrainingMethods(BaseMethods):
    """Start, control and publish trainings.

    A training is a job, so `wait`, `cancel`, `events` and so on apply too.
    """

    @ClientMethod
    def families(self) -> Steps[list[Mapping[str, Any]]]:
        """Return the descriptions of the families that can be trained, sorted by name.

        Each has `name`, the JSON Schemas `config` and `training`, and the default `recipe`.
        """
        return (yield from self._get("families"))["data"]  # type: ignore[no-any-return]

    @ClientMethod
    def train(
        self,
        family: str,
        dataset: str,
        name: str,
        *,
        recipe: Mapping[str, Any] | None = None,
        summary: str = "",
        serve: str = "if better",
        evaluation: Mapping[str, int] | None = None,
        gpus: int = 1,
        shared: bool | None = None,
        deadline_s: float | None = None,
        webhook: Webhook | None = None,
    ) -> Steps[Training]:
        """Start a training and return it without waiting.

        When the training succeeds, the model `name` has a new version. `recipe` has the changes to
        the family's default: `config`, `training`, `seed`. `summary` is a line for the card.
        `serve` says when the new version becomes active: "if better", "always" or "never".
        `evaluation` has the `count` of test pictures and the number `k` of importance samples per
        picture. `gpus` is the number of devices. A new model is private unless `shared`. After
        `deadline_s` seconds the training fails; its last checkpoint is kept. `webhook` is a URL, or
        a mapping of `url` and `events`, for a signed request when it ends. Raises InvalidError for
        an invalid recipe, ConflictError if the name is being trained already.
        """
        body: dict[str, Any] = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}}
        body |= {"summary": summary, "serve": serve, "gpus": gpus}
        body |= {"evaluation": evaluation} if evaluation else {}
        body |= {} if shared is None else {"shared": shared}
        body |= {} if webhook is None else {"webhook": webhook_body(webhook)}
        headers, deadline = {"Idempotency-Key": uuid4().hex}, deadline_after(deadline_s)
        return Training((yield from self._post("trainings", json=body, headers=headers, deadline=deadline)))

    @ClientMethod
    def estimate(
        self, family: str, dataset: str, name: str, *, recipe: Mapping[str, Any] | None = None
    ) -> Steps[Mapping[str, Any]]:
        """Estimate a training from a few timed steps (a dry run), without training.

        The result has, among others, the number of `parameters`, and the `memory_bytes` and
        `seconds` that the whole training would take. Raises InvalidError for an invalid recipe.
        """
        body = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}, "dry_run": True}
        request = ApiRequest("POST", "/v1/trainings", json=body, headers={"Accept": JSON})
        return dict((yield from self._send_and_wait(request)).json())

    @ClientMethod
    def trainings(
        self, *, status: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Training]]:
        """Return your trainings, newest first, at most `limit`; all of them with `limit=None`.

        `status` and `model` select trainings; None selects all.
        """
        return [Training(body) for body in (yield from self._list("/v1/trainings", limit, status=status, model=model))]

    @ClientMethod
    def training(self, job_id: str) -> Steps[Training]:
        """Return the current state of a training, with the last epoch's metrics."""
        return Training((yield from self._get("trainings", job_id)))

    @ClientMethod
    def metrics(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """Return a training's metrics, one entry per epoch. `events` yields them as they happen."""
        return list((yield from self._get("trainings", job_id, "metrics"))["data"])

    @ClientMethod
    def checkpoints(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """Return a training's checkpoints, oldest first. Only the file of the last one is kept."""
        return list((yield from self._get("trainings", job_id, "checkpoints"))["data"])

    @ClientMethod
    def save_curves(self, job_id: str, path: FilePath) -> Steps[SavedFile]:
        """Save a plot of a training's losses as a PNG."""
        request = ApiRequest("GET", path_of("trainings", job_id, "curves.png"))
        return (yield from self._download(request, path, PNG))

    @ClientMethod
    def pause(self, job_id: str) -> Steps[Training]:
        """Pause a training: write a checkpoint and stop. `resume` continues it.

        Raises ConflictError if the training has ended.
        """
        return Training((yield from self._post("trainings", job_id, "pause")))

    @ClientMethod
    def resume(self, job_id: str) -> Steps[Training]:
        """Resume a paused training; a queued or running one continues unchanged.

        Raises ConflictError if the training has ended.
        """
        return Training((yield from self._post("trainings", job_id, "resume")))

    @ClientMethod
    def publish(self, job_id: str) -> Steps[Job]:
        """Publish the last checkpoint of a paused, failed or cancelled training as a version.

        Returns the job that publishes it. Raises ConflictError for another status, or if there is
        no checkpoint.
        """
        return Job((yield from self._post("trainings", job_id, "publish", retry_if_lost=False)))
