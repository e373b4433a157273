"""How requests share passes, seen from outside: what the worker's log says of its batches."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.stack import Stack

CLIENTS, TIMES, PASS_S = 12, 6, 0.6


def test_clients_that_came_in_turns_come_to_share_long_passes(stack: Stack, client: httpx.Client) -> None:
    """Half the clients arrive while the other half's pass runs; two passes on, all of them share one."""
    body = {"model": "faulty", "options": {"seconds": PASS_S}}
    assert client.post("/v1/samples", json={**body, "seed": 0}).is_success

    def again_and_again(number: int) -> list[int]:
        time.sleep(0.5 * PASS_S * (number % 2))
        with httpx.Client(base_url=stack.url, timeout=60) as mine:
            asked = [mine.post("/v1/samples", json={**body, "seed": 1000 + number}) for _ in range(TIMES)]
        return [answer.status_code for answer in asked]

    before = len(_batches(stack))
    with ThreadPoolExecutor(CLIENTS) as threads:
        statuses = [status for one in threads.map(again_and_again, range(CLIENTS)) for status in one]
    assert set(statuses) == {200}
    parts = _batches(stack)[before:]
    assert statistics.median(parts) > 0.75 * CLIENTS, parts


def _batches(stack: Stack) -> list[int]:
    return [int(str(line["parts"])) for line in stack.log("inference") if line.get("event") == "batch"]
