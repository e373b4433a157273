"""Define the client methods that run operations: samples, encodings, upscales and so on."""

import base64
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

from reverie.methods.base import (
    JSON,
    BaseMethods,
    ClientMethod,
    FilePath,
    JobProgress,
    Steps,
    is_url,
    media_type_of,
    webhook_body,
)
from reverie.records import Caller, Job, OperationResult, SavedFile
from reverie.requests import ApiRequest, Upload, deadline_after

# The bytes of a picture file, its path, or an http or https URL from which the service fetches it.
Picture: TypeAlias = bytes | str | os.PathLike[str]

SEED_LIMIT = 2**63
_JOB_FIELDS = ("webhook", "image_url", "mask_url")


class OperationMethods(BaseMethods):
    """Client methods that run the operations of a model.

    Options are keyword arguments; the model's card lists them (`client.model(name).operations`). If
    you give no `seed`, the client draws one. A request that takes long becomes a job, and the
    method waits for it; one with a webhook, or with images by URL, always does. With `webhook`, a
    URL or a mapping of `url` and `events`, the service also sends a signed request there when the
    job ends. All methods take `deadline_s`: after so many
    seconds the service stops the work, and they raise DeadlineExceededError or, for a job,
    JobFailedError. They also raise InvalidError for options or images that the model does not
    accept, NotFoundError for an unknown model, and JobFailedError if the job fails or is cancelled.
    """

    @ClientMethod
    def run(
        self,
        /,
        operation: str,
        model: str,
        images: Sequence[Picture] = (),
        *,
        seed: int | None = None,
        deadline_s: float | None = None,
        on_progress: JobProgress | None = None,
        **options: Any,
    ) -> Steps[OperationResult]:
        """Run an operation of a model and return its result.

        `operation` is the last part of the operation's route, such as "samples". If the request
        became a job, `on_progress` is called with the job each time it is read.
        """
        options["deadline_s"] = deadline_s
        return (yield from self._run(operation, model, images, seed, options, on_progress))

    @ClientMethod
    def save(
        self,
        /,
        path: FilePath,
        operation: str,
        model: str,
        images: Sequence[Picture] = (),
        *,
        seed: int | None = None,
        deadline_s: float | None = None,
        on_progress: JobProgress | None = None,
        **options: Any,
    ) -> Steps[SavedFile]:
        """Run an operation of a model and save its result as the file `path`.

        `operation` is the last part of the operation's route, such as "samples". The suffix .png,
        .npz or .json of `path` chooses the format. If the request became a job, `on_progress` is
        called with the job each time it is read. Raises ValueError for an unknown suffix.
        """
        media_type = media_type_of(path)
        body = _body(model, images, seed, options)
        request = _operation_request(operation, {"Accept": media_type}, body, deadline_s)
        send = partial(self._send_and_wait, on_progress=on_progress)
        return (yield from self._download(request, path, media_type, send=send))

    @ClientMethod
    def submit(
        self,
        /,
        operation: str,
        model: str,
        images: Sequence[Picture] = (),
        *,
        seed: int | None = None,
        deadline_s: float | None = None,
        **options: Any,
    ) -> Steps[Job]:
        """Start an operation of a model as a job; return the job without waiting for its end.

        `operation` is the last part of the operation's route, such as "samples".
        """
        request = _operation_request(operation, _job_headers(), _body(model, images, seed, options), deadline_s)
        response = yield from self._send(request)
        if response.status_code == 202:
            return Job(response.json())
        # a retry, after a lost response, found that the job has ended already
        job_path = response.headers["content-location"].removesuffix("/result")
        return Job((yield from self._json(ApiRequest("GET", job_path))))

    @ClientMethod
    def upscales(
        self,
        /,
        image: Picture,
        path: FilePath,
        *,
        model: str | None = None,
        seed: int | None = None,
        deadline_s: float | None = None,
        on_progress: JobProgress | None = None,
        **options: Any,
    ) -> Steps[SavedFile]:
        """Enlarge a picture and save the result as the file `path`.

        `image` is the path of a file, its bytes, or a URL. The suffix .png, .jpg or .webp of `path`
        chooses the format. Without `model`, the service uses its first model that upscales. Options
        are, for example, `scale` and `method`. If the request became a job, `on_progress` is called
        with the job each time it is read.
        """
        media_type = media_type_of(path)
        fields = {"model": model, "seed": _seed_or_random(seed), **_with_webhook(options)}
        fields = {name: value for name, value in fields.items() if value is not None}
        if isinstance(image, bytes) or is_url(image):
            fields |= {"image": _base64(image)} if isinstance(image, bytes) else {"image_url": image}
            request = _operation_request("upscales", {"Accept": media_type}, fields, deadline_s)
        else:
            if "webhook" in fields:
                fields["webhook"] = json.dumps(fields["webhook"])
            headers = {"Accept": media_type, **(_job_headers() if _is_always_job(fields) else {})}
            upload, deadline = Upload({"image": Path(image)}), deadline_after(deadline_s)
            request = ApiRequest(
                "POST", "/v1/upscales", params=fields, headers=headers, upload=upload, deadline=deadline
            )
        send = partial(self._send_and_wait, on_progress=on_progress)
        return (yield from self._download(request, path, media_type, send=send))

    @ClientMethod
    def samples(
        self, /, model: str, count: int = 1, *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Draw `count` samples; the result has `images`."""
        return (yield from self._run("samples", model, (), seed, {**options, "count": count}))

    @ClientMethod
    def manifold(self, /, model: str, *, seed: int | None = None, **options: Any) -> Steps[OperationResult]:
        """Decode a grid of points of a model's two-dimensional latent space.

        The result has `images` in the order of the grid's lines.
        """
        return (yield from self._run("manifold", model, (), seed, options))

    @ClientMethod
    def decodings(
        self,
        /,
        model: str,
        codes: Sequence[Sequence[float]] | FilePath,
        count: int = 1,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> Steps[OperationResult]:
        """Decode latent codes: lists of numbers, or an NPZ file with an array `codes`.

        The model's card says how long a code is:
        `client.model(name).operations["decodings"]["codes"]`. In the result, picture j of code i is
        `images[i * count + j]`.
        """
        if not isinstance(codes, str | os.PathLike):
            codes = [[float(number) for number in code] for code in codes]
        return (yield from self._run("decodings", model, (), seed, {**options, "codes": codes, "count": count}))

    @ClientMethod
    def encodings(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Compute the latent representation of each image, whose form depends on the family.

        The result has `mean` and `standard_deviation` (vae) or `code` (ebgan), each with one entry
        per image. For a bihm it has `layers`, with one entry per hidden layer, which has one entry
        per image.
        """
        return (yield from self._run("encodings", model, images, seed, options))

    @ClientMethod
    def reconstructions(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Encode images and decode their latent codes; the result has the reconstructions as
        `images`.
        """
        return (yield from self._run("reconstructions", model, images, seed, options))

    @ClientMethod
    def interpolations(
        self, /, model: str, first: Picture, second: Picture, *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Interpolate between two images in latent space; the result has the frames as `images`."""
        return (yield from self._run("interpolations", model, (first, second), seed, options))

    @ClientMethod
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
    ) -> Steps[OperationResult]:
        """Fill in the pixels that are white in `mask`, in `count` ways for each image.

        In the result, completion j of image i is `images[i * count + j]`.
        """
        fields = {**options, **({"mask_url": mask} if is_url(mask) else {"mask": _base64(mask)}), "count": count}
        return (yield from self._run("inpaintings", model, images, seed, fields))

    @ClientMethod
    def energies(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Compute the energy of each image, whose definition depends on the model's family.

        The result has `energies`, one per image.
        """
        return (yield from self._run("energies", model, images, seed, options))

    @ClientMethod
    def likelihoods(
        self, /, model: str, images: Sequence[Picture], *, seed: int | None = None, **options: Any
    ) -> Steps[OperationResult]:
        """Estimate log p(x) of each image by importance sampling, in nats.

        The result has `log_p` and `standard_error`, each with one entry per image.
        """
        return (yield from self._run("likelihoods", model, images, seed, options))

    def _run(
        self,
        operation: str,
        model: str,
        images: Sequence[Picture],
        seed: int | None,
        options: dict[str, Any],
        on_progress: JobProgress | None = None,
    ) -> Steps[OperationResult]:
        """Run an operation of a model; return its result, after waiting for the job if there is
        one.
        """
        deadline_s = options.pop("deadline_s", None)
        request = _operation_request(operation, {"Accept": JSON}, _body(model, images, seed, options), deadline_s)
        return OperationResult((yield from self._send_and_wait(request, on_progress)).json())

    @ClientMethod
    def me(self) -> Steps[Caller]:
        """Return the name, roles, limits and usage of the API key that this client sends."""
        return Caller((yield from self._get("me")))


# See docs/decisions.md#the-client-draws-the-seed-and-the-idempotency-key
def _seed_or_random(seed: int | None) -> int:
    """Return `seed`, or a random one if it is None.

    A request keeps its seed in all its retries.
    """
    return secrets.randbelow(SEED_LIMIT) if seed is None else seed


def _body(model: str, images: Sequence[Picture], seed: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON body of an operation's request; if `seed` is None, it has a random one.

    Raises ValueError if some images are URLs and others are not: the two are sent in separate
    fields, and their order would be lost.
    """
    body = {"model": model, "seed": _seed_or_random(seed), **_with_webhook(options)}
    urls = [image for image in images if is_url(image)]
    if urls and len(urls) < len(images):
        raise ValueError("send all images by URL, or none")
    if urls:
        return {**body, "image_url": urls}
    return {**body, "images": [_base64(image) for image in images]} if images else body


def _with_webhook(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` with the option `webhook`, if it is set, in the form that the API accepts.

    That is a JSON object with `url` and, if given, `events`.
    """
    webhook = options.get("webhook")
    return {**options, **({"webhook": webhook_body(webhook)} if webhook else {})}


def _operation_request(
    operation: str, headers: Mapping[str, str], body: Mapping[str, Any], deadline_s: float | None
) -> ApiRequest:
    """Return the request of an operation.

    If the request always becomes a job, it has the headers of one. If the codes in its body are a
    path, the request uploads the file at this path.
    """
    if _is_always_job(body):
        headers = {**headers, **_job_headers()}
    path, deadline, codes = f"/v1/{operation}", deadline_after(deadline_s), body.get("codes")
    if not isinstance(codes, str | os.PathLike):
        return ApiRequest("POST", path, json=body, headers=headers, deadline=deadline)
    fields = {name: value for name, value in body.items() if name != "codes"}
    params = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in fields.items()}
    upload = Upload({"codes": Path(codes)})
    return ApiRequest("POST", path, params=params, headers=headers, upload=upload, deadline=deadline)


# See docs/decisions.md#the-client-draws-the-seed-and-the-idempotency-key
def _is_always_job(fields: Mapping[str, Any]) -> bool:
    """Return whether the service makes a job of every request with these fields.

    It does if they have a webhook, or URLs of images.
    """
    return any(fields.get(name) for name in _JOB_FIELDS)


def _job_headers() -> dict[str, str]:
    """Return the headers of a request that becomes a job at once, and one job with all its
    retries.
    """
    return {"Prefer": "respond-async", "Idempotency-Key": uuid4().hex}


def _base64(image: Picture) -> str:
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    return base64.b64encode(data).decode()
