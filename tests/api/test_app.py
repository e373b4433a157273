"""Health checks, metrics, documentation pages and limits of the whole application."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from api.app import create_app
from core.jobs.store import JobStore
from core.settings import Settings
from tests.api.helpers import ENLARGE, FAULTY, MODEL, TINY, post_samples, problem
from tests.stack import Stack, free_port


def test_health_and_readiness(client: httpx.Client) -> None:
    """`/healthz` reports a live process, `/readyz` the ready workers and their loaded models."""
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["workers"] == 1
    assert {f"{ENLARGE}@1", f"{FAULTY}@1", f"{TINY}@1", f"{MODEL}@1"} <= set(ready["models"])


@pytest.mark.parametrize(
    ("accept", "media", "parse"),
    [("*/*", "text/plain", parse_text), ("application/openmetrics-text", "application/openmetrics-text", parse_open)],
)
def test_metrics_can_be_parsed(client: httpx.Client, accept: str, media: str, parse: Callable[[str], Any]) -> None:
    """Both metrics formats can be parsed, and requests are counted by method, route and status."""
    post_samples(client)
    client.get("/v1/models/none")
    page = client.get("/metrics", headers={"Accept": accept})
    assert page.headers["content-type"].startswith(media)
    families = {family.name: family for family in parse(page.text)}
    assert {
        "reverie_request_seconds",
        "reverie_waiting_requests",
        "reverie_batches_resent",
        "reverie_queue_messages",
        "reverie_jobs",
        "reverie_waiting_jobs",
        "reverie_workers",
        "reverie_worker_rows",
        "reverie_worker_busy_seconds",
        "reverie_worker_memory_bytes",
    } <= set(families)
    counted = {
        (one.labels["method"], one.labels["route"], one.labels["status"]): one.value
        for one in families["reverie_request_seconds"].samples
        if one.name.endswith("_count")
    }
    assert counted["POST", "/v1/samples", "200"] >= 1
    assert counted["GET", "/v1/models/{name}", "404"] >= 1
    assert families["reverie_workers"].samples[0].value == 1


def test_the_page_of_the_docs_needs_nobody_else(client: httpx.Client) -> None:
    """Every script, style sheet and image of `/docs` comes from this service."""
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    sources = re.findall(r"""(?:src|href)=["']([^"']+)""", page.text)
    assert len(sources) >= 3
    for source in sources:
        assert source.startswith("/docs/static/")
        assert client.get(source).status_code == 200
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_a_misspelt_setting_is_refused_at_start(tmp_path: Path, root: Path) -> None:
    """The process exits with an error that names the unknown setting."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("REVERIE_")}
    environment = {**kept, "REVERIE_STATE": str(tmp_path), "REVERIE_COUNT_MAX": "3"}
    command = [sys.executable, "-m", "api"]
    ended = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "no such setting: REVERIE_COUNT_MAX" in ended.stderr


def _alone(folder: Path, **chosen: Any) -> Settings:
    """Return the settings of an API process without queue server or worker."""
    return Settings(
        state=folder,
        checkpoints=Path("checkpoints"),
        queue_url=f"redis://127.0.0.1:{free_port()}/0",
        log_level="error",
        **chosen,
    )


def test_requests_do_not_pile_up(tmp_path: Path) -> None:
    """At most `max_waiting` requests wait and then become jobs; the others get 503 with
    `Retry-After` at once.
    """
    limit, crowd = 50, 1000

    async def rush() -> list[httpx.Response]:
        app = create_app(_alone(tmp_path, max_waiting=limit, sync_timeout_s=6))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            requests = [client.post("/v1/samples", json={"model": MODEL, "seed": seed}) for seed in range(crowd)]
            return list(await asyncio.gather(*requests))

    responses = asyncio.run(rush())
    refused = [response for response in responses if response.status_code == 503]
    assert len(refused) == crowd - limit
    assert {response.status_code for response in responses} == {202, 503}
    for response in refused[:: len(refused) // 20]:
        body = problem(response, 503, "50 requests wait already", "try again")
        assert body["type"].startswith("https://")
        assert int(response.headers["retry-after"]) >= 1


@pytest.mark.slow
@pytest.mark.timing
def test_ten_thousand_requests_at_once(client: httpx.Client, stack: Stack) -> None:
    """Each of 10 000 concurrent requests gets 200 or 503 with `Retry-After`, and the service works
    afterwards.
    """

    async def inference_request(seed: int, gate: asyncio.Semaphore) -> int:
        body = orjson.dumps({"model": MODEL, "seed": seed, "count": 4})
        head = f"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
            writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            await writer.drain()
        status = int((await reader.readline()).split()[1])
        headers = await reader.readuntil(b"\r\n\r\n")
        assert (status == 503) == (b"retry-after" in headers.lower())
        writer.close()
        return status

    async def rush() -> list[int]:
        gate = asyncio.Semaphore(500)
        return list(await asyncio.gather(*(inference_request(seed, gate) for seed in range(10_000))))

    statuses = asyncio.run(rush())
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 2048
    assert post_samples(client).status_code == 200


def test_unfinished_jobs_are_limited(tmp_path: Path) -> None:
    """Unfinished jobs are accepted up to the limit; the next one is rejected, with an
    Idempotency-Key or without.
    """

    async def rush() -> None:
        app = create_app(_alone(tmp_path, max_queued_jobs=5))
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            prefer = {"Prefer": "respond-async"}
            for number in range(5):
                key = {"Idempotency-Key": "first"} if number == 0 else {}
                response = await client.post("/v1/samples", json={"model": MODEL}, headers={**prefer, **key})
                assert response.status_code == 202
            for key in ({}, {"Idempotency-Key": "another"}):
                response = await client.post("/v1/samples", json={"model": MODEL}, headers={**prefer, **key})
                problem(response, 503, "unfinished jobs")
                assert response.headers["retry-after"]
            first = (await client.get("/v1/jobs")).json()["data"][-1]["id"]
            await client.post(f"/v1/jobs/{first}/cancel")

    asyncio.run(rush())


def test_an_unusable_database_is_reported(tmp_path: Path) -> None:
    """A database error is 503 with `Retry-After`, without SQL in the detail."""

    async def inference_request() -> httpx.Response:
        chosen = _alone(tmp_path)
        app = create_app(chosen)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x", timeout=60) as client,
        ):
            job_store = JobStore(chosen.database)
            with job_store.engine.begin() as connection:
                connection.exec_driver_sql("DROP TABLE jobs")
            job_store.engine.dispose()
            return await client.post("/v1/samples", json={"model": MODEL}, headers={"Prefer": "respond-async"})

    response = asyncio.run(inference_request())
    body = problem(response, 503, "job database", "try again")
    assert "SQL" not in body["detail"]
    assert response.headers["retry-after"]
