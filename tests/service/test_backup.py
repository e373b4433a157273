"""A backup of a running service, restored as another service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.datasets import add_digits
from tests.service.jobs import create_job, finished_jobs
from tests.stack import ROOT, Stack
from tests.waiting import wait_until


def command(stack: Stack, *words: str) -> str:
    """Run `python -m core.backup` with the service's settings; return its output."""
    line = [sys.executable, "-m", "core.backup", *words]
    done = subprocess.run(line, cwd=ROOT, env=stack.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_restored_service_responds_as_before(tmp_path: Path) -> None:
    """A restored service returns the same results, runs the unfinished jobs, and has the datasets,
    trainings and versions.
    """
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = Stack(tmp_path / "a", log_level="warning")
    add_digits(first)
    npz = {"Accept": "application/x-npz"}
    paths = (
        "/v1/datasets",
        "/v1/models/mine",
        "/v1/models/mine/versions",
        "/v1/trainings",
        "/v1/jobs?status=succeeded",
    )
    with first, httpx.Client(base_url=first.url, timeout=60) as client:
        large = client.post(
            "/v1/samples",
            json={"model": "vae-mnist-2d", "count": 4000, "seed": 3},
            headers={"Prefer": "respond-async"},
        ).json()["id"]
        recipe = {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 1, "batch_size": 50}}
        body: dict[str, Any] = {"family": "vae", "dataset": "digits", "name": "mine", "recipe": recipe}
        body |= {"evaluation": {"count": 40, "k": 10}, "serve": "never"}
        trainings = []
        for _ in range(2):
            trainings.append(client.post("/v1/trainings", json=body).json()["id"])
            finished_jobs(first, {0: trainings[-1]})
        done = {0: large, 1: create_job(client, 1, seconds=0.0)}
        assert {one["status"] for one in finished_jobs(first, done).values()} == {"succeeded"}
        before = {job_id: client.get(f"/v1/jobs/{job_id}/result", headers=npz).content for job_id in done.values()}
        pages = {path: client.get(path).json() for path in paths}
        assert pages["/v1/models/mine"]["version"] == "1"
        owed = {seed: create_job(client, seed, seconds=1.0 + seed / 1000) for seed in range(100, 110)}
        wait_until(lambda: client.get("/v1/jobs", params={"status": "running"}).json()["data"], "a job runs")
        output = command(first, "create", str(tmp_path / "backup"))
        assert "backed up to" in output
    second = Stack(tmp_path / "b", log_level="warning")
    command(second, "restore", str(tmp_path / "backup"))
    with second, httpx.Client(base_url=second.url, timeout=60) as client:
        for path, page in pages.items():
            assert client.get(path).json() == page or path.startswith("/v1/jobs"), path
        for job_id, content in before.items():
            assert client.get(f"/v1/jobs/{job_id}/result", headers=npz).content == content
        bodies = finished_jobs(second, owed)
        assert {(one["status"], one["attempts"]) for one in bodies.values()} == {("succeeded", 0)}
        for seed, job_id in owed.items():
            got = client.get(f"/v1/jobs/{job_id}/result").json()["images"]
            assert got == client.post("/v1/samples", json={"model": "faulty", "seed": seed}).json()["images"]
        curves = client.get(f"/v1/trainings/{trainings[0]}/curves.png")
        assert curves.status_code == 200
        assert client.post("/v1/samples", json={"model": "mine@2", "seed": 1}).status_code == 200
