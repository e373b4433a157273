"""Trainings that lose their process, their worker or the queue server; versions that change under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from models.kit import data
from models.kit.recipe import Recipe
from models.kit.train import train, weights
from tests.api.routes.test_versions import SHIPPED, joined, parts
from tests.datasets import digits
from tests.stack import Stack

END_S = 600.0


@pytest.fixture(scope="module")
def app_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose parts may die, with a dataset in it."""
    running = Stack(tmp_path_factory.mktemp("training"), log_level="warning", job_lease_s="2")
    digits(running.state / "state" / "datasets")
    try:
        yield running.up()
    finally:
        running.down()


def wish(name: str, epochs: int) -> dict[str, Any]:
    """A training of `epochs` times 150 steps, which keeps a checkpoint five times a second."""
    training = {"epochs": epochs, "batch_size": 2, "save_every_s": 0.2, "average": 0.9}
    recipe = {"config": {"hidden": [48], "latents": 4}, "training": training, "seed": 5}
    return {
        "family": "vae",
        "dataset": "digits",
        "name": name,
        "recipe": recipe,
        "evaluation": {"count": 40, "k": 10},
    }


def undisturbed(recipe: dict[str, Any], datasets: Path, out: Path) -> dict[str, torch.Tensor]:
    """The weights of the same recipe, trained here without a service."""
    torch.set_num_threads(1)
    folder = datasets / recipe["data"]
    held_back = data.load(str(folder), "validation").images
    images = data.load(str(folder), "train").images
    recipe = {**recipe, "training": {**recipe["training"], "save_every_s": 1000.0}}
    assert train(Recipe.from_json(recipe), images, out, held_back=held_back).reason == "finished"
    return weights(out)[0]


def place(folder: Path) -> dict[str, Any]:
    """How far a run is."""
    with contextlib.suppress(FileNotFoundError):
        return dict(json.loads((folder / "progress.json").read_text()))
    return {}


def kept(folder: Path) -> int:
    """The step of the last checkpoint."""
    return int((place(folder).get("checkpoint") or {"steps": 0})["steps"])


def until(done: Callable[[], Any], what: str) -> None:
    """Return when it is so."""
    end = time.monotonic() + END_S
    while not done():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def kill_child(folder: Path) -> None:
    """Kill the process that trains."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((folder / "lock").read_text()), signal.SIGKILL)


def blow(stack: Stack, folder: Path, victim: str) -> None:
    """Kill one part with SIGKILL; what a supervisor restarts is started again."""
    if victim == "child":
        kill_child(folder)
        return
    stack.kill(victim)
    stack.start(victim)
    if victim == "queue":
        stack.wait_queue()


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("epochs", "victims"),
    [
        pytest.param(60, ["child", "training", "queue"], id="small"),
        pytest.param(120, ["child", "training", "queue", "child", "training"] * 2, id="full", marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_reaches_the_same_weights(
    app_state: Stack, tmp_path: Path, epochs: int, victims: list[str]
) -> None:
    """Child, worker and queue server die at random moments; the version has the bits of an undisturbed run."""
    chance = random.Random(epochs)
    within = 0
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job = client.post("/v1/trainings", json=wish(f"killed-{epochs}", epochs)).json()
        folder = app_state.state / "state" / "runs" / job["id"]
        for victim in victims:
            reached = kept(folder)
            until(lambda: kept(folder) > reached, "no further checkpoint")  # noqa: B023 - called at once
            time.sleep(chance.random())
            within += place(folder)["step"] > 0
            assert client.get(f"/v1/trainings/{job['id']}").json()["status"] != "succeeded", "too short a training"
            blow(app_state, folder, victim)
        until(lambda: client.get(f"/v1/trainings/{job['id']}").json()["finished_at"], "it has not ended")
        ended = client.get(f"/v1/trainings/{job['id']}").json()
        assert (ended["status"], ended["version"]) == ("succeeded", "1"), ended["problem"]
        epochs_told = [line["epoch"] for line in client.get(ended["links"]["metrics"]).json()["data"]]
        assert epochs_told == list(range(1, epochs + 1))
    assert within >= 0.8 * len(victims)
    made = load_file(app_state.state / "state" / "checkpoints" / f"killed-{epochs}" / "1" / "model.safetensors")
    for name, weight in undisturbed(ended["recipe"], app_state.state / "state" / "datasets", tmp_path / "run").items():
        assert torch.equal(weight, made[name]), name


@pytest.mark.timeout(900)
def test_a_worker_that_was_thought_dead_changes_nothing(app_state: Stack, tmp_path: Path) -> None:
    """Frozen past its lease while another worker takes over, it finds its claim gone; one version comes of it."""
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job = client.post("/v1/trainings", json=wish("frozen", 60)).json()
        folder = app_state.state / "state" / "runs" / job["id"]
        until(lambda: kept(folder) > 0, "no checkpoint")
        app_state.kill("training", signal.SIGSTOP)
        app_state.start("training", "second")
        frozen = kept(folder)
        until(lambda: kept(folder) > frozen + 150, "nobody took it over")
        app_state.kill("training", signal.SIGCONT)
        until(lambda: client.get(f"/v1/trainings/{job['id']}").json()["finished_at"], "it has not ended")
        ended = client.get(f"/v1/trainings/{job['id']}").json()
        assert (ended["status"], ended["version"]) == ("succeeded", "1"), ended["problem"]
        assert client.get("/v1/models/frozen").json()["versions"] == ["1"]
    app_state.kill("second", signal.SIGTERM)
    made = load_file(app_state.state / "state" / "checkpoints" / "frozen" / "1" / "model.safetensors")
    for name, weight in undisturbed(ended["recipe"], app_state.state / "state" / "datasets", tmp_path / "run").items():
        assert torch.equal(weight, made[name]), name


@pytest.mark.timeout(600)
def test_a_worker_that_is_told_to_stop_hands_its_training_over(app_state: Stack) -> None:
    """SIGTERM leaves a checkpoint and a queued job, at once and not after a lease; the next worker goes on from it."""
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        job = client.post("/v1/trainings", json=wish("handed-over", 2000)).json()
        folder = app_state.state / "state" / "runs" / job["id"]
        until(lambda: kept(folder) > 0, "no checkpoint")
        app_state.kill("training", signal.SIGTERM)
        body = client.get(f"/v1/trainings/{job['id']}").json()
        assert (body["status"], body["attempts"]) == ("queued", 0)
        left = place(folder)
        assert left["checkpoint"]["steps"] == left["steps"]
        app_state.start("training")
        until(lambda: kept(folder) > left["steps"], "nobody went on")
        client.post(f"/v1/jobs/{job['id']}/cancel")
        until(lambda: not _working(folder), "it goes on after its end")
        told = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": "0"}).text
        assert f"resumes from step {left['steps']}" in told


def _working(folder: Path) -> bool:
    pid = (folder / "lock").read_text()
    return Path(f"/proc/{pid}").exists()


@pytest.mark.timeout(600)
def test_a_loss_that_blows_up_fails_with_its_reason(app_state: Stack) -> None:
    """The job says what happened; what was good until then is kept and can be published."""
    with httpx.Client(base_url=app_state.url, timeout=60) as client:
        body = wish("blown-up", 500)
        body["recipe"]["training"] |= {"learning_rate": 10.0, "optimiser": "sgd", "average": 0.0, "decay": "constant"}
        body["recipe"]["config"]["likelihood"] = "gaussian"
        job = client.post("/v1/trainings", json=body).json()
        until(lambda: client.get(f"/v1/trainings/{job['id']}").json()["finished_at"], "it has not ended")
        ended = client.get(f"/v1/trainings/{job['id']}").json()
        assert (ended["status"], ended["problem"]["status"]) == ("failed", 422)
        assert ended["problem"]["title"] == "Training diverged"
        assert "in epoch 1; a smaller learning_rate" in ended["problem"]["detail"]
        assert client.get("/v1/models/blown-up").status_code == 404


@pytest.mark.timeout(600)
def test_versions_switch_under_load_without_a_failed_request(app_state: Stack) -> None:
    """A hundred requests a second while twenty switches happen: each answer has the bytes of the version it names."""
    seeds = range(20)
    with httpx.Client(base_url=app_state.url, timeout=120) as client:
        header, raw = parts(SHIPPED.read_bytes())
        for times in (0.9, 0.8):
            pixels = (torch.frombuffer(bytearray(raw), dtype=torch.float32) * times).numpy().tobytes()
            sent = client.post(
                "/v1/models/vae-mnist-2d/versions",
                content=joined(header, pixels),
                headers={"Content-Type": "application/octet-stream"},
            )
            assert sent.status_code == 201, sent.text
        right = {
            (version, seed): client.post("/v1/samples", json={"model": f"vae-mnist-2d@{version}", "seed": seed}).json()
            for version in ("1", "2", "3")
            for seed in seeds
        }
    answers = asyncio.run(_switched(app_state.url, 20))
    assert len(answers) >= 100
    versions = set()
    for seed, status, answer in answers:
        assert status == 200, answer
        assert answer == right[answer["version"], seed]
        versions.add(answer["version"])
    assert versions == {"1", "2", "3"}


async def _switched(url: str, times: int) -> list[tuple[int, int, Any]]:
    """Answers to samples asked for every ten milliseconds while versions are switched so many times."""
    found: list[tuple[int, int, Any]] = []
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        over = asyncio.Event()

        async def inference_request(seed: int) -> None:
            answer = await client.post("/v1/samples", json={"model": "vae-mnist-2d", "seed": seed})
            found.append((seed, answer.status_code, answer.json()))

        async def load() -> None:
            asked: set[asyncio.Task[None]] = set()
            number, begun = 0, time.monotonic()
            while not over.is_set():
                asked.add(asyncio.create_task(inference_request(number % 20)))
                number += 1
                await asyncio.sleep(max(0.0, begun + number / 100 - time.monotonic()))
            await asyncio.gather(*asked)

        running = asyncio.create_task(load())
        for number in range(times):
            switched = await client.patch("/v1/models/vae-mnist-2d", json={"version": str(1 + (number + 1) % 3)})
            assert switched.status_code == 200, switched.text
            await asyncio.sleep(0.2)
        over.set()
        await running
    return found
