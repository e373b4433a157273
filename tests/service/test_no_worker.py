"""Activating a version without an inference worker is rejected with the reason and leaves no
candidate.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from core.jobs.store import JobStore
from tests.stack import Stack
from tests.version_files import SHIPPED, import_version, with_other_weights
from tests.workers.training.test_worker import row

NAME = "vae-mnist-2d"


@pytest.fixture(scope="module")
def app_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with two versions of the shipped model."""
    with Stack(tmp_path_factory.mktemp("alone")) as running:
        with httpx.Client(base_url=running.url, timeout=180) as client:
            assert import_version(client, with_other_weights(SHIPPED.read_bytes())).status_code == 201
        yield running


def refused(stack: Stack, version: str) -> str:
    """Check that an activation is rejected within seconds; return the detail of the problem."""
    started = time.monotonic()
    response = httpx.patch(f"{stack.url}/v1/models/{NAME}", json={"version": version}, timeout=30)
    assert time.monotonic() - started < 8
    assert (response.status_code, response.headers["retry-after"]) == (503, "10"), response.text
    assert "next" not in stack.versions().pointers()[NAME]
    assert httpx.get(f"{stack.url}/v1/models/{NAME}").json()["version"] == "1"
    return str(response.json()["detail"])


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.slow), pytest.param(signal.SIGTERM, id="stopped")],
)
def test_a_switch_needs_a_worker(app_state: Stack, how: signal.Signals) -> None:
    """Without a live worker an activation is 503, even while the dead worker's heartbeat remains;
    with one it succeeds.
    """
    app_state.kill("inference", how)
    assert "no inference worker is running" in refused(app_state, "2")
    assert "no inference worker is running" in refused(app_state, "2")
    app_state.start("inference")
    app_state.wait_ready()
    with httpx.Client(base_url=app_state.url, timeout=90) as client:
        for version in ("2", "1"):
            response = client.patch(f"/v1/models/{NAME}", json={"version": version})
            assert (response.status_code, response.json()["version"]) == (200, version)


def test_a_publication_needs_a_worker(app_state: Stack) -> None:
    """Without a worker a publication is 503 and makes no job; one with `serve: never` is
    accepted.
    """
    job_store = JobStore(app_state.database)
    jobs = [row(NAME, serve=serve, recipe={}) for serve in ("if better", "never")]
    for job in jobs:  # one after the other: a model has at most one open training
        job_store.insert(job)
        job_store.cancel(job.id)
        folder = app_state.state / "state" / "runs" / job.id
        folder.mkdir(parents=True)
        (folder / "state.pt").touch()
    job_store.engine.dispose()
    app_state.share_state()
    app_state.kill("inference")
    time.sleep(2)
    responses = [httpx.post(f"{app_state.url}/v1/trainings/{job.id}/publish") for job in jobs]
    app_state.start("inference")
    assert [response.status_code for response in responses] == [503, 202], [response.text for response in responses]
    assert "no inference worker is running" in responses[0].json()["detail"]
    assert responses[0].headers["retry-after"] == "10"
