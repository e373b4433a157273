"""Methods for trainings."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from reverie.methods.base import JSON, MEDIA_TYPES, BaseMethods, ClientMethod, FilePath, Steps
from reverie.records import Job, SavedFile, Training
from reverie.requests import ApiRequest, path_of


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
    ) -> Steps[Training]:
        """Start a training and return it without waiting.

        When the training succeeds, the model `name` has a new version. `recipe` has the changes to
        the family's default: `config`, `training`, `seed`. `summary` is a line for the card.
        `serve` says when the new version becomes active: "if better", "always" or "never".
        `evaluation` has the `count` of test pictures and the number `k` of importance samples per
        picture. `gpus` is the number of devices. A new model is private unless `shared`. Raises
        InvalidError for an invalid recipe, ConflictError if the name is being trained already.
        """
        body: dict[str, Any] = {
            "family": family,
            "dataset": dataset,
            "name": name,
            "recipe": recipe or {},
            "summary": summary,
            "serve": serve,
            "gpus": gpus,
        }
        body |= {"evaluation": evaluation} if evaluation else {}
        body |= {} if shared is None else {"shared": shared}
        headers = {"Idempotency-Key": uuid4().hex}
        return Training((yield from self._post("trainings", json=body, headers=headers)))

    @ClientMethod
    def estimate(
        self, family: str, dataset: str, name: str, *, recipe: Mapping[str, Any] | None = None
    ) -> Steps[Mapping[str, Any]]:
        """Estimate a training from a few timed steps (a dry run), without training.

        The result has `parameters`, `memory_bytes`, `seconds` and so on. Raises InvalidError for an
        invalid recipe.
        """
        body = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}, "dry_run": True}
        request = ApiRequest("POST", "/v1/trainings", json=body, headers={"Accept": JSON})
        return dict((yield from self._send_and_wait(request)).json())

    @ClientMethod
    def trainings(
        self, *, status: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Training]]:
        """Return your trainings, newest first, at most `limit`; all of them with `limit=None`.

        `status` and `model` select trainings.
        """
        entries = yield from self._list("/v1/trainings", limit, status=status, model=model)
        return [Training(body) for body in entries]

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
        return (yield from self._download(request, path, MEDIA_TYPES[".png"]))

    @ClientMethod
    def pause(self, job_id: str) -> Steps[Training]:
        """Pause a training: write a checkpoint and stop. `resume` continues it.

        Raises ConflictError if the training has ended.
        """
        return Training((yield from self._post("trainings", job_id, "pause")))

    @ClientMethod
    def resume(self, job_id: str) -> Steps[Training]:
        """Resume a paused training. Raises ConflictError if it has ended."""
        return Training((yield from self._post("trainings", job_id, "resume")))

    @ClientMethod
    def publish(self, job_id: str) -> Steps[Job]:
        """Publish the last checkpoint of a paused, failed or cancelled training as a version.

        Returns the job that publishes it. Raises ConflictError for another status, or if there is
        no checkpoint.
        """
        return Job((yield from self._post("trainings", job_id, "publish", retry_if_lost=False)))
