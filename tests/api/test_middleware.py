"""The request middleware: keys, request ids, errors, disconnected clients and rejected uploads."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect

from api.app import create_app
from api.middleware import RequestMiddleware
from core.settings import Settings
from tests.api.helpers import MODEL, create_job, job_when, post_samples, problem
from tests.stack import Stack, free_port


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


# --- keys ---


def test_keys_close_everything_but_health_and_the_description(tmp_path: Path) -> None:
    """Without a valid key only health checks are served; a job is visible to its owner only."""
    file = tmp_path / "keys"
    file.write_text(f"ann:{_digest('a')}\nbob:{_digest('b')}\n")
    chosen = Settings(
        state=tmp_path,
        checkpoints=Path("checkpoints"),
        queue_url=f"redis://127.0.0.1:{free_port()}/0",
        api_keys=file,
        wrong_keys_per_minute=100,
        log_level="error",
    )

    async def visit() -> None:
        app = create_app(chosen)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client,
        ):
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.get("/readyz")).status_code == 503
            for path in ("/v1/models", "/v1/jobs", "/metrics", "/nothing"):
                for headers in ({}, {"Authorization": "Bearer c"}, {"Authorization": "Basic a"}):
                    response = await client.get(path, headers=headers)
                    problem(response, 401, "Authorization: Bearer")
                    assert response.headers["www-authenticate"] == "Bearer"
            assert "Problem" in (await client.get("/openapi.json", headers={"Authorization": "Bearer a"})).text
            ann, bob = ({"Authorization": f"Bearer {key}"} for key in "ab")
            headers = {**ann, "Prefer": "respond-async", "Idempotency-Key": "k"}
            made = await client.post("/v1/samples", json={"model": MODEL}, headers=headers)
            assert made.status_code == 202
            here = made.headers["location"]
            assert (await client.get(here, headers=ann)).status_code == 200
            for path in (here, f"{here}/result", f"{here}/events"):
                problem(await client.get(path, headers=bob), 404)
            problem(await client.delete(here, headers=bob), 404)
            problem(await client.post(f"{here}/cancel", headers=bob), 404)
            assert (await client.get("/v1/jobs", headers=bob)).json()["data"] == []
            assert len((await client.get("/v1/jobs", headers=ann)).json()["data"]) == 1
            theirs = await client.post("/v1/samples", json={"model": MODEL}, headers={**headers, **bob})
            assert theirs.headers["location"] != here  # Idempotency-Keys belong to an owner

    asyncio.run(visit())


# --- request ids, errors and disconnected clients ---


def test_a_request_goes_by_one_id_everywhere(client: httpx.Client, stack: Stack) -> None:
    """The X-Request-Id of a request is in the response, in the logs of API and worker, and in the
    job.
    """
    response = post_samples(client, {"X-Request-Id": "trace-7"})
    assert response.headers["x-request-id"] == "trace-7"
    job_id = create_job(client, "/v1/samples", model=MODEL)
    request_id = client.get(f"/v1/jobs/{job_id}").json()["request_id"]
    job_when(client, job_id, lambda job: job["status"] == "succeeded")
    lines = stack.log("api")
    assert [line["status"] for line in lines if line.get("request_id") == "trace-7"] == [200]
    seen = [name for line in stack.log("inference") for name in line.get("request_ids", ())]  # type: ignore[attr-defined]
    assert "trace-7" in seen
    assert request_id in seen


@pytest.mark.parametrize("given", ["", "two words", "x" * 121, "é"])
def test_an_id_that_could_spoil_a_log_is_replaced(client: httpx.Client, given: str) -> None:
    """An invalid X-Request-Id is replaced by a new one."""
    response = client.get("/healthz", headers=[(b"X-Request-Id", given.encode())])
    assert len(response.headers["x-request-id"]) == 32


async def _through(app: Any, path: str = "/x", *, wire: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return what the middleware sends for a GET request; `wire` are the messages that arrive."""
    sent: list[dict[str, Any]] = []
    waiting = wire if wire is not None else [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [
        (b"host", b"localhost"),
        (b"x-request-id", b"seven"),
        *([(b"transfer-encoding", b"chunked")] if wire else []),
    ]
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "headers": headers}
    await RequestMiddleware(app, Settings(max_body_bytes=1024))(scope, receive, send)
    return sent


def test_a_fault_of_ours_is_a_problem_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is a 500 with the request id; its details are in the log only."""

    async def broken(*_: Any) -> None:
        raise ZeroDivisionError("a secret")

    start, body = asyncio.run(_through(broken))
    assert start["status"] == 500
    assert (b"x-request-id", b"seven") in start["headers"]
    assert b"seven" in body["body"]
    assert b"secret" not in body["body"]
    assert "a secret" in caplog.text


def test_an_error_after_the_response_has_started_closes_the_connection() -> None:
    """An exception after the start of a response is raised, so that the server closes the
    connection.
    """

    async def halfway(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(_through(halfway))


def test_a_client_that_has_left_gets_no_response() -> None:
    """A disconnected client gets no response and causes no error."""

    async def left(*_: Any) -> None:
        raise ClientDisconnect

    assert asyncio.run(_through(left)) == []


def test_a_refused_upload_is_read_on_before_the_end() -> None:
    """After an early rejection, the rest of the body is read before the connection closes, so that
    the client can read the response.
    """

    async def refusing(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    wire = [{"type": "http.request", "body": b"x", "more_body": more} for more in (True, True, False)]
    sent = asyncio.run(_through(refusing, wire=wire))
    assert wire == []
    assert [(one.get("body", b""), one.get("more_body", False)) for one in sent[1:]] == [
        (b"too large", True),
        (b"", False),
    ]


@pytest.mark.parametrize(("reads", "responses"), [(1, 3), (3, 2)])
def test_an_upload_refused_half_way_is_read_on(reads: int, responses: int) -> None:
    """A rejection before the end of the body keeps reading; one at its end completes the response
    at once.
    """

    async def refusing(_scope: Any, receive: Any, send: Any) -> None:
        for _ in range(reads):
            await receive()
        await send({"type": "http.response.start", "status": 422, "headers": []})
        await send({"type": "http.response.body", "body": b"wrong"})

    wire = [{"type": "http.request", "body": b"x", "more_body": more} for more in (True, True, False)]
    wire += [{"type": "http.disconnect"}] * 2
    sent = asyncio.run(_through(refusing, wire=wire))
    assert len(wire) == 2
    assert len(sent) == responses


def test_a_client_that_leaves_is_not_waited_for(stack: Stack, client: httpx.Client) -> None:
    """A queued request whose client disconnects is dropped and logged with status 499, not as an
    error.
    """
    busy = create_job(client, "/v1/samples", model="faulty", seconds=2.5)
    job_when(client, busy, lambda job: job["status"] == "running")
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=stack.url, timeout=0.2) as hasty:
        post_samples(hasty, {"X-Request-Id": "hasty"}, seed=1)
    job_when(client, busy, lambda job: job["status"] == "succeeded")
    assert "reverie_waiting_requests 0.0" in client.get("/metrics").text
    lines = [line for line in stack.log("api") if line.get("request_id") == "hasty"]
    assert [line["status"] for line in lines] == [499]
    assert not [line for line in stack.log("api") if line["level"] in {"error", "critical"}]
