"""Define the client methods for jobs, and for trainings, which are jobs."""

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
    """Client methods that list jobs, wait for them, get their results, cancel and delete them.

    They raise NotFoundError for an unknown id.
    """

    @ClientMethod
    def jobs(
        self, *, status: str | None = None, kind: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Job]]:
        """Return your newest jobs, newest first: at most `limit`, or all if `limit` is None.

        `status` (such as "running"), `kind` (an operation such as "samples", or for example
        "training") and `model` (a model's name) select jobs; None selects all.
        """
        return [Job(body) for body in (yield from self._list("/v1/jobs", limit, status=status, kind=kind, model=model))]

    @ClientMethod
    def job(self, job_id: str) -> Steps[Job]:
        """Return a job in its present state."""
        return Job((yield from self._get("jobs", job_id)))

    @ClientMethod
    def wait(self, job_id: str, timeout_s: float | None = None, on_progress: JobProgress | None = None) -> Steps[Job]:
        """Wait until a job has succeeded, failed or been cancelled; return it.

        `on_progress` is called with the job each time it is read. Raises StillRunningError after
        `timeout_s` seconds; None means no limit.
        """
        return (yield from self._wait(job_id, timeout_s, on_progress))

    @ClientMethod
    def result(self, job_id: str) -> Steps[OperationResult]:
        """Return the result of a job that has succeeded.

        Raises ConflictError if the job has not succeeded, and GoneError if the result has expired.
        """
        request = ApiRequest("GET", path_of("jobs", job_id, "result"), headers={"Accept": JSON})
        return OperationResult((yield from self._json(request)))

    @ClientMethod
    def save_result(self, job_id: str, path: FilePath, *, on_progress: ByteProgress | None = None) -> Steps[SavedFile]:
        """Save the result of a job that has succeeded as the file `path`.

        The suffix of `path` chooses the format. `on_progress` is called with the number of bytes
        received so far. Raises ConflictError if the job has not succeeded, and GoneError if the
        result has expired.
        """
        media_type = media_type_of(path)
        request = ApiRequest("GET", path_of("jobs", job_id, "result"), headers={"Accept": media_type})
        return (yield from self._download(request, path, media_type, on_progress))

    @ClientMethod
    def preview(self, job_id: str) -> Steps[bytes]:
        """Return a PNG of the unfinished images of a running job.

        For a training these are images that its model has generated so far. Raises NotFoundError if
        the job has no preview.
        """
        return (yield from self._send(ApiRequest("GET", path_of("jobs", job_id, "preview")))).content

    @ClientMethod
    def deliveries(self, job_id: str, limit: int | None = 20) -> Steps[list[Delivery]]:
        """Return the newest requests to a job's webhook, newest first.

        There are at most `limit`, or all if `limit` is None.
        """
        return [Delivery(body) for body in (yield from self._list(path_of("jobs", job_id, "deliveries"), limit))]

    @ClientMethod
    def cancel(self, job_id: str) -> Steps[Job]:
        """Cancel a job and return it; a job that is cancelled already is returned unchanged.

        Raises ConflictError if the job has succeeded or failed.
        """
        return Job((yield from self._post("jobs", job_id, "cancel")))

    @ClientMethod
    def delete_job(self, job_id: str) -> Steps[None]:
        """Delete a job that has ended, with its result and files.

        Raises ConflictError if the job has not ended.
        """
        yield from self._delete("jobs", job_id)


class TrainingMethods(BaseMethods):
    """Client methods that start, watch, pause, resume and publish trainings.

    A training is a job, so methods for jobs, such as `wait` and `cancel`, work for it, too.
    """

    @ClientMethod
    def families(self) -> Steps[list[Mapping[str, Any]]]:
        """Return the descriptions of the families that can be trained, sorted by name.

        Each has `name`, the JSON Schemas `config` and `training` of a recipe's parts, and the
        default `recipe`.
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
        """Start a training of a family on a dataset; return the training without waiting for it.

        When the training succeeds, the model `name` has a new version. `recipe` has the changes to
        the family's default recipe: `config`, `training` and `seed`. `summary` describes the model
        in its model card. `serve` says when the new version becomes active: "if better" than the
        active one, "always" or "never". `evaluation` has the `count` of test pictures and the
        number `k` of importance samples per picture. `gpus` is the number of devices. A new model
        is private unless `shared`. After `deadline_s` seconds the training fails; its last
        checkpoint is kept. `webhook` is a URL, or a mapping of `url` and `events`, to which the
        service sends a signed request when the training ends. Raises InvalidError for an invalid
        recipe, and ConflictError if a training of this model is unfinished.
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
        self,
        family: str,
        dataset: str,
        name: str,
        *,
        recipe: Mapping[str, Any] | None = None,
        deadline_s: float | None = None,
        webhook: Webhook | None = None,
        on_progress: JobProgress | None = None,
    ) -> Steps[Mapping[str, Any]]:
        """Estimate the memory and time of a training from a few timed steps (a dry run).

        The result has, among others, the number of `parameters`, and the `memory_bytes` and
        `seconds` that the whole training would take. A dry run is a job, which the method waits for
        if it takes long; `on_progress` is called with the job each time it is read. After
        `deadline_s` seconds the service stops it. `webhook` is a URL, or a mapping of `url` and
        `events`, to which the service sends a signed request when the dry run ends. Raises
        InvalidError for an invalid recipe, DeadlineExceededError or JobFailedError after the
        deadline, and UnreachableError if the connection breaks before the response: the service may
        have started the dry run then.
        """
        body: dict[str, Any] = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}}
        body |= {"dry_run": True} | ({} if webhook is None else {"webhook": webhook_body(webhook)})
        headers, deadline = {"Accept": JSON}, deadline_after(deadline_s)
        # a dry run ignores an Idempotency-Key, so a retry could start a second one
        request = ApiRequest(
            "POST", "/v1/trainings", json=body, headers=headers, deadline=deadline, retry_if_lost=False
        )
        return dict((yield from self._send_and_wait(request, on_progress)).json())

    @ClientMethod
    def trainings(
        self, *, status: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Training]]:
        """Return your newest trainings, newest first: at most `limit`, or all if `limit` is None.

        `status` and `model` (a model's name) select trainings; None selects all.
        """
        return [Training(body) for body in (yield from self._list("/v1/trainings", limit, status=status, model=model))]

    @ClientMethod
    def training(self, job_id: str) -> Steps[Training]:
        """Return a training in its present state, with the metrics of its last epoch."""
        return Training((yield from self._get("trainings", job_id)))

    @ClientMethod
    def metrics(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """Return the metrics of each epoch of a training so far, oldest first.

        The method `events` yields them as they happen.
        """
        return list((yield from self._get("trainings", job_id, "metrics"))["data"])

    @ClientMethod
    def checkpoints(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """Return descriptions of a training's checkpoints, oldest first.

        Only the file of the last checkpoint is kept.
        """
        return list((yield from self._get("trainings", job_id, "checkpoints"))["data"])

    @ClientMethod
    def training_previews(self, job_id: str) -> Steps[list[int]]:
        """Return the epochs of which a training keeps a preview, at most 64, in ascending order."""
        return [entry["epoch"] for entry in (yield from self._get("trainings", job_id, "previews"))["data"]]

    @ClientMethod
    def training_preview(self, job_id: str, epoch: int | None = None) -> Steps[bytes]:
        """Return a PNG of what the model generated after an epoch, by default the newest one.

        Raises NotFoundError if there is no preview of this epoch.
        """
        segments = ["preview"] if epoch is None else ["previews", str(epoch)]
        return (yield from self._send(ApiRequest("GET", path_of("trainings", job_id, *segments)))).content

    @ClientMethod
    def save_curves(self, job_id: str, path: FilePath) -> Steps[SavedFile]:
        """Save a plot of a training's losses as the PNG file `path`."""
        request = ApiRequest("GET", path_of("trainings", job_id, "curves.png"))
        return (yield from self._download(request, path, PNG))

    @ClientMethod
    def pause(self, job_id: str) -> Steps[Training]:
        """Pause a training after it has written a checkpoint; return the training.

        `resume` continues it from there. Raises ConflictError if the training has ended.
        """
        return Training((yield from self._post("trainings", job_id, "pause")))

    @ClientMethod
    def resume(self, job_id: str) -> Steps[Training]:
        """Resume a paused training from its last checkpoint; return the training.

        A queued or running training continues unchanged. Raises ConflictError if the training has
        ended.
        """
        return Training((yield from self._post("trainings", job_id, "resume")))

    @ClientMethod
    def publish(self, job_id: str) -> Steps[Job]:
        """Start to publish a training's last checkpoint as a version; return the job that does it.

        The training must be paused, failed or cancelled. Raises ConflictError for another status,
        or if there is no checkpoint.
        """
        return Job((yield from self._post("trainings", job_id, "publish", retry_if_lost=False)))
