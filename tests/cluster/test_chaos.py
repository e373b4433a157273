"""A thousand jobs of all kinds and ten trainings end once, with the bytes and weights of an
undisturbed run, while hosts fail and links are cut.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from safetensors.numpy import load

from tests.cluster.disturbances import INTERVAL_S, Disturber
from tests.cluster.jobs import TERMINAL, Client, Request, requests
from tests.cluster.members import SERVERS, Cluster
from tests.cluster.network import SUBNET
from tests.uploads import DIGITS
from tests.waiting import wait_until
from tests.webhooks.receiver import Receiver

OF_A_KIND, LARGE, TRAININGS = 99, 10, 10
CLIENTS = 6
LONGEST_S = 1500.0


def training(number: int, name: str) -> dict[str, Any]:
    """Return the body of a training of some seconds."""
    recipe: dict[str, Any] = {"config": {"hidden": [48], "latents": 4}, "seed": number}
    recipe["training"] = {"epochs": 4, "batch_size": 2, "save_every_s": 0.5}
    evaluation = {"count": 40, "k": 10}
    return {"family": "vae", "dataset": "digits", "name": name, "recipe": recipe, "evaluation": evaluation}


class Workload:
    """The jobs and trainings of the test: threads create them, each by its own client."""

    def __init__(self, cluster: Cluster, everything: list[Request]) -> None:
        self._cluster = cluster
        self._requests = everything
        self._left = list(range(len(everything)))
        self.jobs: dict[int, str] = {}
        self.trainings: dict[int, str] = {}
        self.errors: list[BaseException] = []
        self.retries = 0
        acts = [*[self._create_jobs] * CLIENTS, self._create_trainings]
        self._threads = [threading.Thread(target=self._run, args=(act,), daemon=True) for act in acts]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until all jobs and trainings are created."""
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def ended(self) -> bool:
        """Return whether all jobs and trainings are created and have ended; raise what a thread has
        raised.
        """
        if self.errors:
            raise self.errors[0]
        if any(thread.is_alive() for thread in self._threads):
            return False
        try:
            with self._cluster.database() as connection:
                query = b"SELECT count(*) FROM jobs WHERE status <> ALL(%s)"
                row = connection.execute(query, [list(TERMINAL)]).fetchone()
        except psycopg.Error:
            return False  # it is being restarted or cut off
        return row == (0,)

    def _run(self, create: Any) -> None:
        try:
            with Client(self._cluster) as client:
                create(client)
                self.retries += client.retries
        except BaseException as error:  # noqa: BLE001 - raised by `join`
            self.errors.append(error)

    def _create_jobs(self, client: Client) -> None:
        while self._left:
            try:
                number = self._left.pop()
            except IndexError:
                return
            self.jobs[number] = client.create(self._requests[number], f"chaos-{number}")

    def _create_trainings(self, client: Client) -> None:
        for number in range(TRAININGS):
            response = client.send("POST", "/v1/trainings", json=training(number, f"digits-{number}"))
            # 409: an earlier attempt created it, and its response was lost
            assert response.status_code in {202, 409}, response.text
            self.trainings[number] = response.json()["training_id" if response.status_code == 409 else "id"]


@pytest.mark.timeout(3600)
def test_jobs_end_once_while_hosts_fail(cluster: Cluster) -> None:
    """A member is killed, paused, cut off, slowed down or restarted every five seconds while jobs
    of all kinds and trainings run. Each is accepted once, succeeds once, and has the bytes or
    weights of an undisturbed run.
    """
    receiver = Receiver(f"{SUBNET}.1")
    everything = requests(OF_A_KIND, LARGE, receiver.url)
    with Client(cluster) as client, receiver.running():
        with DIGITS.open("rb") as file:
            uploaded = client.send("POST", "/v1/datasets", files={"file": file}, data={"name": "digits"})
        assert uploaded.status_code == 201, uploaded.text
        before = _job_ids(cluster)
        workload, disturber, began = Workload(cluster, everything), Disturber(cluster), time.monotonic()
        workload.start()
        disturber.run(workload.ended, LONGEST_S)
        workload.join()
        disturbed_s = time.monotonic() - began
        print(f"{len(disturber.log)} disturbances in {disturbed_s:.0f} s: {'; '.join(disturber.log)}")  # noqa: T201
        cluster.wait_ready()
        _check_statuses(cluster, workload, before)
        _check_trainings(client, workload.trainings)
        with_webhook = [number for number, one in enumerate(everything) if "webhook" in one.body]
        _check_webhooks(receiver, {workload.jobs[number] for number in with_webhook})
        with ThreadPoolExecutor(CLIENTS) as pool:
            checks = [pool.submit(_check_result, cluster, everything[n], job_id) for n, job_id in workload.jobs.items()]
        for check in checks:
            check.result()
    print(_report(everything, workload, disturber, cluster, disturbed_s, time.monotonic() - began))  # noqa: T201


def _job_ids(cluster: Cluster) -> set[str]:
    with cluster.database() as connection:
        rows = connection.execute(b"SELECT id FROM jobs WHERE kind NOT IN ('training', 'publication')").fetchall()
    return {row[0] for row in rows}


def _check_statuses(cluster: Cluster, workload: Workload, before: set[str]) -> None:
    """Check that each job has succeeded with one event of its end, and that there is no other
    job.
    """
    ids = {*workload.jobs.values(), *workload.trainings.values()}
    assert len(ids) == OF_A_KIND * 10 + LARGE + TRAININGS
    assert _job_ids(cluster) - before == set(workload.jobs.values())
    with cluster.database() as connection:
        query = b"SELECT kind, status, problem, options FROM jobs WHERE id = ANY(%s) AND status <> 'succeeded'"
        failed = connection.execute(query, [list(ids)]).fetchall()
        ends = connection.execute(
            b"SELECT job_id, count(*) FROM events WHERE data ~ '\"(succeeded|failed|cancelled)\"' "
            b"GROUP BY job_id HAVING count(*) <> 1"
        ).fetchall()
    assert not failed, failed[:5]
    assert not ends, ends[:5]


def _check_result(cluster: Cluster, request: Request, job_id: str) -> None:
    with Client(cluster) as client:
        client.check_result(request, job_id)


def _check_trainings(client: Client, trainings: dict[int, str]) -> None:
    """Check that each training has the weights of one that is not disturbed."""
    again = {}
    for number in trainings:
        response = client.send("POST", "/v1/trainings", json=training(number, f"again-{number}"))
        again[number] = response.json()["id"]
    for number, job_id in again.items():
        job = client.ended(job_id)
        assert job["status"] == "succeeded", job
        weights = []
        for name in (f"digits-{number}", f"again-{number}"):
            file = client.send("GET", f"/v1/models/{name}/versions/1/file")
            assert file.status_code == 200, file.text
            weights.append({key: array.tobytes() for key, array in load(file.content).items()})
        assert weights[0] == weights[1], number


def _check_webhooks(receiver: Receiver, jobs: set[str]) -> None:
    """Check that the end of each job was sent, under one id of the event."""

    def sent() -> dict[str, set[str]]:
        ids: dict[str, set[str]] = {}
        for one in list(receiver.requests):
            body = json.loads(one["body"])
            assert body["type"] == "job.succeeded", body
            ids.setdefault(body["data"]["id"], set()).add(one["headers"]["webhook-id"])
        return ids

    wait_until(lambda: sent().keys() >= jobs, "all webhooks are delivered", 600)
    assert sent().keys() == jobs
    assert {len(ids) for ids in sent().values()} == {1}


def _report(
    everything: list[Request],
    workload: Workload,
    disturber: Disturber,
    cluster: Cluster,
    disturbed_s: float,
    whole_s: float,
) -> str:
    """Return the table of what was run and what was done to it."""
    with cluster.database() as connection:
        query = b"SELECT count(*) FROM events WHERE data ~ 'its worker died'"
        reclaimed = connection.execute(query).fetchone()
    rows = {
        **{f"jobs: {path}": number for path, number in Counter(one.path for one in everything).items()},
        "jobs, all succeeded once, bytes of an undisturbed run": len(workload.jobs),
        "trainings, all succeeded once, weights of an undisturbed run": len(workload.trainings),
        **{f"disturbances: {act}": disturber.counts[act] for act in sorted(disturber.counts) if " " not in act},
        **{f"disturbances: {act}": disturber.counts[act] for act in ("slow link", "lost packets")},
        **{f"of these, restart {name}": disturber.counts[f"restart {name}"] for name in SERVERS},
        "disturbances": len(disturber.log),
        "seconds between two": INTERVAL_S,
        "requests that clients repeated": workload.retries,
        "jobs taken from a dead or silent worker": (reclaimed or (0,))[0],
        "members that exited by themselves": len(cluster.exits),
        "seconds with disturbances": round(disturbed_s),
        "seconds with the undisturbed run": round(whole_s),
    }
    return "\n".join(
        ["| what | number |", "| --- | --- |", *(f"| {name} | {number} |" for name, number in rows.items())]
    )
