"""Every call of the service, written once as steps that a client makes: one after the other, or awaited."""

from __future__ import annotations

import base64
import functools
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload
from urllib.parse import quote
from uuid import uuid4

import httpx

from reverie.errors import JobFailedError, ProblemError, StillRunningError, UnreachableError
from reverie.records import Answer, Caller, Dataset, Job, Model, Saved, Training, Version
from reverie.wire import Ask, Download, Pause, Upload, Watch

if TYPE_CHECKING:
    from reverie.client import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
Steps: TypeAlias = Generator[Ask | Pause, Any, T]
Picture: TypeAlias = bytes | str | os.PathLike[str]
"""The bytes of a picture file, or its path."""

Progress: TypeAlias = Callable[[Job], object]
"""Hears of a job each time it was looked at."""

JSON = "application/json"
MEDIA = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".npz": "application/x-npz",
    ".json": JSON,
}
SEED_LIMIT = 2**63
_RAW = "application/octet-stream"
_PAGE = 100
_CONVERSION_S = 3600.0
"""A large upload is answered when it has been converted."""

_LOADING_S = 90.0


class Call(Generic[P, T]):
    """A method written as steps: requests and pauses, each of which is made by the client that it is called on."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        """As if it were a plain method, to `help` and `inspect`."""
        self.__doc__ = steps.__doc__
        self.__wrapped__ = steps

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self

        @functools.wraps(self.__wrapped__)
        def made(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(self.__wrapped__(client, *args, **kwargs))

        return made


class Calls:
    """Everything that can be asked of the service."""

    def __init__(self, retries: int) -> None:
        """`retries`: how often a request is sent again."""
        self._retries = retries

    # --- one request ---

    def _send(self, ask: Ask) -> Steps[httpx.Response]:
        """The answer, once it is a good one. Raises ProblemError, UnreachableError."""
        attempt = 0
        while True:
            attempt += 1
            try:
                response: httpx.Response = yield ask
            except httpx.TransportError as error:
                if attempt > self._retries or not ask.repeatable(error):
                    raise UnreachableError.of(error) from error
                yield Pause.before(attempt)
                continue
            if not response.is_error:
                return response
            if attempt > self._retries or not ask.repeatable(response):
                raise ProblemError.of(response)
            yield Pause.before(attempt, response)

    def _json(self, ask: Ask) -> Steps[Any]:
        response = yield from self._send(ask)
        return response.json()

    def _saved(
        self, into: Path, media: str, fetch: Callable[[Download], Steps[httpx.Response]], watch: Watch | None = None
    ) -> Steps[Saved]:
        """A file of this content type, whole or not at all. Raises UnexpectedContentError where another one came."""
        download = Download(into, media, watch)
        try:
            response = yield from fetch(download)
            download.keep()
        finally:
            download.drop()
        said = response.headers
        seed = int(said["reverie-seed"]) if "reverie-seed" in said else None
        return Saved(into, download.size_bytes, media, str(said.get("reverie-model", "")), seed)

    def _listed(self, path: str, limit: int | None, **filters: str | None) -> Steps[list[Any]]:
        """The entries of a list, page by page."""
        found: list[Any] = []
        after: str | None = None
        while limit is None or len(found) < limit:
            size = _PAGE if limit is None else min(_PAGE, limit - len(found))
            query = {**filters, "limit": size, "after": after}
            page = yield from self._json(Ask("GET", path, query=query))
            found += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                break
        return found

    def _settled(self, ask: Ask, watch: Progress | None) -> Steps[httpx.Response]:
        """The answer of an operation: at once, or the result of the job that it became. Raises JobFailedError."""
        response = yield from self._send(ask)
        if response.status_code != 202:
            return response
        job = yield from self._ended(response.json()["id"], None, watch)
        if job.status != "succeeded":
            raise JobFailedError(job)
        headers = {"Accept": ask.headers["Accept"]}
        return (yield from self._send(Ask("GET", f"/v1/jobs/{job.id}/result", headers=headers, into=ask.into)))

    # --- operations ---

    @Call
    def ask(
        self,
        /,
        operation: str,
        model: str,
        images: Sequence[Picture] = (),
        *,
        seed: int | None = None,
        watch: Progress | None = None,
        **options: Any,
    ) -> Steps[Answer]:
        """Any operation that the model's card lists, by the last part of its route.

        What takes long becomes a job, which is waited for; `watch` hears how far it is.
        """
        ask = _asking(operation, JSON, _fields(model, images, seed, options))
        return Answer((yield from self._settled(ask, watch)).json())

    @Call
    def save(
        self,
        /,
        into: str | os.PathLike[str],
        operation: str,
        model: str,
        images: Sequence[Picture] = (),
        *,
        seed: int | None = None,
        watch: Progress | None = None,
        **options: Any,
    ) -> Steps[Saved]:
        """The answer of an operation as a file, in the form that its name asks for: .png, .npz or .json."""
        path = Path(into)
        media = _media(path)
        ask = _asking(operation, media, _fields(model, images, seed, options))
        return (yield from self._saved(path, media, lambda file: self._settled(replace(ask, into=file), watch)))

    @Call
    def start(
        self, /, operation: str, model: str, images: Sequence[Picture] = (), *, seed: int | None = None, **options: Any
    ) -> Steps[Job]:
        """An operation as a job, not waited for."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}
        ask = Ask("POST", f"/v1/{operation}", json=_fields(model, images, seed, options), headers=headers)
        response = yield from self._send(ask)
        if response.status_code == 202:
            return Job(response.json())
        # sent again after a lost answer, it has ended meanwhile
        here = response.headers["content-location"].removesuffix("/result")
        return Job((yield from self._json(Ask("GET", here))))

    @Call
    def upscales(
        self,
        /,
        image: str | os.PathLike[str],
        into: str | os.PathLike[str],
        *,
        model: str | None = None,
        seed: int | None = None,
        watch: Progress | None = None,
        **options: Any,
    ) -> Steps[Saved]:
        """A picture file of any size, enlarged by `scale`, `method`, …: .png, .jpg or .webp, as `into` says."""
        path = Path(into)
        media = _media(path)
        query, headers = {"model": model, "seed": _seed(seed), **options}, {"Accept": media}
        ask = Ask("POST", "/v1/upscales", query=query, headers=headers, upload=Upload({"image": Path(image)}))
        return (yield from self._saved(path, media, lambda file: self._settled(replace(ask, into=file), watch)))

    @Call
    def samples(self, /, model: str, count: int = 1, *, seed: int | None = None, **options: Any) -> Steps[Answer]:
        """Draw `count` pictures."""
        return (yield from self._answer("samples", model, (), seed, {**options, "count": count}))

    @Call
    def manifold(self, /, model: str, *, seed: int | None = None, **options: Any) -> Steps[Answer]:
        """The grid of a two-dimensional latent space."""
        return (yield from self._answer("manifold", model, (), seed, options))

    @Call
    def encodings(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[Answer]:
        """The family's codes of images."""
        return (yield from self._answer("encodings", model, images, seed, options))

    @Call
    def reconstructions(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[Answer]:
        """Images through the code and back."""
        return (yield from self._answer("reconstructions", model, images, seed, options))

    @Call
    def interpolations(
        self, /, model: str, first: Picture, second: Picture, *, seed: int | None = None, **options: Any
    ) -> Steps[Answer]:
        """A walk from one image to another."""
        return (yield from self._answer("interpolations", model, (first, second), seed, options))

    @Call
    def inpaintings(
        self,
        /,
        model: str,
        images: Sequence[Picture],
        mask: Picture,
        count: int = 1,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> Steps[Answer]:
        """`count` ways to fill in what is white in the mask, for each image."""
        more = {**options, "mask": _base64(mask), "count": count}
        return (yield from self._answer("inpaintings", model, images, seed, more))

    @Call
    def energies(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[Answer]:
        """The family's energy of images."""
        return (yield from self._answer("energies", model, images, seed, options))

    @Call
    def likelihoods(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[Answer]:
        """Importance-sampled log p of images, with its standard error."""
        return (yield from self._answer("likelihoods", model, images, seed, options))

    def _answer(
        self, operation: str, model: str, images: Sequence[Picture], seed: int | None, options: Mapping[str, Any]
    ) -> Steps[Answer]:
        ask = _asking(operation, JSON, _fields(model, images, seed, options))
        return Answer((yield from self._settled(ask, None)).json())

    # --- who asks ---

    @Call
    def me(self) -> Steps[Caller]:
        """Return whose key this is, its roles, limits and what it uses of them."""
        return Caller((yield from self._json(Ask("GET", "/v1/me"))))

    # --- models ---

    @Call
    def models(self) -> Steps[list[Model]]:
        """All models that serve."""
        page = yield from self._json(Ask("GET", "/v1/models"))
        return [Model(body) for body in page["data"]]

    @Call
    def model(self, name: str) -> Steps[Model]:
        """A model's card, by its name or name@version."""
        return Model((yield from self._json(Ask("GET", f"/v1/models/{word(name)}"))))

    @Call
    def versions(self, name: str) -> Steps[list[Version]]:
        """A model's versions, oldest first."""
        page = yield from self._json(Ask("GET", f"/v1/models/{word(name)}/versions"))
        return [Version(body) for body in page["data"]]

    @Call
    def serve(self, name: str, version: str) -> Steps[Model]:
        """Have this version serve; it is loaded before the one before it goes."""
        ask = Ask("PATCH", f"/v1/models/{word(name)}", json={"version": version}, timeout_s=_LOADING_S)
        return Model((yield from self._json(ask)))

    @Call
    def share(self, name: str, shared: bool = True) -> Steps[Model]:
        """Set whether everybody may use a model, or its owner alone."""
        return Model((yield from self._json(Ask("PATCH", f"/v1/models/{word(name)}", json={"shared": shared}))))

    @Call
    def delete_model(self, name: str) -> Steps[None]:
        """Delete a model with all its versions; ConflictError while a job uses it, and for one that ships."""
        yield from self._send(Ask("DELETE", f"/v1/models/{word(name)}", again=False))

    @Call
    def delete_version(self, name: str, version: str) -> Steps[None]:
        """Delete a version; ConflictError while it serves or a job uses it, and for one that ships."""
        yield from self._send(Ask("DELETE", f"/v1/models/{word(name)}/versions/{word(version)}", again=False))

    @Call
    def export(
        self, name: str, into: str | os.PathLike[str], version: str | None = None, *, watch: Watch | None = None
    ) -> Steps[Saved]:
        """A version, or the one that serves, as one safetensors file with its card."""
        if version is None:
            version = str((yield from self._json(Ask("GET", f"/v1/models/{word(name)}")))["version"])
        ask = Ask("GET", f"/v1/models/{word(name)}/versions/{word(version)}/file")
        return (yield from self._saved(Path(into), _RAW, lambda file: self._send(replace(ask, into=file)), watch))

    @Call
    def bring(
        self, name: str, file: str | os.PathLike[str], *, shared: bool | None = None, watch: Watch | None = None
    ) -> Steps[Version]:
        """A file that was exported becomes a version, which does not serve yet; the same again is the one there is.

        `shared` says whether everybody may use the model; without it a new one is its owner's alone.
        """
        here = f"/v1/models/{word(name)}/versions"
        upload = Upload({"file": Path(file)}, watch)
        ask = Ask("POST", here, query={"shared": shared}, upload=upload, timeout_s=_CONVERSION_S)
        response = yield from self._settled(replace(ask, headers={"Accept": JSON}), None)
        body = response.json()
        if "links" in body:
            return Version(body)
        return Version((yield from self._json(Ask("GET", f"{here}/{word(body['version'])}"))))

    # --- jobs ---

    @Call
    def jobs(
        self,
        *,
        status: str | None = None,
        kind: str | None = None,
        model: str | None = None,
        limit: int | None = 20,
    ) -> Steps[list[Job]]:
        """Jobs, newest first; `limit=None` for all."""
        found = yield from self._listed("/v1/jobs", limit, status=status, kind=kind, model=model)
        return [Job(body) for body in found]

    @Call
    def job(self, job_id: str) -> Steps[Job]:
        """A job as it stands."""
        return Job((yield from self._json(Ask("GET", f"/v1/jobs/{word(job_id)}"))))

    @Call
    def wait(self, job_id: str, timeout_s: float | None = None, watch: Progress | None = None) -> Steps[Job]:
        """A job once it has ended, however; StillRunningError when the time is up before."""
        return (yield from self._ended(job_id, timeout_s, watch))

    def _ended(self, job_id: str, timeout_s: float | None, watch: Progress | None) -> Steps[Job]:
        until = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.05
        while True:
            job = Job((yield from self._json(Ask("GET", f"/v1/jobs/{word(job_id)}"))))
            if watch is not None:
                watch(job)
            if job.ended:
                return job
            left = pause_s if until is None else until - time.monotonic()
            if left <= 0:
                raise StillRunningError(job)
            yield Pause(min(pause_s, left))
            pause_s = min(1.5 * pause_s, 1.0)

    @Call
    def result(self, job_id: str) -> Steps[Answer]:
        """What a succeeded job computed."""
        ask = Ask("GET", f"/v1/jobs/{word(job_id)}/result", headers={"Accept": JSON})
        return Answer((yield from self._json(ask)))

    @Call
    def save_result(self, job_id: str, into: str | os.PathLike[str], *, watch: Watch | None = None) -> Steps[Saved]:
        """What a succeeded job computed, as a file in the form that its name asks for."""
        path = Path(into)
        media = _media(path)
        ask = Ask("GET", f"/v1/jobs/{word(job_id)}/result", headers={"Accept": media})
        return (yield from self._saved(path, media, lambda file: self._send(replace(ask, into=file)), watch))

    @Call
    def preview(self, job_id: str) -> Steps[bytes]:
        """A PNG of what a running job's pictures look like so far; NotFoundError where there is nothing to show."""
        response = yield from self._send(Ask("GET", f"/v1/jobs/{word(job_id)}/preview"))
        return response.content

    @Call
    def cancel(self, job_id: str) -> Steps[Job]:
        """End a job that has not ended."""
        return Job((yield from self._json(Ask("POST", f"/v1/jobs/{word(job_id)}/cancel"))))

    @Call
    def forget(self, job_id: str) -> Steps[None]:
        """Delete an ended job and what it left."""
        yield from self._send(Ask("DELETE", f"/v1/jobs/{word(job_id)}", again=False))

    # --- datasets ---

    @Call
    def datasets(self) -> Steps[list[Dataset]]:
        """What can be trained on, by name."""
        return [Dataset(body) for body in (yield from self._listed("/v1/datasets", None))]

    @Call
    def dataset(self, name: str) -> Steps[Dataset]:
        """One of them."""
        return Dataset((yield from self._json(Ask("GET", f"/v1/datasets/{word(name)}"))))

    @Call
    def upload(
        self,
        name: str,
        file: str | os.PathLike[str],
        labels: str | os.PathLike[str] | None = None,
        *,
        format: str | None = None,  # noqa: A002 - the route's word
        kind: str | None = None,
        resize: str | None = None,
        validation: float | None = None,
        test: float | None = None,
        shared: bool | None = None,
        watch: Watch | None = None,
    ) -> Steps[Dataset]:
        """Make a dataset of an IDX, an NPZ or a ZIP of pictures; sent again it is the one that is there.

        `kind="photographs"`, of any size, are cut into patches; `resize` is HEIGHTxWIDTH; `validation` and `test` are
        shares. `shared` says whether everybody may use it; without it a new one is its owner's alone. `watch` hears
        how many bytes have gone.
        """
        files = {"file": Path(file), **({"labels": Path(labels)} if labels is not None else {})}
        shares = {"validation": validation, "test": test}
        query = {"name": name, "format": format, "kind": kind, "resize": resize, "shared": shared, **shares}
        ask = Ask("POST", "/v1/datasets", query=query, upload=Upload(files, watch), timeout_s=_CONVERSION_S)
        return Dataset((yield from self._json(ask)))

    @Call
    def fetch(self, source: str, name: str | None = None, *, shared: bool | None = None) -> Steps[Dataset]:
        """Make a dataset of a set that the service knows by name: mnist, fashion-mnist."""
        fields: dict[str, Any] = {"source": source, **({"name": name} if name else {})}
        fields |= {} if shared is None else {"shared": shared}
        return Dataset((yield from self._json(Ask("POST", "/v1/datasets", json=fields, timeout_s=_CONVERSION_S))))

    @Call
    def save_preview(
        self, name: str, into: str | os.PathLike[str], *, split: str = "train", count: int = 64
    ) -> Steps[Saved]:
        """Some of a dataset's pictures as a PNG."""
        ask = Ask("GET", f"/v1/datasets/{word(name)}/preview", query={"split": split, "count": count})
        return (yield from self._saved(Path(into), MEDIA[".png"], lambda file: self._send(replace(ask, into=file))))

    @Call
    def share_dataset(self, name: str, shared: bool = True) -> Steps[Dataset]:
        """Set whether everybody may use a dataset, or its owner alone."""
        return Dataset((yield from self._json(Ask("PATCH", f"/v1/datasets/{word(name)}", json={"shared": shared}))))

    @Call
    def delete_dataset(self, name: str) -> Steps[None]:
        """Delete a dataset; ConflictError while a training uses it."""
        yield from self._send(Ask("DELETE", f"/v1/datasets/{word(name)}", again=False))

    # --- trainings ---

    @Call
    def families(self) -> Steps[list[Mapping[str, Any]]]:
        """What can be trained: `name`, the schemas of `config` and `training`, and the `recipe` where none is given."""
        return (yield from self._json(Ask("GET", "/v1/families")))["data"]  # type: ignore[no-any-return]

    @Call
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
        """Begin a training, not waited for; at its end the model `name` has one version more.

        `recipe` is what differs from the family's own: `config`, `training`, `seed`. `serve` says whether the new
        version serves: "if better", "always" or "never". `evaluation`: `count` of test pictures, `k` samples of each.
        `shared` says whether everybody may use the model; without it a new one is its owner's alone.
        """
        fields = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}, "summary": summary}
        more = {"serve": serve, "gpus": gpus, **({"evaluation": evaluation} if evaluation else {})}
        more |= {} if shared is None else {"shared": shared}
        headers = {"Idempotency-Key": uuid4().hex}
        return Training((yield from self._json(Ask("POST", "/v1/trainings", json=fields | more, headers=headers))))

    @Call
    def estimate(
        self, family: str, dataset: str, name: str, *, recipe: Mapping[str, Any] | None = None
    ) -> Steps[Mapping[str, Any]]:
        """What a training would take, from a few timed steps: `parameters`, `memory_bytes`, `seconds`, …."""
        fields = {"family": family, "dataset": dataset, "name": name, "recipe": recipe or {}, "dry_run": True}
        ask = Ask("POST", "/v1/trainings", json=fields, headers={"Accept": JSON})
        return dict((yield from self._settled(ask, None)).json())

    @Call
    def trainings(
        self, *, status: str | None = None, model: str | None = None, limit: int | None = 20
    ) -> Steps[list[Training]]:
        """Trainings, newest first; `limit=None` for all."""
        found = yield from self._listed("/v1/trainings", limit, status=status, model=model)
        return [Training(body) for body in found]

    @Call
    def training(self, job_id: str) -> Steps[Training]:
        """A training as it stands, with the last line of its metrics."""
        return Training((yield from self._json(Ask("GET", f"/v1/trainings/{word(job_id)}"))))

    @Call
    def metrics(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """A line an epoch; `events` has them as they come."""
        page = yield from self._json(Ask("GET", f"/v1/trainings/{word(job_id)}/metrics"))
        return list(page["data"])

    @Call
    def checkpoints(self, job_id: str) -> Steps[list[Mapping[str, Any]]]:
        """What the training could be resumed from, the last of which is kept."""
        page = yield from self._json(Ask("GET", f"/v1/trainings/{word(job_id)}/checkpoints"))
        return list(page["data"])

    @Call
    def save_curves(self, job_id: str, into: str | os.PathLike[str]) -> Steps[Saved]:
        """The losses as a PNG."""
        ask = Ask("GET", f"/v1/trainings/{word(job_id)}/curves.png")
        return (yield from self._saved(Path(into), MEDIA[".png"], lambda file: self._send(replace(ask, into=file))))

    @Call
    def pause(self, job_id: str) -> Steps[Training]:
        """Stop a training with a checkpoint, to be resumed."""
        return Training((yield from self._json(Ask("POST", f"/v1/trainings/{word(job_id)}/pause"))))

    @Call
    def resume(self, job_id: str) -> Steps[Training]:
        """Go on with a paused training."""
        return Training((yield from self._json(Ask("POST", f"/v1/trainings/{word(job_id)}/resume"))))

    @Call
    def publish(self, job_id: str) -> Steps[Job]:
        """Begin to make the last checkpoint of a paused, failed or cancelled training a version."""
        ask = Ask("POST", f"/v1/trainings/{word(job_id)}/publish", again=False)
        return Job((yield from self._json(ask)))


def word(name: str) -> str:
    """A name as part of a path."""
    return quote(name, safe="@")


def _media(path: Path) -> str:
    """The form that a file's name asks for."""
    media = MEDIA.get(path.suffix.lower())
    if media is None:
        raise ValueError(f"{path.name}: name the file {', '.join(MEDIA)}; that says the form of the answer")
    return media


def _seed(seed: int | None) -> int:
    """One is drawn here where none is given, so that it is the same request when it is sent again."""
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed


def _fields(model: str, images: Sequence[Picture], seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"model": model, "seed": _seed(seed), **options}
    return {**fields, "images": [_base64(image) for image in images]} if images else fields


def _asking(operation: str, media: str, fields: Mapping[str, Any]) -> Ask:
    return Ask("POST", f"/v1/{operation}", json=fields, headers={"Accept": media})


def _base64(image: Picture) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()
