"""Jobs of all kinds end once, with the bytes of an undisturbed run, while hosts fail and links are
cut.
"""

from __future__ import annotations

import base64
import io
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.cluster.members import APIS, Cluster
from tests.datasets import digits

PAUSE_S = 5.0
"""A member is disturbed every so many seconds; a lease lasts three."""

JOBS_OF_A_KIND = 50
END_S = 420.0
TERMINAL = {"succeeded", "failed", "cancelled", "expired"}


@dataclass(frozen=True)
class Request:
    """A request that becomes a job: its path, body, and the form of its result."""

    path: str
    body: dict[str, Any]
    accept: str = "application/json"


def picture(number: int) -> str:
    """Return an image of 8×8 pixels as base64 of a PNG."""
    pixels = np.random.default_rng(number).integers(0, 2, (8, 8), np.uint8) * 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def requests() -> list[Request]:
    """Return the requests of all kinds, each with its own seed, in a fixed random order."""
    half = io.BytesIO()
    Image.fromarray(np.repeat(np.array([[0] * 8, [255] * 8], np.uint8), 4, 0)).save(half, "PNG")
    mask = base64.b64encode(half.getvalue()).decode()
    made = []
    for number in range(JOBS_OF_A_KIND):
        one = {"seed": 1000 + number, "images": [picture(number)]}
        made += [
            Request("/v1/samples", {"model": "vae-mnist-2d", "seed": number, "count": 300}, "image/png"),
            Request("/v1/samples", {"model": "faulty", "seed": 10_000 + number, "seconds": 0.2}),
            Request(
                "/v1/inpaintings", {"model": "tiny", **one, "mask": mask, "count": 3, "steps": 40, "seconds": 0.02}
            ),
            Request("/v1/likelihoods", {"model": "tiny", **one, "k": 50}),
            Request("/v1/likelihoods", {"model": "faulty", **one, "k": 10, "seconds": 0.05}),
            Request("/v1/encodings", {"model": "tiny", **one}),
            Request("/v1/energies", {"model": "tiny", **one}),
        ]
    random.Random(0).shuffle(made)
    return made


class Client:
    """A client of both API processes that retries a request until one of them responds to it."""

    def __init__(self, cluster: Cluster) -> None:
        self._clients = [
            httpx.Client(base_url=cluster.urls[name], timeout=httpx.Timeout(15, connect=2)) for name in APIS
        ]
        self._turn = 0
        self.retries = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Return the first response that is no failure of a server."""
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            self._turn += 1
            try:
                response = self._clients[self._turn % 2].request(method, path, **arguments)
            except httpx.TransportError:
                self.retries += 1
            else:
                if response.status_code < 500 and response.status_code != 429:
                    return response
                self.retries += 1
            time.sleep(0.2)
        raise TimeoutError(f"{method} {path}")

    def create(self, request: Request, key: str) -> str:
        """Create a job, at most one for a key, and return its id."""
        headers = {"Prefer": "respond-async", "Idempotency-Key": key}
        response = self.send("POST", request.path, json=request.body, headers=headers)
        # 200: the job that an earlier attempt created has ended already
        assert response.status_code in {200, 202}, response.text
        path = response.headers.get("location") or response.headers["content-location"]
        return str(path.split("/")[3])

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until a job has ended, and return it."""
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            response = self.send("GET", f"/v1/jobs/{job_id}")
            assert response.status_code == 200, response.text
            job: dict[str, Any] = response.json()
            if job["status"] in TERMINAL:
                return job
            time.sleep(0.2)
        raise TimeoutError(f"{job_id} has not ended: {job}")


def disturbances(cluster: Cluster, remarks: list[str]) -> list[Callable[[], None]]:
    """Return what is done to the cluster, in this order; each leaves all members running."""

    def kill(name: str) -> None:
        remarks.append(f"kill {name}")
        cluster.stop(name)
        cluster.start(name)

    def cut(name: str) -> None:
        remarks.append(f"cut {name} for {PAUSE_S:.0f} s")
        cluster.hosts[name].cut()
        time.sleep(PAUSE_S)
        cluster.hosts[name].mend()

    def pause(name: str) -> None:
        remarks.append(f"pause {name} for {PAUSE_S:.0f} s")
        with cluster.frozen(name):
            time.sleep(PAUSE_S)

    def worsen(name: str, how: str) -> None:
        host = cluster.hosts[name]
        if how == "slow":
            remarks.append(f"{name}: {host.slow_down()}")
        else:
            host.lose()
            remarks.append(f"{name} loses packets")
        time.sleep(PAUSE_S)
        host.mend()

    def restart(name: str) -> None:
        remarks.append(f"restart {name}")
        cluster.stop(name, signal.SIGINT if name == "postgresql" else signal.SIGKILL)
        cluster.start(name)

    return [
        lambda: kill("inference-1"),
        lambda: cut("inference-2"),
        lambda: pause("inference-3"),
        lambda: kill("api-1"),
        lambda: restart("queue"),
        lambda: cut("training-1"),
        lambda: worsen("api-2", "slow"),
        lambda: kill("training-2"),
        lambda: restart("postgresql"),
        lambda: worsen("inference-1", "loss"),
        lambda: cut("api-2"),
        lambda: pause("training-1"),
        lambda: worsen("postgresql", "slow"),
        lambda: kill("inference-2"),
        lambda: restart("postgresql"),
        lambda: cut("queue"),
        lambda: restart("queue"),
        lambda: pause("api-1"),
    ]


TRAINING = {"family": "vae", "dataset": "digits", "evaluation": {"count": 40, "k": 10}}


def training(number: int) -> dict[str, Any]:
    """Return the body of a training of about ten seconds."""
    recipe: dict[str, Any] = {"config": {"hidden": [48], "latents": 4}, "seed": number}
    recipe["training"] = {"epochs": 8, "batch_size": 2, "save_every_s": 0.5}
    return {**TRAINING, "name": f"digits-{number}", "recipe": recipe}


@pytest.mark.timeout(1500)
def test_jobs_end_once_while_hosts_fail(cluster: Cluster) -> None:
    """A member is killed, paused, cut off, slowed down or restarted every five seconds while jobs
    of all kinds and trainings run. Each is accepted once, succeeds once, and has the bytes or
    weights of an undisturbed run.
    """
    digits(cluster.state / "datasets")
    with Client(cluster) as client:
        _check(cluster, client, requests())


def _check(cluster: Cluster, client: Client, everything: list[Request]) -> None:
    """Create all jobs while members fail, then check each."""
    jobs: dict[int, str] = {}
    trainings: dict[int, str] = {}
    remarks: list[str] = []
    failures: list[BaseException] = []
    acts = disturbances(cluster, remarks)
    pace_s = len(acts) * PAUSE_S * 1.2 / len(everything)

    def create_all() -> None:
        try:
            for number in range(4):
                body = training(number)
                response = client.send("POST", "/v1/trainings", json=body)
                # 409: an earlier attempt created it, and its response was lost
                assert response.status_code in {202, 409}, response.text
                trainings[number] = response.json()["training_id" if response.status_code == 409 else "id"]
            for number, request in enumerate(everything):
                jobs[number] = client.create(request, f"chaos-{number}")
                time.sleep(pace_s)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failures.append(error)

    creator = threading.Thread(target=create_all)
    creator.start()
    for act in acts:
        act()
        time.sleep(PAUSE_S / 2)
    creator.join()
    if failures:
        raise failures[0]
    cluster.wait_ready()
    ended = {number: client.ended(job_id) for number, job_id in jobs.items()}
    statuses = {number: job["status"] for number, job in ended.items() if job["status"] != "succeeded"}
    assert not statuses, {number: ended[number] for number in list(statuses)[:3]}
    assert len(set(jobs.values())) == len(everything)
    for number, request in enumerate(everything):
        check_result(client, request, jobs[number])
    check_events(cluster, set(jobs.values()))
    check_trainings(client, trainings)
    print(f"{len(jobs)} jobs, {len(trainings)} trainings, {client.retries} retried requests; {'; '.join(remarks)}")  # noqa: T201


def check_result(client: Client, request: Request, job_id: str) -> None:
    """Check that a job's result has the bytes of the same request without disturbance."""
    got = client.send("GET", f"/v1/jobs/{job_id}/result", headers={"Accept": request.accept})
    headers = {"Accept": request.accept, "Prefer": "wait=60"}
    undisturbed = client.send("POST", request.path, json=request.body, headers=headers)
    assert (got.status_code, undisturbed.status_code) == (200, 200), (got.text[:300], undisturbed.text[:300])
    if request.accept == "application/json":
        assert {**got.json(), "request_id": 0} == {**undisturbed.json(), "request_id": 0}
    else:
        assert got.content == undisturbed.content


def check_events(cluster: Cluster, jobs: set[str]) -> None:
    """Check that each job has one event of its end, and that no other job was created."""
    with cluster.database() as connection:
        rows = connection.execute(b"SELECT id FROM jobs WHERE kind NOT IN ('training', 'publication')").fetchall()
        assert {row[0] for row in rows} == jobs
        ends = connection.execute(
            b"SELECT job_id, count(*) FROM events WHERE data ~ '\"(succeeded|failed|cancelled)\"' "
            b"GROUP BY job_id HAVING count(*) > 1"
        ).fetchall()
    assert not ends


def check_trainings(client: Client, trainings: dict[int, str]) -> None:
    """Check that each training has succeeded with the weights of one that is not disturbed."""
    for number, job_id in trainings.items():
        job = client.ended(job_id)
        assert job["status"] == "succeeded", job
        again = {**training(number), "name": f"again-{number}"}
        response = client.send("POST", "/v1/trainings", json=again)
        assert client.ended(response.json()["id"])["status"] == "succeeded"
        sampled = []
        for name in (f"digits-{number}", f"again-{number}"):
            body = {"model": name, "seed": 1, "count": 4}
            response = client.send(
                "POST", "/v1/samples", json=body, headers={"Prefer": "wait=60", "Accept": "image/png"}
            )
            assert response.status_code == 200, response.text
            sampled.append(response.content)
        assert sampled[0] == sampled[1]
