"""Trainings whose process, worker or queue server is killed, and version switches under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from models.kit import data
from models.kit.recipe import Recipe
from models.kit.train import train, weights
from tests.api import helpers
from tests.datasets import add_digits
from tests.stack import Stack
from tests.training_jobs import process_id
from tests.version_files import SHIPPED, join_file, split_file
from tests.waiting import wait_until

END_S = 600.0

STEPS_PER_EPOCH = 150

SHORT, LEASED, FULL = 11, 24, 120
"""Epochs. At 400 steps per second a training of 24 epochs takes 9 s, so that its worker's lease
expires before its end.
"""


@pytest.fixture(scope="module")
def app_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose processes tests kill, with a dataset."""
    settings = {"log_level": "warning", "job_lease_s": "2", "training_device": "cpu"}
    running = Stack(tmp_path_factory.mktemp("training"), **settings)
    add_digits(running)
    with running:
        yield running


def training_body(name: str, epochs: int) -> dict[str, Any]:
    """Return a training of `epochs` times 150 steps that keeps a checkpoint five times a second."""
    training = {"epochs": epochs, "batch_size": 2, "save_every_s": 0.2, "average": 0.9}
    recipe = {"config": {"hidden": [48], "latents": 4}, "training": training, "seed": 5}
    return {
        "family": "vae",
        "dataset": "digits",
        "name": name,
        "recipe": recipe,
        "evaluation": {"count": 40, "k": 10},
    }


class Undisturbed:
    """Weights of trainings in this process, without failures; each recipe is trained once."""

    def __init__(self, datasets: Path, folder: Path) -> None:
        self.datasets, self.folder = datasets, folder
        self.weights: dict[str, dict[str, torch.Tensor]] = {}

    def train(self, recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the weights of a recipe, whatever its name."""
        undisturbed = {**recipe, "name": "undisturbed"}
        undisturbed["training"] = {**recipe["training"], "save_every_s": 1000.0}
        key = json.dumps(undisturbed)
        if key not in self.weights:
            torch.set_num_threads(1)
            images, held_back = (
                data.load(str(self.datasets / recipe["data"]), part).images for part in ("train", "validation")
            )
            run = self.folder / str(len(self.weights))
            assert train(Recipe.from_json(undisturbed), images, run, held_back=held_back).reason == "finished"
            self.weights[key] = weights(run)[0]
        return self.weights[key]


@pytest.fixture(scope="module")
def undisturbed(app_state: Stack, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Trainings of the service's dataset in this process."""
    return Undisturbed(app_state.state / "state" / "datasets", tmp_path_factory.mktemp("undisturbed"))


def check_version(stack: Stack, job: dict[str, Any], undisturbed: Undisturbed) -> None:
    """Check that a training has succeeded, and that its version has the weights of an undisturbed
    training, bit for bit.
    """
    assert (job["status"], job["version"]) == ("succeeded", "1"), job["problem"]
    file = httpx.get(f"{stack.url}/v1/models/{job['recipe']['name']}/versions/1/file", timeout=60)
    published = load(file.raise_for_status().content)
    for name, weight in undisturbed.train(job["recipe"]).items():
        assert torch.equal(weight, published[name]), name


def position(folder: Path) -> dict[str, Any]:
    """Return the progress that a run has written; {} if there is none."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads((folder / "progress.json").read_text()))
    return {}


def checkpoint_step(folder: Path) -> int:
    """Return the step of the last checkpoint; 0 before the first."""
    return int((position(folder).get("checkpoint") or {"steps": 0})["steps"])


def wait_for_checkpoint(folder: Path, after: int = 0) -> None:
    """Wait until a run has a checkpoint later than step `after`."""
    wait_until(lambda: checkpoint_step(folder) > after, f"a checkpoint after step {after}")


def finished(client: httpx.Client, job_id: str) -> dict[str, Any]:
    """Wait until a training has ended; return it."""
    helpers.finished_job(client, job_id, END_S)
    return dict(client.get(f"/v1/trainings/{job_id}").json())


def kill_child(folder: Path) -> None:
    """Kill the training process."""
    pid = process_id(folder)
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def blow(stack: Stack, folder: Path, victim: str) -> None:
    """Kill one process with SIGKILL, and start it again if a supervisor would."""
    if victim == "child":
        kill_child(folder)
        return
    stack.kill(victim)
    stack.start(victim)
    if victim == "queue":
        stack.wait_queue()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("epochs", "victims", "delay_s"),
    [
        pytest.param(SHORT, ["child", "training", "queue"], 0.15, id="small"),
        pytest.param(
            FULL, ["child", "training", "queue", "child", "training"] * 2, 1.0, id="full", marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_training_reaches_the_same_weights(
    app_state: Stack, undisturbed: Undisturbed, epochs: int, victims: list[str], delay_s: float
) -> None:
    """Killing the training process, worker and queue server at random moments does not change the
    weights.
    """
    chance = random.Random(epochs)
    within_epoch = 0
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job_id = client.post("/v1/trainings", json=training_body(f"killed-{epochs}", epochs)).json()["id"]
        folder = app_state.state / "state" / "runs" / job_id
        for victim in victims:
            wait_for_checkpoint(folder, checkpoint_step(folder))
            time.sleep(delay_s * chance.random())
            within_epoch += position(folder)["step"] > 0
            assert position(folder)["steps"] < epochs * STEPS_PER_EPOCH, "too short a training"
            blow(app_state, folder, victim)
        job = finished(client, job_id)
        epochs_reported = [line["epoch"] for line in client.get(job["links"]["metrics"]).json()["data"]]
    assert epochs_reported == list(range(1, epochs + 1))
    assert within_epoch >= 0.8 * len(victims)
    check_version(app_state, job, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_whose_lease_expired_changes_nothing(app_state: Stack, undisturbed: Undisturbed) -> None:
    """A worker frozen past its lease loses its claim; another finishes the training, and one
    version is made.
    """
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job_id = client.post("/v1/trainings", json=training_body("frozen", LEASED)).json()["id"]
        folder = app_state.state / "state" / "runs" / job_id
        wait_for_checkpoint(folder)
        orphan = process_id(folder)
        app_state.freeze("training")
        app_state.start("training", "second")
        wait_until(lambda: process_id(folder) not in {None, orphan}, "the second worker trains")
        wait_for_checkpoint(folder, checkpoint_step(folder))
        app_state.kill("training", signal.SIGCONT)
        job = finished(client, job_id)
        assert client.get("/v1/models/frozen").json()["versions"] == ["1"]
    app_state.kill("second", signal.SIGTERM)
    check_version(app_state, job, undisturbed)


@pytest.mark.timeout(600)
def test_a_stopped_worker_hands_its_training_over(app_state: Stack) -> None:
    """On SIGTERM a worker writes a checkpoint and queues its training at once; the next one resumes
    from there.
    """
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job = client.post("/v1/trainings", json=training_body("handed-over", 2000)).json()
        folder = app_state.state / "state" / "runs" / job["id"]
        wait_for_checkpoint(folder)
        app_state.kill("training", signal.SIGTERM)
        body = client.get(f"/v1/trainings/{job['id']}").json()
        assert (body["status"], body["attempts"]) == ("queued", 0)
        left = position(folder)
        assert left["checkpoint"]["steps"] == left["steps"]
        app_state.start("training")
        wait_for_checkpoint(folder, left["steps"])
        client.post(f"/v1/jobs/{job['id']}/cancel")
        wait_until(lambda: not _working(folder), "the training's process has exited")
        events = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "0"}).text
        assert f"resumes from step {left['steps']}" in events


def _working(folder: Path) -> bool:
    """Return whether the process of a run exists; without its folder, which a cancelled run may
    lose, none does.
    """
    pid = process_id(folder)
    return pid is not None and Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(600)
def test_a_diverging_training_fails_with_its_reason(app_state: Stack) -> None:
    """A diverging training fails with the reason and makes no version."""
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        body = training_body("diverging", 500)
        body["recipe"]["training"] |= {"learning_rate": 10.0, "optimiser": "sgd", "average": 0.0, "decay": "constant"}
        body["recipe"]["config"]["likelihood"] = "gaussian"
        job = finished(client, client.post("/v1/trainings", json=body).json()["id"])
        assert (job["status"], job["problem"]["status"]) == ("failed", 422)
        assert job["problem"]["title"] == "Training diverged"
        assert "in epoch 1; a smaller learning_rate" in job["problem"]["detail"]
        assert client.get("/v1/models/diverging").status_code == 404


@pytest.mark.timeout(600)
def test_versions_switch_under_load_without_a_failed_request(app_state: Stack) -> None:
    """While versions are switched under load, every response has the images of the version that it
    reports.
    """
    seeds = range(20)
    with httpx.Client(base_url=app_state.url, timeout=120) as client:
        header, raw = split_file(SHIPPED.read_bytes())
        for times in (0.9, 0.8):
            pixels = (torch.frombuffer(bytearray(raw), dtype=torch.float32) * times).numpy().tobytes()
            sent = client.post(
                "/v1/models/vae-mnist-2d/versions",
                content=join_file(header, pixels),
                headers={"Content-Type": "application/octet-stream"},
            )
            assert sent.status_code == 201, sent.text
        right = {
            (version, seed): client.post("/v1/samples", json={"model": f"vae-mnist-2d@{version}", "seed": seed}).json()
            for version in ("1", "2", "3")
            for seed in seeds
        }
    responses = asyncio.run(_switched(app_state.url, 9))
    assert len(responses) >= 100
    versions = set()
    for seed, status, response in responses:
        assert status == 200, response
        assert response == right[response["version"], seed]
        versions.add(response["version"])
    assert versions == {"1", "2", "3"}


async def _switched(url: str, times: int) -> list[tuple[int, int, Any]]:
    """Request a sample every 10 ms while versions are switched `times` times; return seed, status
    and body of each.
    """
    found: list[tuple[int, int, Any]] = []
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        over = asyncio.Event()

        async def inference_request(seed: int) -> None:
            response = await client.post("/v1/samples", json={"model": "vae-mnist-2d", "seed": seed})
            found.append((seed, response.status_code, response.json()))

        async def load() -> None:
            tasks: set[asyncio.Task[None]] = set()
            number, started = 0, time.monotonic()
            while not over.is_set():
                tasks.add(asyncio.create_task(inference_request(number % 20)))
                number += 1
                await asyncio.sleep(max(0.0, started + number / 100 - time.monotonic()))
            await asyncio.gather(*tasks)

        running = asyncio.create_task(load())
        for number in range(times):
            switched = await client.patch("/v1/models/vae-mnist-2d", json={"version": str(1 + (number + 1) % 3)})
            assert switched.status_code == 200, switched.text
            await asyncio.sleep(0.2)
        over.set()
        await running
    return found
