"""How requests share batches, as the worker's log shows it."""

import contextlib
import statistics
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import redis

from tests.stack import Stack

CLIENTS, TIMES, PASS_S = 12, 6, 0.6


@pytest.mark.slow
@pytest.mark.timing
def test_clients_that_came_in_turns_come_to_share_long_passes(stack: Stack, client: httpx.Client) -> None:
    """Two groups of clients that send alternately soon share one batch.

    Half of the clients start while the batch of the other half runs; later, the median batch has
    more than three quarters of all clients.
    """
    body = {"model": "faulty", "options": {"seconds": PASS_S}}
    assert client.post("/v1/samples", json={**body, "seed": 0}).is_success

    def again_and_again(number: int) -> list[int]:
        time.sleep(0.5 * PASS_S * (number % 2))
        with httpx.Client(base_url=stack.url, timeout=60) as mine:
            responses = [mine.post("/v1/samples", json={**body, "seed": 1000 + number}) for _ in range(TIMES)]
        return [response.status_code for response in responses]

    before = len(_batches(stack))
    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = [status for one in threads.map(again_and_again, range(CLIENTS)) for status in one]
    assert set(statuses) == {200}
    parts = _batches(stack)[before:]
    assert statistics.median(parts) > 0.75 * CLIENTS, parts


def _batches(stack: Stack) -> list[int]:
    return [int(str(line["slices"])) for line in stack.log("inference") if line.get("event") == "batch"]


def test_completions_leave_the_queue_server_when_they_are_read(stack: Stack, client: httpx.Client) -> None:
    """The completion streams are empty one second after the last response."""
    with ThreadPoolExecutor(16) as threads:
        body = {"model": "faulty", "count": 8}
        futures = [
            threads.submit(client.post, "/v1/samples", json={**body, "seed": seed}) for seed in range(10_000, 10_300)
        ]
    assert {one.result().status_code for one in futures} == {200}
    time.sleep(1.0)
    with redis.Redis(port=stack.queue_port) as queue:
        streams = list(queue.scan_iter("reverie:notes:*"))
        assert streams
        assert [queue.xlen(stream) for stream in streams] == [0] * len(streams)
        assert all(queue.ttl(stream) > 0 for stream in streams)


def test_the_queue_server_has_a_limit_of_memory(stack: Stack) -> None:
    """The queue server has a `maxmemory` of 1 GiB and evicts nothing."""
    with redis.Redis(port=stack.queue_port) as queue:
        found = {**queue.config_get("maxmemory"), **queue.config_get("maxmemory-policy")}
    assert found == {"maxmemory": str(1 << 30), "maxmemory-policy": "noeviction"}


@pytest.mark.slow
@pytest.mark.timing
def test_many_large_requests_whose_clients_leave(stack: Stack, client: httpx.Client) -> None:
    """150 clients request 65 536 rows each and disconnect: requests beyond the budget are rejected,
    and a sample of another client takes less than 2 s.
    """
    body = {"model": "faulty", "count": 65_536, "options": {"seconds": 0.02}}
    assert client.post("/v1/samples", json={"model": "faulty"}).is_success

    def leave(seed: int) -> int:
        with contextlib.suppress(httpx.TimeoutException):
            return httpx.post(f"{stack.url}/v1/samples", json={**body, "seed": seed}, timeout=5).status_code
        return 0

    with ThreadPoolExecutor(150) as threads:
        futures = [threads.submit(leave, seed) for seed in range(150)]
        time.sleep(1.5)
        started = time.monotonic()
        assert client.post("/v1/samples", json={"model": "faulty", "seed": 1}).is_success
        took = time.monotonic() - started
        statuses = Counter(one.result() for one in futures)
    assert statuses[503] >= 140, statuses
    assert took < 2.0
    # the rows of the disconnected clients have been dropped from the queue
    time.sleep(2.5)
    started = time.monotonic()
    assert client.post("/v1/samples", json={"model": "faulty", "seed": 2}).is_success
    assert time.monotonic() - started < 1.0
    assert client.get("/metrics").text.count("reverie_waiting_requests 0.0") == 1


def test_the_bytes_do_not_depend_on_slicing(client: httpx.Client) -> None:
    """The first rows of a request that is cut into many slices equal those of a small request."""
    whole = client.post(
        "/v1/samples", json={"model": "faulty", "count": 3000, "seed": 9, "options": {"seconds": 0.001}}
    )
    few = client.post("/v1/samples", json={"model": "faulty", "count": 5, "seed": 9})
    assert whole.status_code == few.status_code == 200
    assert whole.json()["images"][:5] == few.json()["images"]


def test_a_refusal_names_the_limit(stack: Stack) -> None:
    """A request beyond the budget of rows gets 503 with `Retry-After` and the name of the limit."""
    body = {"model": "faulty", "count": 65_536, "options": {"seconds": 0.05}}

    def inference_request(seed: int) -> httpx.Response | None:
        with contextlib.suppress(httpx.TimeoutException):
            return httpx.post(f"{stack.url}/v1/samples", json={**body, "seed": seed}, timeout=2)
        return None

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(inference_request, seed) for seed in range(8)]
        refused = [one.result() for one in futures if one.result() is not None]
    assert refused
    for response in refused:
        assert response is not None
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert response.json()["limit"] == "waiting_rows"
    time.sleep(1.5)
