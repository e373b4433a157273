"""The OpenAI-compatible routes, called by the official client, which validates each response.

One module, although it is long, so that all tests share one service.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import httpx2  # the HTTP library of openai
import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAI
from PIL import Image

from api.openai_errors import error_object
from api.responses.openai_images import nearest_factor
from core.catalog.cards import ImageShape
from core.storage import ObjectStoreError
from tests.api.callers import app_settings, application, key_file, key_line, state_of
from tests.api.helpers import MODEL, TINY, decode_image, decode_image_base64, encode_image, post_samples
from tests.datasets import DIGITS
from tests.stack import Stack
from tests.uploads import npz, pictures
from tests.waiting import wait_until

NETWORK = {"config": {"hidden": [8], "latents": 2}}
SMALL = {"recipe": NETWORK, "evaluation": {"count": 8, "k": 10}}


@pytest.fixture
def api(stack: Stack) -> Iterator[OpenAI]:
    """OpenAI's client of the shared service, which raises if a response does not match OpenAI's
    schema.
    """
    with OpenAI(
        base_url=f"{stack.url}/openai/v1", api_key="any", max_retries=0, _strict_response_validation=True
    ) as opened:
        yield opened


def refusal(error: openai.APIStatusError, status: int, param: str | None, *words: str) -> None:
    """Check that an error has OpenAI's form, this status and parameter, and a message with these
    words.
    """
    assert error.status_code == status
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert (error.param, error.type) == (param, "invalid_request_error")
    assert error.code
    for word in words:
        assert word in error.body["message"]


# --- models ---


def test_models(api: OpenAI) -> None:
    """Models are listed, and can be retrieved by name or by name and version."""
    models = {model.id: model for model in api.models.list()}
    assert {MODEL, TINY} <= models.keys()
    assert models[MODEL].owned_by == "reverie"
    assert models[MODEL].created > 1_700_000_000
    assert "samples" in models[MODEL].to_dict()["operations"]  # type: ignore[operator]
    assert api.models.retrieve(f"{MODEL}@1").id == f"{MODEL}@1"
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-image-1")
    refusal(caught.value, 404, None, "gpt-image-1")


# --- images ---


def test_images_are_those_of_samples(api: OpenAI, client: httpx.Client) -> None:
    """`n` and `seed` give the images of `POST /v1/samples`; `revised_prompt` says that the prompt
    was not used.
    """
    drawn = api.images.generate(model=MODEL, prompt="a seven", n=3, extra_body={"seed": 5, "output": "draws"})
    samples = post_samples(client, count=3, seed=5, output="draws").json()
    assert drawn.data is not None
    assert [image.b64_json for image in drawn.data] == samples["images"]
    assert drawn.size == "28x28"
    assert drawn.output_format == "png"
    assert (drawn.model_extra or {})["seed"] == 5
    for image in drawn.data:
        assert image.url is None
        assert re.search(r"prompt was not used.*samples of vae-mnist-2d@1 with seed 5", image.revised_prompt or "")


def test_a_size_is_the_nearest_whole_multiple(api: OpenAI) -> None:
    """Images are enlarged by the whole factor nearest to `size`, without interpolation, and
    `revised_prompt` says so.
    """
    small = api.images.generate(model=MODEL, prompt="", extra_body={"seed": 5})
    large = api.images.generate(model=MODEL, prompt="", size="1024x1024", extra_body={"seed": 5})
    assert small.data
    assert large.data
    pixels = decode_image_base64(small.data[0].b64_json or "")
    assert large.size == "1036x1036"
    assert np.array_equal(decode_image_base64(large.data[0].b64_json or ""), pixels.repeat(37, 0).repeat(37, 1))
    text = large.data[0].revised_prompt or ""
    assert "1024x1024 is not possible" in text
    assert "enlarged 37 times to 1036×1036 without interpolation" in text
    assert "enlarged" not in (small.data[0].revised_prompt or "")


@pytest.mark.parametrize(
    ("size", "factor"), [(None, 1), ("auto", 1), ("1x1", 1), ("28x28", 1), ("41x41", 1), ("43x43", 2), ("280x56", 6)]
)
def test_the_factor_is_the_nearest(size: str | None, factor: int) -> None:
    """The factor is at least 1, and the one whose image size is nearest to `size` (Euclidean
    distance).
    """
    assert nearest_factor(size, ImageShape(1, 28, 28)) == factor


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(api: OpenAI, kind: Any) -> None:
    """`output_format` selects the file format."""
    drawn = api.images.generate(model=MODEL, prompt="", size="56x56", output_format=kind, output_compression=90)
    assert drawn.data
    assert drawn.output_format == kind
    picture = Image.open(io.BytesIO(base64.b64decode(drawn.data[0].b64_json or "")))
    assert (picture.format, picture.size) == (kind.upper(), (56, 56))


def test_links_to_images(api: OpenAI, client: httpx.Client) -> None:
    """With `response_format: url` each image has an absolute link, with the same pixels."""
    drawn = api.images.generate(model=MODEL, prompt="", n=2, response_format="url", extra_body={"seed": 5})
    samples = post_samples(client, count=2, seed=5).json()
    assert drawn.data
    for image, expected in zip(drawn.data, samples["images"], strict=True):
        assert image.b64_json is None
        assert image.url is not None
        response = httpx.get(image.url)
        assert response.headers["content-type"] == "image/png"
        assert np.array_equal(decode_image(response.content), decode_image_base64(expected))
        assert httpx.get(image.url, headers={"If-None-Match": response.headers["etag"]}).status_code == 304
    large = api.images.generate(
        model=MODEL, prompt="", size="56x56", response_format="url", output_format="webp", extra_body={"seed": 5}
    )
    assert large.data
    assert decode_image(httpx.get(large.data[0].url or "").content).shape == (56, 56, 3)
    too_large = httpx.get(re.sub("factor=2", "factor=4000", large.data[0].url or ""))
    assert (too_large.status_code, too_large.json()["error"]["param"]) == (400, "factor")
    missing = re.sub(r"/0\?.*", "/1", large.data[0].url or "")
    assert httpx.get(missing).status_code == 404
    assert "no image 1" in httpx.get(missing).json()["error"]["message"]


def test_a_client_without_a_model_gets_pictures(api: OpenAI) -> None:
    """Without `model`, the first model that can draw images is used."""
    drawn = api.images.generate(prompt="anything")
    assert drawn.data
    assert decode_image_base64(drawn.data[0].b64_json or "").shape[0] > 1


def test_open_webui_gets_pictures(client: httpx.Client) -> None:
    """The request that Open WebUI's image engine "openai" sends gets an image in `b64_json` and no
    `url`.
    """
    body = {"model": MODEL, "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json"}
    response = client.post("/openai/v1/images/generations", json=body, headers={"Authorization": "Bearer sk-none"})
    assert response.status_code == 200
    (image,) = response.json()["data"]
    assert "url" not in image
    assert decode_image_base64(image["b64_json"]).shape == (504, 504)


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"n": 0}, "n", ["greater than or equal to 1"]),
        ({"n": 10**6}, "n", ["65536"]),
        ({"n": 1000, "size": "1024x1024"}, "n", ["ask for 62"]),
        ({"size": "large"}, "size", ["WIDTHxHEIGHT"]),
        ({"size": "10000x10000"}, "size", ["4096"]),
        ({"response_format": "gif"}, "response_format", ["b64_json"]),
        ({"background": "transparent"}, "background", ["opaque"]),
        ({"quality": "hd"}, "quality", ["standard"]),
        ({"stream": True}, "stream", ["False"]),
        ({"stream": 0}, "stream", ["False"]),
        ({"style": "vivid"}, "style", ["no such parameter", "size", "options of vae-mnist-2d", "temperature"]),
        ({"extra_body": {"temperature": -1}}, "temperature", ["minimum"]),
        ({"extra_body": {"count": 2}}, "count", ["no such parameter"]),
        ({"model": "enlarge"}, "model", ["cannot draw images", MODEL]),
        ({"extra_query": {"colour": "red"}}, "colour", ["no such query parameter"]),
    ],
)
def test_what_cannot_be_drawn(api: OpenAI, parameters: dict[str, Any], param: str, words: list[str]) -> None:
    """An invalid parameter of an image generation is 400, and the message says what would work."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.generate(**{"model": MODEL, "prompt": "", **parameters})
    refusal(caught.value, 400, param, *words)


def test_an_unknown_model(api: OpenAI) -> None:
    """An unknown model is 404, and the message names the models that draw images."""
    with pytest.raises(openai.NotFoundError) as caught:
        api.images.generate(model="gpt-image-1", prompt="")
    refusal(caught.value, 404, "model", MODEL)
    assert caught.value.code == "model_not_found"


# --- edits ---


def rgba(alpha: np.ndarray, level: int = 255) -> bytes:
    """Return a PNG of one grey level with this alpha channel."""
    picture = Image.new("RGB", alpha.shape[::-1], (level, level, level))
    picture.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return encode_image(picture)


RIGHT_HALF = np.hstack([np.full((8, 4), 255), np.zeros((8, 4))])
WHITE = encode_image(Image.new("L", (8, 8), 255))


def test_transparent_pixels_are_filled_in(api: OpenAI) -> None:
    """An edit keeps the pixels that are opaque in the mask; the others differ between the
    results.
    """
    edited = api.images.edit(
        model=TINY, image=("a.png", WHITE), mask=("b.png", rgba(RIGHT_HALF)), prompt="", n=4, extra_body={"seed": 2}
    )
    assert edited.data
    results = np.stack([decode_image_base64(image.b64_json or "") for image in edited.data])
    assert (results[:, :, :4] == 255).all()
    assert len({result[:, 4:].tobytes() for result in results}) == 4
    assert "filled in by tiny@1 with seed 2" in (edited.data[0].revised_prompt or "")


def test_an_image_without_a_mask_has_its_own(api: OpenAI, client: httpx.Client) -> None:
    """Without a mask, the image's transparent pixels are filled in, as by `POST /v1/inpaintings`
    with that mask.
    """
    edited = api.images.edit(model=TINY, image=rgba(RIGHT_HALF), prompt="", extra_body={"seed": 2, "inverted": True})
    mask = encode_image(Image.fromarray((255 - RIGHT_HALF).astype(np.uint8)))
    image = encode_image(Image.fromarray(RIGHT_HALF.astype(np.uint8)))
    form = {"model": TINY, "seed": "2", "inverted": "true"}
    expected = client.post("/v1/inpaintings", data=form, files={"images": image, "mask": mask}).json()
    assert edited.data
    assert [image.b64_json for image in edited.data] == expected["images"]


def test_an_enlarged_image_can_be_edited(api: OpenAI) -> None:
    """An image that was enlarged by `size` is reduced first: the edit equals that of the small
    image.
    """
    mask = rgba(RIGHT_HALF)
    small = api.images.edit(model=TINY, image=WHITE, mask=mask, prompt="", extra_body={"seed": 2})
    large_mask = rgba(RIGHT_HALF.repeat(5, 0).repeat(5, 1))
    large_image = encode_image(Image.new("L", (40, 40), 255))
    large = api.images.edit(
        model=TINY, image=[large_image], mask=large_mask, prompt="", size="40x40", extra_body={"seed": 2}
    )
    assert small.data
    assert large.data
    pixels = decode_image_base64(small.data[0].b64_json or "")
    assert np.array_equal(decode_image_base64(large.data[0].b64_json or ""), pixels.repeat(5, 0).repeat(5, 1))


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"mask": WHITE}, "mask", ["no pixel is transparent", "alpha 0"]),
        ({"image": WHITE}, "image", ["no pixel is transparent", "send a `mask`"]),
        ({"mask": rgba(np.zeros((8, 8)))}, "mask", ["every pixel"]),
        ({"image": encode_image(Image.new("L", (9, 9)))}, "image", ["9×9", "8×8"]),
        ({"image": b"GIF?"}, "image", ["not a picture"]),
        ({"image": [WHITE, WHITE]}, "image", ["2 were sent"]),
        ({"model": MODEL}, "model", ["cannot fill in images", TINY]),
        ({"n": 0}, "n", ["greater"]),
        ({"mask": rgba(RIGHT_HALF), "extra_body": {"strength": "1"}}, "strength", ["no such parameter", "inverted"]),
        ({"mask": rgba(RIGHT_HALF), "extra_body": {"steps": "many"}}, "steps", ["many"]),
    ],
)
def test_what_cannot_be_edited(api: OpenAI, parameters: dict[str, Any], param: str, words: list[str]) -> None:
    """An invalid parameter of an edit is 400, and the message says what would work."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.edit(**{"model": TINY, "image": WHITE, "prompt": "", **parameters})
    refusal(caught.value, 400, param, *words)


# --- files ---


def test_files_are_datasets(api: OpenAI, client: httpx.Client) -> None:
    """A file can be uploaded, listed, downloaded, uploaded again and deleted; its id is the name of
    a dataset.
    """
    made = api.files.create(file=("digits.gz", DIGITS.read_bytes()), purpose="fine-tune")
    assert (made.filename, made.status, made.purpose) == ("digits.gz", "processed", "fine-tune")
    assert api.files.wait_for_processing(made.id).id == made.id
    assert api.files.retrieve(made.id) == made
    assert made.id in [file.id for file in api.files.list(purpose="fine-tune")]
    assert list(api.files.list(purpose="batch")) == []
    dataset = client.get(f"/v1/datasets/{made.id}").json()
    content = api.files.content(made.id).read()
    again = api.files.create(file=("again.npz", content), purpose="fine-tune", extra_body={"validation": 0})
    assert client.get(f"/v1/datasets/{again.id}").json()["sha256"] == dataset["sha256"]
    pages = [page.data[0].id for page in api.files.list(limit=1, order="asc").iter_pages()]
    assert pages.index(made.id) < pages.index(again.id)
    for file in (made, again):
        assert api.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(made.id)


def test_labels_are_part_of_the_content(api: OpenAI, client: httpx.Client) -> None:
    """The downloaded NPZ has the labels of each split."""
    images, labels = pictures(40), np.arange(40) % 7
    made = api.files.create(file=("labelled.npz", npz(images=images, labels=labels)), purpose="fine-tune")
    arrays = np.load(io.BytesIO(api.files.content(made.id).read()))
    found = {
        (image.tobytes(), int(label))
        for split in ("train", "validation", "test")
        if split in arrays
        for image, label in zip(arrays[split], arrays[f"y_{split}"], strict=True)
    }
    assert found == {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    api.files.delete(made.id)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ObjectStoreError(errno.EIO, "the object store failed"), 503, "the object store failed; try again later"),
        (FileNotFoundError(), 404, "was deleted meanwhile"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, error: OSError, status: int, message: str) -> None:
    """If a dataset's arrays cannot be downloaded from the blob store, the content is an error and
    not a broken body.
    """

    def fail(*_arguments: str) -> Path:
        raise error

    async def call() -> None:
        async with application(app_settings(tmp_path), "") as (client,):
            files = {"file": ("a.npz", npz(images=pictures(40)))}
            made = await client.post("/openai/v1/files", files=files, data={"purpose": "fine-tune"}, timeout=60)
            with patch.object(state_of(client).datasets, "file", fail):
                response = await client.get(f"/openai/v1/files/{made.json()['id']}/content")
            assert response.status_code == status
            assert message in response.json()["error"]["message"]

    asyncio.run(call())


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"purpose": "batch"}, "purpose", ["fine-tune"]),
        ({"file": ("chat.jsonl", b'{"messages": []}')}, "file", ["IDX", "NPZ", "ZIP"]),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after[anchor]", ["no such field"]),
        ({"extra_body": {"name": "../x"}}, "name", ["pattern"]),
    ],
)
def test_files_that_are_refused(api: OpenAI, parameters: dict[str, Any], param: str | None, words: list[str]) -> None:
    """An invalid upload is 400, and the message says what would work."""
    upload = {"file": ("a.npz", npz(images=pictures(9))), "purpose": "fine-tune"}
    with pytest.raises(openai.BadRequestError) as caught:
        api.files.create(**{**upload, **parameters})
    refusal(caught.value, 400, param, *words)


# --- fine-tuning ---


@pytest.fixture(scope="module")
def digits_file(stack: Stack) -> str:
    """The id of an uploaded file of 500 digits."""
    with OpenAI(base_url=f"{stack.url}/openai/v1", api_key="any") as api:
        return api.files.create(file=DIGITS, purpose="fine-tune").id


def test_a_fine_tuning_job(api: OpenAI, digits_file: str) -> None:
    """A fine-tuning job of a family trains a model; events, checkpoints and lists are OpenAI's, and
    the model draws images.
    """
    job = api.fine_tuning.jobs.create(
        model="vae",
        training_file=digits_file,
        method={
            "type": "supervised",
            "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 50, "learning_rate_multiplier": 0.5}},
        },
        suffix="Digits",
        seed=3,
        metadata={"project": "tour"},
        extra_body=SMALL,
    )
    assert (job.model, job.training_file, job.seed, job.metadata) == ("vae", digits_file, 3, {"project": "tour"})
    assert job.status in {"queued", "running"}
    assert job.fine_tuned_model is None
    assert job.hyperparameters.to_dict() == {"n_epochs": 2, "batch_size": 50, "learning_rate_multiplier": 0.5}
    done = ended(api, job.id)
    assert (done.status, done.error) == ("succeeded", None)
    assert done.fine_tuned_model == "ft-vae-digits@1"
    assert done.finished_at is not None
    assert job.id in [one.id for one in api.fine_tuning.jobs.list(limit=5)]

    events = [event for page in api.fine_tuning.jobs.list_events(job.id, limit=2).iter_pages() for event in page.data]
    assert events[0].message == "status: succeeded"
    assert events[-1].message == "status: queued"
    metrics = [event for event in events if event.type == "metrics"]
    assert [event.data["epoch"] for event in metrics] == [2, 1]  # type: ignore[index]
    assert "train_loss" in metrics[0].message
    checkpoints = list(api.fine_tuning.jobs.checkpoints.list(job.id))
    assert checkpoints[0].fine_tuned_model_checkpoint == "ft-vae-digits@1"
    assert checkpoints[0].metrics.train_loss is not None

    drawn = api.images.generate(model=done.fine_tuned_model, prompt="")
    assert drawn.data
    assert decode_image_base64(drawn.data[0].b64_json or "").shape == (28, 28)
    with pytest.raises(openai.ConflictError) as caught:
        api.fine_tuning.jobs.cancel(job.id)
    refusal(caught.value, 409, None, "succeeded")


def test_a_job_of_a_served_model_is_paused_resumed_and_cancelled(
    api: OpenAI, client: httpx.Client, digits_file: str
) -> None:
    """A fine-tuning job of a served model has that model's configuration.

    While it is paused its status is `queued`, with `paused` set.
    """
    job = api.fine_tuning.jobs.create(
        model=MODEL, training_file=digits_file, hyperparameters={"n_epochs": 10_000, "batch_size": "auto"}
    )
    training = client.get(f"/v1/trainings/{job.id}").json()
    assert training["family"] == "vae"
    assert training["recipe"]["config"]["hidden"] == [500, 500]
    assert training["model"].startswith(f"ft-{MODEL}-")
    assert (job.model, job.hyperparameters.n_epochs) == (MODEL, 10_000)
    paused = api.fine_tuning.jobs.pause(job.id)
    assert (paused.status, (paused.model_extra or {})["paused"]) == ("queued", True)
    resumed = api.fine_tuning.jobs.resume(job.id)
    assert (resumed.status in {"queued", "running"}, (resumed.model_extra or {})["paused"]) == (True, False)
    assert api.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def ended(api: OpenAI, job_id: str) -> Any:
    """Wait until a job has ended, and return it."""
    return wait_until(
        lambda: job if (job := api.fine_tuning.jobs.retrieve(job_id)).finished_at else None, "the training has ended"
    )


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", ["an integer in [1,"]),
        ({"hyperparameters": {"batch_size": 10**6}}, "hyperparameters.batch_size", ["65536"]),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            ["minimum"],
        ),
        ({"hyperparameters": {"n_epochs": "many"}}, "hyperparameters.n_epochs", ["`auto`"]),
        ({"hyperparameters": {"n_epochs": 1.5}}, "hyperparameters.n_epochs", ["integer"]),
        ({"hyperparameters": {"n_epochs": [1]}}, "hyperparameters.n_epochs", ["`auto`"]),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters", ["no such parameter: beta", "n_epochs"]),
        ({"method": {"type": "dpo"}}, "method.type", ["supervised"]),
        ({"validation_file": "file-1"}, "validation_file", ["its own"]),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, "integrations", ["leave them out"]),
        ({"suffix": "a b"}, "suffix", ["pattern"]),
        ({"extra_body": {"epochs": 3}}, "epochs", ["no such parameter", "hyperparameters"]),
        ({"extra_body": {"recipe": {"training": {"speed": 1}}}}, "recipe.training.speed", ["speed"]),
    ],
)
def test_jobs_that_are_refused(
    api: OpenAI, digits_file: str, parameters: dict[str, Any], param: str, words: list[str]
) -> None:
    """An invalid fine-tuning request is 400, and the message says what would work."""
    with pytest.raises(openai.BadRequestError) as caught:
        api.fine_tuning.jobs.create(**{"model": "vae", "training_file": digits_file, **parameters})
    refusal(caught.value, 400, param, *words)


def test_jobs_of_what_is_not_there(api: OpenAI, digits_file: str) -> None:
    """An unknown model, file or job is 404; an unknown cursor is 400."""
    with pytest.raises(openai.NotFoundError) as caught:
        api.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=digits_file)
    refusal(caught.value, 404, "model", "vae", MODEL)
    with pytest.raises(openai.NotFoundError) as caught:
        api.fine_tuning.jobs.create(model="vae", training_file="file-none")
    refusal(caught.value, 404, "training_file", "file-none")
    with pytest.raises(openai.NotFoundError) as caught:
        api.fine_tuning.jobs.retrieve("ftjob-none")
    refusal(caught.value, 404, None, "ftjob-none")
    with pytest.raises(openai.BadRequestError) as caught_cursor:
        api.fine_tuning.jobs.list(after="job_0")
    refusal(caught_cursor.value, 400, "after", "cursor")


# --- errors and keys ---


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/none", b"", 404),
        ("PUT", "/models", b"", 405),
        ("POST", "/images/generations", b'{"prompt":', 400),
        ("POST", "/images/generations", b" " * (70 << 10), 413),
        ("POST", "/images/edits", b"{}", 415),
    ],
)
def test_errors_have_one_form(client: httpx.Client, method: str, path: str, content: bytes, status: int) -> None:
    """All errors below `/openai/v1`, also of the middleware and the router, are OpenAI's error
    objects; those of `/v1` are problems.
    """
    response = client.request(
        method, f"/openai/v1{path}", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/v1/none").headers["content-type"] == "application/problem+json"
    if status == 405:
        assert response.headers["allow"] == "GET, HEAD"


def test_error_objects_of_the_service() -> None:
    """Rate limits and overload have OpenAI's error types and codes."""
    limited = error_object({"status": 429, "detail": "slow down"})["error"]
    assert (limited["type"], limited["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    busy = error_object({"status": 503, "detail": "busy"})["error"]
    assert (busy["type"], busy["code"], busy["param"]) == ("server_error", "overloaded", None)


def test_keys_roles_and_limits(tmp_path: Path) -> None:
    """The client raises AuthenticationError without a valid key, PermissionDeniedError without the
    role, and RateLimitError over a limit.
    """
    keys = key_file(tmp_path, key_line("reader", "read"), key_line("doer", "read,run,train"))

    async def call() -> None:
        settings = app_settings(tmp_path, api_keys=keys, key_requests_per_second=3)
        async with application(settings, "reader") as (reader,):
            assert isinstance(reader._transport, httpx.ASGITransport)
            app: Any = reader._transport.app

            def named(key: str) -> AsyncOpenAI:
                http = DefaultAsyncHttpxClient(transport=httpx2.ASGITransport(app))
                return AsyncOpenAI(
                    base_url="http://x/openai/v1",
                    api_key=key,
                    http_client=http,
                    max_retries=0,
                    _strict_response_validation=True,
                )

            assert [model.id async for model in named("reader-key").models.list()]
            with pytest.raises(openai.AuthenticationError) as wrong:
                await named("sk-wrong").models.list()
            assert wrong.value.code == "invalid_api_key"
            with pytest.raises(openai.PermissionDeniedError, match="`run`"):
                await named("reader-key").images.generate(prompt="")
            with pytest.raises(openai.PermissionDeniedError, match="`train`"):
                await named("reader-key").files.create(file=b"x", purpose="fine-tune")
            doer = named("doer-key")
            outcomes = await asyncio.gather(*(doer.models.list() for _ in range(9)), return_exceptions=True)
            limited = [error for error in outcomes if isinstance(error, openai.RateLimitError)]
            assert limited
            assert limited[0].code == "rate_limit_exceeded"
            assert limited[0].response.headers["retry-after"]

    asyncio.run(call())
