"""Webhooks of an API process without workers: faulty receivers, changing host names, and secrets of
keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks

from api import webhooks
from api.keys_command import main as keys_command
from api.state import AppState
from core.jobs.records import Job
from core.webhooks.records import Webhook
from core.webhooks.signature import new_secret
from tests.api.callers import app_settings, application, bearer, key_file, key_line, state_of
from tests.api.helpers import MODEL, problem
from tests.webhooks.pictures import endless, redirect
from tests.webhooks.receiver import Receiver, accept

LOCAL = {"allowed_networks": "127.0.0.0/8", "webhook_retry_s": 0.1}


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a test function of a coroutine function."""

    @functools.wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@asynccontextmanager
async def service(folder: Path, *names: str, **settings: Any) -> AsyncIterator[list[httpx.AsyncClient]]:
    """Run an application that may connect to this machine; yield clients with the keys of these
    names.
    """
    async with application(app_settings(folder, **{**LOCAL, **settings}), *(names or ("",))) as clients:
        yield clients


async def cancelled_job(state: AppState, url: str, owner: str = "") -> str:
    """Insert a job with a webhook and cancel it; return its id."""
    job = Job(kind="samples", model="m", method="sample", owner=owner, webhook=Webhook(url).as_dict())
    await state.job_service.write(lambda job_store: job_store.insert(job))
    await state.job_service.cancel(job.id)
    return job.id


async def delivery_when(
    client: httpx.AsyncClient, job_id: str, good: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """Wait until a condition holds for the only delivery of a job; return it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        (delivery,) = (await client.get(f"/v1/jobs/{job_id}/deliveries")).json()["data"]
        if good(delivery):
            found: dict[str, Any] = delivery
            return found
        await asyncio.sleep(0.05)
    raise TimeoutError(delivery)


def ended(delivery: dict[str, Any]) -> bool:
    """Return whether a delivery has ended."""
    return delivery["ended_at"] is not None


def status(code: int, **headers: str) -> Callable[[Any], None]:
    """Return a handler that responds with this status."""

    def respond(handler: Any) -> None:
        handler.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return respond


@in_event_loop
async def test_a_failed_attempt_is_repeated_under_the_same_id(tmp_path: Path) -> None:
    """Failed attempts are retried with the same id and body, and a new timestamp and signature."""
    with Receiver().running() as receiver:
        receiver.responses = [status(500), redirect(receiver.url), lambda handler: handler.connection.close(), accept]
        async with service(tmp_path) as (client,):
            job_id = await cancelled_job(state_of(client), receiver.url)
            failed = await delivery_when(client, job_id, lambda one: one["attempts"] == 2)
            assert (failed["status"], failed["ended_at"]) == ("pending", None)
            assert failed["next_attempt_at"] > failed["attempted_at"]
            delivery = await delivery_when(client, job_id, ended)
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 4)
        secret = (tmp_path / "state" / "webhook-secret").read_text().strip()
        for request in receiver.requests:
            standardwebhooks.Webhook(secret).verify(request["body"], request["headers"])
        assert {one["headers"]["webhook-id"] for one in receiver.requests} == {delivery["id"]}
        assert len({one["body"] for one in receiver.requests}) == 1
        timestamps = [int(one["headers"]["webhook-timestamp"]) for one in receiver.requests]
        assert all(abs(at - one["at"]) <= 2 for at, one in zip(timestamps, receiver.requests, strict=True))


@pytest.mark.parametrize(
    ("respond", "words", "code"),
    [
        (status(404), "404", 404),
        (status(302, Location="http://169.254.169.254/"), "redirects are not followed", 302),
        (lambda handler: time.sleep(3), "no response in time", None),
        (lambda handler: handler.wfile.write(b"not HTTP\r\n\r\n"), "", None),
    ],
)
@in_event_loop
async def test_the_list_says_why_an_attempt_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, respond: Callable[[Any], None], words: str, code: int | None
) -> None:
    """The list of deliveries has the error or the status of the last attempt; redirects are not
    followed.
    """
    if words == "no response in time":
        monkeypatch.setattr(webhooks, "ATTEMPT_TIMEOUT_S", 0.5)
    with Receiver().running() as receiver:
        receiver.responses = [respond]
        async with service(tmp_path, webhook_retry_s=600) as (client,):
            job_id = await cancelled_job(state_of(client), receiver.url)
            delivery = await delivery_when(client, job_id, lambda one: one["attempts"] == 1)
    assert (delivery["status"], delivery["response_status"]) == ("pending", code)
    assert words in delivery["error"]


def dripping(handler: Any) -> None:
    """Send one byte every 0.1 s until the client closes the connection."""
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b".")
            time.sleep(0.1)


@pytest.mark.parametrize("respond", [endless, dripping])
@in_event_loop
async def test_an_endless_response_counts_by_its_status(tmp_path: Path, respond: Callable[[Any], None]) -> None:
    """A delivery succeeds by the response's status, without reading an endless body."""
    with Receiver().running() as receiver:
        receiver.responses = [respond]
        async with service(tmp_path) as (client,):
            started = time.monotonic()
            delivery = await delivery_when(client, await cancelled_job(state_of(client), receiver.url), ended)
            assert time.monotonic() - started < webhooks.ATTEMPT_TIMEOUT_S
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 1)


@in_event_loop
async def test_a_receiver_that_is_gone_gets_no_more(tmp_path: Path) -> None:
    """A receiver that responds 410 gets no retries."""
    with Receiver().running() as receiver:
        receiver.responses = [status(410)]
        async with service(tmp_path) as (client,):
            delivery = await delivery_when(client, await cancelled_job(state_of(client), receiver.url), ended)
    assert (delivery["status"], delivery["attempts"]) == ("failed", 1)


@in_event_loop
async def test_a_name_that_changes_to_an_internal_address_is_not_reached(tmp_path: Path) -> None:
    """A host that was public at the request and resolves to an internal address later gets no
    delivery.
    """
    addresses = [["1.1.1.1"], ["127.0.0.1"]]

    async def resolver(_host: str, _port: int) -> Sequence[str]:
        return addresses.pop(0) if addresses else ["127.0.0.1"]

    with Receiver().running() as receiver:
        port = httpx.URL(receiver.url).port
        async with service(tmp_path, allowed_networks="", webhook_retry_s=600) as (client,):
            state = state_of(client)
            state.webhooks._resolver = resolver
            url = f"http://hooks.example:{port}/"
            body = {"model": MODEL, "webhook": {"url": url}}
            response = await client.post("/v1/samples", json=body)
            assert response.status_code == 202, response.text
            job_id = response.json()["id"]
            await state.job_service.cancel(job_id)
            delivery = await delivery_when(client, job_id, lambda one: one["attempts"] == 1)
        assert "not a public address" in delivery["error"]
        assert receiver.requests == []


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://10.1.2.3:8000/", "http://[::1]/"],
)
@in_event_loop
async def test_a_webhook_to_an_internal_address_is_rejected(tmp_path: Path, url: str) -> None:
    """A webhook to an internal address is 422 at once, and no job is created."""
    async with service(tmp_path, allowed_networks="") as (client,):
        response = await client.post("/v1/samples", json={"model": MODEL, "webhook": {"url": url}})
        assert problem(response, 422)["errors"][0]["field"] == "webhook.url"
        assert (await client.get("/v1/jobs")).json()["data"] == []


@pytest.mark.parametrize(
    ("webhook", "field"),
    [
        ({}, "webhook.url"),
        ({"url": "https://example.com", "events": []}, "webhook.events"),
        ({"url": "https://example.com", "events": ["job.done"]}, "webhook.events.0"),
        ({"url": "https://example.com", "secret": "x"}, "webhook.secret"),
        ({"url": 5}, "webhook.url"),
        ("https://example.com", "webhook"),
    ],
)
@in_event_loop
async def test_a_webhook_that_is_not_valid_is_rejected(tmp_path: Path, webhook: object, field: str) -> None:
    """An invalid webhook is 422 with its field, for operations, trainings and datasets."""
    training = {"family": "vae", "dataset": "d", "name": "n"}
    async with service(tmp_path) as (client,):
        for path, body in (("samples", {"model": MODEL}), ("trainings", training), ("datasets", {"source": "mnist"})):
            response = await client.post(f"/v1/{path}", json={**body, "webhook": webhook})
            fields = [one["field"].removeprefix("body.") for one in problem(response, 422)["errors"]]
            assert field in fields


@in_event_loop
async def test_a_slow_receiver_does_not_hold_up_others(tmp_path: Path) -> None:
    """Slow deliveries to one host use only a part of the connections, so that others are sent."""
    with Receiver().running() as slow, Receiver().running() as fast:
        slow.responses = [lambda handler: time.sleep(5)] * webhooks.MAX_PER_HOST
        async with service(tmp_path) as (client,):
            state = state_of(client)
            for _ in range(webhooks.MAX_PER_HOST + 4):
                await cancelled_job(state, slow.url)
            started = time.monotonic()
            await delivery_when(client, await cancelled_job(state, fast.url), ended)
            assert time.monotonic() - started < 4


@in_event_loop
async def test_each_key_has_a_secret_and_both_sign_while_it_is_rotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a key is rotated, deliveries have signatures of the old and the new secret, which
    `keys` prints once.
    """
    file = tmp_path / "keys"
    secrets = []
    for words in (("add", "ann"), ("rotate", "ann"), ("add", "bob")):
        assert keys_command(["--file", str(file), *words]) == 0
        printed = capsys.readouterr()
        assert "whsec_" not in printed.out
        secrets.append(next(word for word in printed.err.split() if word.startswith("whsec_")))
    old, new, other = secrets
    with file.open("a") as keys:
        keys.write(f"{key_line('ann')}\n{key_line('bob')}\n")
    with Receiver().running() as receiver:
        async with service(tmp_path, "ann", "bob", api_keys=file) as (ann, bob):
            job_id = await cancelled_job(state_of(ann), receiver.url, "ann")
            assert (await delivery_when(ann, job_id, ended))["status"] == "delivered"
            problem(await bob.get(f"/v1/jobs/{job_id}/deliveries"), 404)
        (request,) = receiver.requests
    for secret in (old, new):
        standardwebhooks.Webhook(secret).verify(request["body"], request["headers"])
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(other).verify(request["body"], request["headers"])


@in_event_loop
async def test_a_key_without_a_secret_cannot_have_webhooks(tmp_path: Path) -> None:
    """A key without a webhook secret, as earlier releases made them, gets 422, which says how to
    get one.
    """
    lines = key_line("old"), key_line("new", "run", f"webhooks={new_secret()}")
    async with service(tmp_path, "old", "new", api_keys=key_file(tmp_path, *lines)) as (old, new):
        body = {"model": MODEL, "webhook": {"url": "http://127.0.0.1:1/"}}
        problem(await old.post("/v1/samples", json=body), 422, "keys rotate")
        assert (await new.post("/v1/samples", json=body)).status_code == 202
    assert bearer("old") != bearer("new")


@in_event_loop
async def test_deliveries_of_a_deleted_job_are_still_sent_and_listed(tmp_path: Path) -> None:
    """Deliveries of a deleted job are sent and listed; an unknown job is 404."""
    with Receiver().running() as receiver:
        receiver.responses = [status(500)]
        async with service(tmp_path, webhook_retry_s=1) as (client,):
            job_id = await cancelled_job(state_of(client), receiver.url)
            assert (await client.delete(f"/v1/jobs/{job_id}")).status_code == 204
            assert (await delivery_when(client, job_id, ended))["status"] == "delivered"
            listed = (await client.get(f"/v1/jobs/{job_id}/deliveries")).json()
            after = await client.get(f"/v1/jobs/{job_id}/deliveries", params={"after": listed["last_id"]})
            assert after.json()["data"] == []
            problem(await client.get(f"/v1/jobs/{job_id}/deliveries?after=msg_0"), 422, "msg_0")
            for unknown in ("job_" + "0" * 28, "nonsense"):
                problem(await client.get(f"/v1/jobs/{unknown}/deliveries"), 404)
