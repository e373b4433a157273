"""`gpus`: at most the number of devices that the heartbeats of training workers report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from core.broker.codec import pack
from core.catalog.recipes import TRAINING_WORKERS
from tests.datasets import add_digits
from tests.stack import Stack, succeeds
from tests.waiting import wait_until


def training_body(**more: Any) -> dict[str, Any]:
    """Return the body of a training."""
    return {"family": "vae", "dataset": "device-digits", "name": "devices", **more}


@pytest.fixture(scope="module")
def dataset(stack: Stack) -> None:
    """A dataset to train on, and a training worker that has reported its devices."""
    add_digits(stack, "device-digits")
    body = training_body(gpus=2, dry_run=True)

    def counted() -> bool:
        return httpx.post(f"{stack.url}/v1/trainings", json=body).status_code != 503

    wait_until(counted, "a training worker has counted its devices")


def limits(url: str) -> set[int]:
    """Return the maxima of `gpus` in the schemas of the families."""
    return {family["gpus"]["maximum"] for family in httpx.get(f"{url}/v1/families").json()["data"]}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("gpus", [2, 56, 64])
def test_more_devices_than_there_are_are_refused(
    stack: Stack, client: httpx.Client, dataset: None, gpus: int, dry_run: bool
) -> None:
    """More devices than the workers have are rejected at once, also for a dry run; the families'
    schemas have the limit.
    """
    response = client.post("/v1/trainings", json=training_body(gpus=gpus, dry_run=dry_run))
    assert response.status_code == 422, response.text
    assert response.json()["errors"] == [
        {"field": "gpus", "detail": f"{gpus} is more than the 1 device of the training workers here"}
    ]
    assert limits(stack.url) == {1}
    assert not client.get("/v1/trainings", params={"model": "devices"}).json()["data"]


def test_a_network_that_cannot_fit_is_refused_at_once(client: httpx.Client, dataset: None) -> None:
    """A network that cannot fit into memory is rejected by its configuration, without being
    built.
    """
    body = training_body(dry_run=True, recipe={"config": {"hidden": [8192] * 9}})
    response = client.post("/v1/trainings", json=body, headers={"Prefer": "wait=60"}, timeout=90)
    assert response.status_code == 422, response.text
    assert "takes at least" in response.json()["detail"]
    many = client.post("/v1/trainings", json=training_body(dry_run=True, recipe={"config": {"hidden": [1] * 5000}}))
    assert many.status_code == 422
    assert len(many.content) < 5000


def test_without_a_training_worker_the_number_of_devices_is_unknown(tmp_path: Path) -> None:
    """Without a live training worker, two GPUs are 503; with one, the number in its heartbeat is
    the limit. A damaged heartbeat is left out.
    """
    bare = Stack(tmp_path)
    try:
        bare.start("queue")
        bare.wait_queue()
        bare.start("api")
        add_digits(bare, "device-digits")
        with httpx.Client(base_url=bare.url, timeout=30) as client, redis.Redis(port=bare.queue_port, db=1) as queue:
            wait_until(lambda: succeeds(lambda: client.get("/healthz").is_success), "the API is up")
            beat = {"state": "ready", "host": "h", "pid": 1, "running": [], "devices": 4}
            queue.hset(TRAINING_WORKERS, "damaged", b"\xc1")
            for age_s in (None, 60.0):
                if age_s is not None:
                    queue.hset(TRAINING_WORKERS, "dead", pack({**beat, "at": time.time() - age_s}))
                response = client.post("/v1/trainings", json=training_body(gpus=2))
                assert response.status_code == 503, response.text
                assert "no training worker is running" in response.json()["detail"]
            assert client.post("/v1/trainings", json=training_body(name="one", gpus=1)).status_code == 202
            queue.hset(TRAINING_WORKERS, "alive", pack({**beat, "at": time.time()}))
            refused = client.post("/v1/trainings", json=training_body(gpus=5))
            assert (refused.status_code, "the 4 devices" in refused.json()["detail"]) == (422, True)
            assert client.post("/v1/trainings", json=training_body(gpus=4)).status_code == 202
    finally:
        bare.down()
