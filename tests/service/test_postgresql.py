"""A service on PostgreSQL whose database server restarts, and two API processes that share it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.api.helpers import MODEL, finished_job, post_samples, problem
from tests.datasets import add_digits
from tests.postgresql import PostgreSQL, running_server
from tests.service.jobs import create_job, finished_jobs, wait_for_running
from tests.stack import Stack, free_port, succeeds
from tests.waiting import wait_until

ROUNDS = [20, pytest.param(200, marks=pytest.mark.slow)]
EPOCHS = 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, PostgreSQL]]:
    """A service on a database server of its own."""
    with running_server() as server:
        settings = {"log_level": "warning", "max_sync_timeout_s": "100"}
        stack = Stack(tmp_path_factory.mktemp("postgresql"), database_url=server.create("jobs"), **settings)
        add_digits(stack)
        with stack:
            yield stack, server


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGINT, id="restart", marks=pytest.mark.slow), pytest.param(signal.SIGQUIT, id="crash")],
)
def test_the_database_server_restarts(served: tuple[Stack, PostgreSQL], how: signal.Signals) -> None:
    """Requests get 503 and Retry-After meanwhile; jobs and a training end as if nothing had
    happened.
    """
    stack, server = served
    with httpx.Client(base_url=stack.url, timeout=60) as client:
        recipe = {"config": {"hidden": [48], "latents": 4}, "seed": 5}
        recipe["training"] = {"epochs": EPOCHS, "batch_size": 2, "save_every_s": 0.2}
        body = {"family": "vae", "dataset": "digits", "name": f"digits-{how.name.lower()}", "recipe": recipe}
        training = client.post("/v1/trainings", json={**body, "evaluation": {"count": 40, "k": 10}}).json()["id"]

        def reported() -> bool:
            return bool(client.get(f"/v1/jobs/{training}").json()["progress"] > 0)

        wait_until(reported, "the training reports its progress")
        ids = {seed: create_job(client, seed, seconds=2.0) for seed in range(1000, 1006)}
        interrupted = wait_for_running(stack, "inference")
        server.stop(how)
        for _ in range(2):
            refused = [client.get(f"/v1/jobs/{training}"), post_samples(client, {"Prefer": "respond-async"})]
            refused += [client.post(f"/v1/jobs/{training}/cancel"), client.get("/v1/jobs")]
            for response in refused:
                problem(response, 503, "database")
                assert int(response.headers["retry-after"]) > 0
        assert post_samples(client, seed=1, model=MODEL).status_code == 200
        server.start()
        ended = finished_jobs(stack, ids)
        assert {job["status"] for job in ended.values()} == {"succeeded"}
        assert interrupted & set(ids.values())
        assert finished_job(client, training)["status"] == "succeeded"
        names = [line for line in client.get(f"/v1/jobs/{training}/events").text.splitlines() if line[:6] == "event:"]
        assert names.count("event: metrics") == EPOCHS


@pytest.mark.parametrize("rounds", ROUNDS)
def test_an_idempotency_key_on_two_api_processes_makes_one_job(served: tuple[Stack, PostgreSQL], rounds: int) -> None:
    """Whichever process gets a request first; and two trainings of one name at the same time are
    one and a 409.
    """
    stack, _ = served
    port = free_port()
    first, stack.environment["REVERIE_PORT"] = stack.environment["REVERIE_PORT"], str(port)
    stack.start("api", "second")
    stack.environment["REVERIE_PORT"] = first
    urls = [stack.url, f"http://127.0.0.1:{port}"]
    try:
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(6) as pool:
            wait_until(lambda: succeeds(lambda: client.get(f"{urls[1]}/readyz").is_success), "both are ready")
            for number in range(rounds):
                headers = {"Idempotency-Key": f"{rounds}-{number}", "Prefer": "respond-async"}
                body = {"model": MODEL, "seed": number}
                posts = [pool.submit(client.post, f"{url}/v1/samples", json=body, headers=headers) for url in urls * 3]
                responses = [post.result() for post in posts]
                assert {response.status_code for response in responses} <= {200, 202}
                assert len({response.json()["id"] for response in responses if response.status_code == 202}) <= 1
                listed = client.get(f"{urls[0]}/v1/jobs?limit=10").json()["data"]
                assert sum(job["seed"] == number and job["kind"] == "samples" for job in listed) == 1

                training = {"family": "vae", "dataset": "digits", "name": f"m-{rounds}-{number}", "recipe": {}}
                posts = [pool.submit(client.post, f"{url}/v1/trainings", json=training) for url in urls]
                responses = [post.result() for post in posts]
                assert sorted(response.status_code for response in responses) == [202, 409]
                (accepted,) = [one.json()["id"] for one in responses if one.status_code == 202]
                (rejected,) = [one.json() for one in responses if one.status_code == 409]
                assert rejected["training_id"] == accepted
                client.post(f"{urls[0]}/v1/jobs/{accepted}/cancel")
    finally:
        stack.kill("second", signal.SIGTERM)
        del stack.parts["second"]
