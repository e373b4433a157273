"""A service starts on the state folder of an earlier release and runs its jobs."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path

import httpx
import redis

from core.catalog.versions import FILE
from core.startup import MARK, mark_of
from tests.core.jobs.test_migrate import FIRST, job_id, load
from tests.stack import ON_ONE_HOST, Stack
from tests.version_files import SHIPPED, with_other_weights
from tests.waiting import wait_until


def test_jobs_of_the_first_release_are_run(tmp_path: Path) -> None:
    """Queued and interrupted jobs of the first release are run; ended and paused ones are
    unchanged.
    """
    stack = Stack(tmp_path, result_ttl_s="1000000000", **ON_ONE_HOST)
    load(FIRST, stack.state / "state" / "ledger.sqlite3")
    with contextlib.closing(sqlite3.connect(stack.state / "state" / "ledger.sqlite3")) as connection:
        connection.execute("UPDATE jobs SET owner = ''")  # as without API keys
        connection.commit()
    (stack.state / "state" / "instance-id").write_text("an id")
    (stack.state / "state" / "desk" / job_id(8)).mkdir(parents=True)
    (stack.state / "state" / "desk" / job_id(8) / FILE).write_bytes(with_other_weights(SHIPPED.read_bytes()))
    try:
        stack.start("queue")
        stack.wait_queue()
        with redis.Redis.from_url(stack.queue_url) as queue:
            queue.set(MARK, json.dumps({"id": "an id", "database": "sqlite:ledger.sqlite3"}))
        for part in ("inference", "training", "api"):
            stack.start(part)
        stack.wait_ready()
        assert mark_of(stack.queue_url)["database"] == "sqlite:jobs.sqlite3"
        with httpx.Client(base_url=stack.url, timeout=30) as client:

            def states() -> dict[str, str]:
                return {job["id"]: job["status"] for job in client.get("/v1/jobs?limit=100").json()["data"]}

            wait_until(lambda: not {"queued", "running"} & set(states().values()), "all jobs have ended")
            assert {number: states()[job_id(number)] for number in range(1, 14)} == {
                1: "succeeded",
                2: "succeeded",
                3: "succeeded",
                4: "failed",  # its model no longer exists
                5: "failed",  # it has crashed three workers
                6: "paused",
                7: "failed",  # its dataset does not exist
                8: "succeeded",
                9: "succeeded",
                10: "succeeded",
                11: "failed",
                12: "cancelled",
                13: "succeeded",
            }
            assert client.get("/v1/models/mine").json()["version"] == "1"
            for number in (1, 3, 9, 13):
                result = client.get(f"/v1/jobs/{job_id(number)}/result", headers={"Accept": "application/json"})
                assert (result.status_code, len(result.json()["images"])) == (200, 2)
            assert client.get(f"/v1/jobs/{job_id(2)}/result").status_code == 200
            assert client.get(f"/v1/jobs/{job_id(10)}/result").status_code == 410  # its blob was not kept
    finally:
        stack.down()
