"""A forward pass that never returns: its worker exits, and only its row fails, with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.families.faulty import HANGS, HANGS_LOCKED
from tests.service.jobs import create_job, finished_jobs
from tests.stack import Stack

STALL_S = 2.0

LOCK_FREE = pytest.param(HANGS, id="lock free")
SLOW = [
    pytest.param(seed, id=name, marks=pytest.mark.slow)
    for seed, name in ((HANGS, "lock free"), (HANGS_LOCKED, "lock held"))
]
# Every hang costs three starts of a worker, so three of the four combinations are slow tests.


@pytest.fixture(scope="module")
def reviving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose inference worker is restarted whenever it exits."""
    settings = {"stall_s": str(STALL_S), "max_sync_timeout_s": "280", "max_attempts": "2"}
    with (
        Stack(tmp_path_factory.mktemp("hang"), workers=["inference"], **settings) as running,
        running.restarting("inference"),
    ):
        yield running


@pytest.mark.parametrize("seed", [LOCK_FREE, SLOW[1]])
def test_a_waiting_request_that_hangs_fails_alone(reviving: Stack, seed: int) -> None:
    """Of a batch with a row that hangs, the other requests succeed; the worker's log has the
    traceback.
    """
    body, wait = {"model": "faulty", "seconds": 0.0}, {"Prefer": "wait=280"}
    seeds = [*range(3000, 3007), seed]
    with httpx.Client(base_url=reviving.url, timeout=290) as client, ThreadPoolExecutor(9) as pool:
        pool.submit(client.post, "/v1/samples", json={**body, "seed": 1, "seconds": 1.0})

        def inference_request(number: int) -> httpx.Response:
            return client.post("/v1/samples", json={**body, "seed": number}, headers=wait)

        responses = dict(zip(seeds, pool.map(inference_request, seeds), strict=True))
    assert {number for number, response in responses.items() if response.status_code == 200} == set(seeds) - {seed}
    assert "died or sent no heartbeat 2 times" in responses[seed].json()["detail"]
    log = (reviving.state / "inference.log").read_text()
    assert "Timeout (0:00:02)!" in log
    assert "_obey" in log


@pytest.mark.parametrize("seed", SLOW)
def test_a_job_that_hangs_is_charged(reviving: Stack, seed: int) -> None:
    """A job that hangs fails with the reason after its attempts, and other jobs succeed."""
    with httpx.Client(base_url=reviving.url, timeout=60) as client:
        ids = {number: create_job(client, number, seconds=0.0) for number in (seed, 3100, 3101)}
    bodies = finished_jobs(reviving, ids)
    assert [bodies[number]["status"] for number in ids] == ["failed", "succeeded", "succeeded"]
    assert "died or sent no heartbeat 2 times" in json.dumps(bodies[seed]["problem"])


def test_long_work_that_advances_is_left_alone(reviving: Stack) -> None:
    """A job of many steps may take longer than `stall_s`, which limits each step."""
    body = {"model": "faulty", "seed": 5, "k": 8, "seconds": 0.5, "images": [_black()]}
    with httpx.Client(base_url=reviving.url, timeout=120) as client:
        before = reviving.parts["inference"].pid
        response = client.post("/v1/likelihoods", json=body, headers={"Prefer": "wait=100"})
    assert response.status_code == 200, response.text
    assert reviving.parts["inference"].pid == before


def _black() -> str:
    import base64

    import numpy as np

    from core.imaging.pictures import png

    return base64.b64encode(png(np.zeros((1, 8, 8), np.uint8))).decode()
