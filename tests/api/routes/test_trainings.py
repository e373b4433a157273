"""`/v1/trainings`: requests, progress, the version that is made, and rejections."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from core.broker.codec import pack
from core.catalog.recipes import TRAINING_WORKERS
from tests.api import helpers
from tests.datasets import add_digits
from tests.stack import Stack
from tests.waiting import wait_until

END_S = 240.0


@pytest.fixture(scope="module")
def trained(stack: Stack) -> Path:
    """The folder of datasets, with the dataset `little-digits`."""
    return add_digits(stack, "little-digits").parent


def training_body(name: str, training: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Return the body of a training of a few steps."""
    recipe = {"config": {"hidden": [16], "latents": 3}, "training": {"epochs": 3, "batch_size": 50, **(training or {})}}
    evaluation = {"count": 40, "k": 20}
    return {
        "family": "vae",
        "dataset": "little-digits",
        "name": name,
        "recipe": recipe,
        "evaluation": evaluation,
    } | more


def create_training(client: httpx.Client, body: dict[str, Any]) -> str:
    """Create a training; return its id."""
    response = client.post("/v1/trainings", json=body)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/jobs/{response.json()['id']}"
    return str(response.json()["id"])


def ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait until a training has ended; return it."""

    def finished() -> dict[str, Any] | None:
        body: dict[str, Any] = client.get(f"/v1/trainings/{job_id}").json()
        return body if body["status"] in {"succeeded", "failed", "cancelled"} else None

    return wait_until(finished, "the training has ended")


def _last_epoch(client: httpx.Client, job_id: str) -> int:
    """Return the number of the newest epoch with metrics."""
    return int(client.get(f"/v1/trainings/{job_id}/metrics").json()["data"][-1]["epoch"])


def events(client: httpx.Client, address: str, **headers: str) -> Iterator[tuple[str, str]]:
    """Yield name and data of each event of a stream that has ended."""
    response = client.get(address, headers={"Accept": "text/event-stream", **headers})
    assert response.status_code == 200
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "event" in lines:
            yield lines["event"], lines["data"]


def check_previews(client: httpx.Client, links: dict[str, str]) -> None:
    """Check the previews by epoch of a training that has ended after its third epoch."""
    previews = client.get(links["previews"]).json()
    epochs = [entry["epoch"] for entry in previews["data"]]
    assert (epochs[0], epochs[-1]) == (1, 3)  # in between at most one in ten seconds
    assert (previews["has_more"], previews["last_id"]) == (False, "3")
    for entry in previews["data"]:
        picture = client.get(entry["links"]["image"])
        assert (picture.headers["content-type"], len(picture.content)) == ("image/png", entry["bytes"])
    assert picture.content == client.get(links["preview"]).content
    helpers.problem(client.get(f"{links['previews']}/99"), 404, "no preview of epoch 99", "/previews lists those kept")
    helpers.problem(client.get(f"{links['previews']}/first"), 422, "epoch")
    helpers.problem(client.get("/v1/trainings/none/previews"), 404, "GET /v1/trainings")


def test_a_training_becomes_a_version_that_serves(client: httpx.Client, trained: Path) -> None:
    """After a dry run, a training runs, reports metrics, events and checkpoints, and makes a
    version that can be sampled.
    """
    dry = client.post("/v1/trainings", json=training_body("watched", dry_run=True), headers={"Prefer": "wait=60"})
    if dry.status_code == 202:  # the machine is busy
        assert helpers.finished_job(client, dry.json()["id"])["status"] == "succeeded"
        dry = client.get(dry.json()["links"]["result"])
    assert dry.status_code == 200, dry.text
    assert dry.json()["steps"] == 18
    there_and_back = 196 * 16 + 16 + 2 * (16 * 3 + 3) + 3 * 16 + 16 + 16 * 196 + 196
    assert dry.json()["parameters"] == there_and_back
    assert dry.json()["seconds"] > 0 < dry.json()["memory_bytes"]
    assert client.get("/v1/models/watched").status_code == 404

    job_id = create_training(client, training_body("watched", summary="Small digits"))
    streamed = list(events(client, f"/v1/trainings/{job_id}/metrics"))
    body = ended(client, job_id)
    assert (body["status"], body["version"], body["progress"]) == ("succeeded", "1", 1.0)
    assert body["recipe"]["config"] | {"height": 14, "width": 14, "channels": 1} == body["recipe"]["config"]
    assert body["recipe"]["training"]["validation"] == 60
    metrics = client.get(body["links"]["metrics"]).json()["data"]
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert metrics[-1] == body["metrics"]
    assert [name for name, _ in streamed] == ["metrics"] * 3 + ["status"]
    names = [name for name, _ in events(client, f"/v1/jobs/{job_id}/events")]
    assert {"status", "message", "metrics", "checkpoint", "progress"} <= set(names)
    (checkpoint,) = client.get(body["links"]["checkpoints"]).json()["data"][-1:]
    assert (checkpoint["step_number"], checkpoint["kept"]) == (18, True)
    assert checkpoint["metrics"]["train_loss"] == metrics[-1]["train_loss"]
    for link in ("curves", "preview"):
        with Image.open(io.BytesIO(client.get(body["links"][link]).content)) as picture:
            assert picture.format == "PNG"
    check_previews(client, body["links"])
    result = client.get(f"/v1/jobs/{job_id}/result").json()
    assert (result["model"], result["version"], result["figures"][0]["name"]) == ("watched", "1", "nll")

    card = client.get("/v1/models/watched").json()
    assert card["provenance"]["job"] == job_id
    assert card["provenance"]["data"]["name"] == "little-digits"
    assert card["provenance"]["recipe"]["training"]["epochs"] == 3
    assert {"commit", "hardware", "seconds", "seed", "torch"} <= set(card["provenance"])
    assert (card["summary"], card["figures"]) == ("Small digits", result["figures"])
    drawn = client.post("/v1/samples", json={"model": "watched", "seed": 1})
    assert (drawn.status_code, drawn.json()["version"]) == (200, "1")
    found = client.get("/v1/trainings", params={"model": "watched"}).json()
    assert [one["id"] for one in found["data"]] == [job_id]
    assert client.get("/v1/jobs", params={"kind": "training", "model": "watched"}).json()["first_id"] == job_id
    assert client.post(f"/v1/trainings/{job_id}/pause").status_code == 409
    assert client.post(f"/v1/trainings/{job_id}/publish").status_code == 409


def test_a_training_can_rest_and_be_cancelled(stack: Stack, client: httpx.Client, trained: Path) -> None:
    """A paused training keeps its name reserved and can be resumed; a cancelled one leaves a
    checkpoint that can be published when its worker has stored it.
    """
    job_id = create_training(client, training_body("resting", {"epochs": 100_000, "save_every_s": 0.2}))
    second = client.post("/v1/trainings", json=training_body("resting"))
    assert second.status_code == 409
    assert second.json()["training_id"] == job_id
    wait_until(lambda: client.get(f"/v1/trainings/{job_id}/checkpoints").json()["data"], "a checkpoint")
    assert client.post(f"/v1/trainings/{job_id}/pause").json()["status"] == "paused"
    assert client.post("/v1/trainings", json=training_body("resting")).status_code == 409
    time.sleep(1.0)
    reached = _last_epoch(client, job_id)
    assert client.post(f"/v1/trainings/{job_id}/resume").json()["status"] in {"queued", "running"}
    wait_until(lambda: _last_epoch(client, job_id) > reached, "a further epoch")
    assert client.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    assert client.post(f"/v1/trainings/{job_id}/resume").status_code == 409
    assert client.get("/v1/models/resting").status_code == 404

    with redis.Redis(port=stack.queue_port, db=1) as queue:
        beat = {"at": time.time() + 1, "state": "ready", "host": "h", "pid": 1, "running": [job_id]}
        queue.hset(TRAINING_WORKERS, "stores", pack(beat))
        started = time.monotonic()
        threading.Timer(1.0, queue.hdel, (TRAINING_WORKERS, "stores")).start()
        published = client.post(f"/v1/trainings/{job_id}/publish")
        assert time.monotonic() - started >= 1
    assert published.status_code == 202
    assert helpers.finished_job(client, published.json()["id"])["status"] == "succeeded"
    assert client.get("/v1/models/resting").json()["provenance"]["job"] == published.json()["id"]
    assert client.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert client.get(f"/v1/trainings/{job_id}").status_code == 404


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"family": "nothing"}, "family", "there are: bihm, ebgan"),
        ({"recipe": {"config": {"latent": 1}}}, "recipe.config.latent", "no such field; there are: channels"),
        ({"recipe": {"config": {"latents": 0}}}, "recipe.config.latents", "an integer in [1, 4096]"),
        ({"recipe": {"training": {"learning_rate": 0}}}, "recipe.training.learning_rate", "in (0.0, 10.0]"),
        ({"recipe": {"training": {"precision": "int4"}}}, "recipe.training.precision", "one of float32, bfloat16"),
        ({"recipe": {"config": {"hidden": [0]}}}, "recipe.config.hidden.0", "a list, each an integer in [1, 8192]"),
        ({"recipe": {"config": {"height": 28}}}, "recipe.config.height", "pictures of little-digits have 14"),
        ({"recipe": {"training": {"batch_size": 301}}}, "recipe.training.batch_size", "the 300 training pictures"),
        ({"recipe": {"training": {"validation": 61}}}, "recipe.training.validation", "the 60 pictures held back"),
        ({"recipe": {"training": {"validation": 0, "patience": 3}}}, "recipe.training.patience", "needs"),
        ({"family": "superres", "recipe": {}}, "dataset", "upload photographs"),
        ({"name": "vae-mnist-2d", "recipe": {}}, "name", "has images of 1×28×28, these are 1×14×14"),
        ({"name": "tiny", "recipe": {}}, "name", "tiny is of the family tiny"),
        ({"name": "Bad Name"}, "body.name", "pattern"),
        ({"serve": "perhaps"}, "body.serve", "'if better'"),
        ({"recipe": {"seed": -1}}, "body.recipe.seed", "greater"),
        ({"else": 1}, "body.else", "not permitted"),
    ],
)
def test_an_impossible_training_names_its_field(
    client: httpx.Client, trained: Path, change: dict[str, Any], field: str, message: str
) -> None:
    """An invalid training is 422 with the field and its valid values, and no job is made."""
    response = client.post("/v1/trainings", json=training_body("impossible") | change)
    assert response.status_code == 422, response.text
    wrong = {error["field"]: error["detail"] for error in response.json()["errors"]}
    assert message in wrong[field]
    assert not client.get("/v1/trainings", params={"model": "impossible"}).json()["data"]


def test_an_adversarial_family_has_no_validation_images(client: httpx.Client, trained: Path) -> None:
    """`validation` is rejected for an adversarial family."""
    recipe = {"training": {"validation": 10}}
    response = client.post("/v1/trainings", json=training_body("game", family="ebgan", recipe=recipe))
    assert "adversarial families" in response.json()["errors"][0]["detail"]


def test_missing_resources_are_named(client: httpx.Client, trained: Path) -> None:
    """An unknown dataset or training is 404; a malformed body or Idempotency-Key is rejected."""
    assert client.post("/v1/trainings", json=training_body("x", dataset="nothing")).status_code == 404
    assert client.get("/v1/trainings/job_0").status_code == 404
    assert client.post("/v1/trainings", content=b"{").status_code == 422
    headers = {"Idempotency-Key": "x" * 256}
    assert client.post("/v1/trainings", json=training_body("x"), headers=headers).status_code == 400


def test_an_idempotency_key_makes_one_training_of_two_requests(client: httpx.Client, trained: Path) -> None:
    """A retry with the same Idempotency-Key returns the same training; another request with it is
    rejected.
    """
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/trainings", json=training_body("once"), headers=headers)
    again = client.post("/v1/trainings", json=training_body("once"), headers=headers)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json()["id"] == again.json()["id"]
    assert client.post("/v1/trainings", json=training_body("twice"), headers=headers).status_code == 422
    assert client.post(f"/v1/jobs/{first.json()['id']}/cancel").status_code == 200


def test_families_describe_their_options(client: httpx.Client, trained: Path) -> None:
    """Each family is listed with the schemas of its options and its default recipe."""
    found = {family["name"]: family for family in client.get("/v1/families").json()["data"]}
    assert {"vae", "bihm", "ebgan", "superres"} <= set(found)
    assert found["vae"]["config"]["properties"]["latents"]["maximum"] == 4096
    assert found["ebgan"]["players"] == ["discriminator", "generator"]
    assert found["superres"]["data"] == "photographs"
