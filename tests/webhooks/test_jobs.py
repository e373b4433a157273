"""Webhooks of jobs on a real service: signatures, contents and listed deliveries."""

from __future__ import annotations

import json
from typing import Any

import httpx
import standardwebhooks

from api.schemas.webhooks import WebhookEvent
from tests.api.helpers import FAULTY, MODEL, finished_job
from tests.datasets import add_digits
from tests.families.faulty import RAISES
from tests.stack import Stack
from tests.version_files import SHIPPED, with_card
from tests.waiting import wait_until
from tests.webhooks.receiver import Receiver


def secret_of(stack: Stack) -> str:
    """Return the secret of a service without keys."""
    return (stack.state / "state" / "webhook-secret").read_text().strip()


def verified(stack: Stack, request: dict[str, Any]) -> dict[str, Any]:
    """Check the signature of a request and that its body conforms to its schema; return the
    body.
    """
    body: dict[str, Any] = standardwebhooks.Webhook(secret_of(stack)).verify(request["body"], request["headers"])
    event = WebhookEvent.model_validate(body)
    assert event.model_dump() == body
    assert not event.data.model_extra
    return body


def ended(service: httpx.Client, job_id: str, count: int = 1) -> list[dict[str, Any]]:
    """Wait until `count` deliveries of a job have ended; return all of them, newest first."""

    def deliveries() -> list[dict[str, Any]] | None:
        data: list[dict[str, Any]] = service.get(f"/v1/jobs/{job_id}/deliveries").json()["data"]
        return data if sum(one["ended_at"] is not None for one in data) >= count else None

    return wait_until(deliveries, f"{count} deliveries of {job_id} have ended", 60)


def test_a_job_sends_a_signed_webhook_when_it_ends(hooked: Stack, service: httpx.Client, receiver: Receiver) -> None:
    """The signature verifies with the library of Standard Webhooks, and the delivery is listed."""
    response = service.post("/v1/samples", json={"model": MODEL, "seed": 1, "webhook": {"url": receiver.url}})
    assert response.status_code == 202
    job = finished_job(service, response.json()["id"])
    (delivery,) = ended(service, job["id"])
    (request,) = receiver.requests
    body = verified(hooked, request)
    assert (body["type"], body["data"]["id"], body["data"]["status"]) == ("job.succeeded", job["id"], "succeeded")
    assert body["data"]["finished_at"] == job["finished_at"]
    assert (delivery["status"], delivery["attempts"], delivery["response_status"]) == ("delivered", 1, 204)
    assert (delivery["id"], delivery["event"]) == (request["headers"]["webhook-id"], "job.succeeded")


def test_forms_and_queries_take_a_webhook_as_json(service: httpx.Client, receiver: Receiver, digit: bytes) -> None:
    """Forms, and queries of a raw image, take a webhook as JSON."""
    webhook = json.dumps({"url": receiver.url, "events": ["job.running", "job.succeeded"]})
    form = service.post("/v1/encodings", data={"model": MODEL, "webhook": webhook}, files={"images": digit})
    query = {"model": MODEL, "webhook": webhook}
    raw = service.post("/v1/encodings", params=query, content=digit, headers={"Content-Type": "image/png"})
    for response in (form, raw):
        assert response.status_code == 202, response.text
        assert {one["event"] for one in ended(service, response.json()["id"], 2)} == {"job.running", "job.succeeded"}


def test_a_client_may_wait_for_a_job_with_a_webhook(service: httpx.Client, receiver: Receiver) -> None:
    """`Prefer: wait=N` returns the result, a retry the same job, and the webhook is sent once."""
    body = {"model": MODEL, "seed": 5, "webhook": {"url": receiver.url}}
    headers = {"Prefer": "wait=60", "Idempotency-Key": "a webhook once"}
    first, second = (service.post("/v1/samples", json=body, headers=headers) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.content == second.content
    assert first.headers["content-location"] == second.headers["content-location"]
    job_id = first.headers["content-location"].split("/")[3]
    assert ended(service, job_id)[0]["status"] == "delivered"
    assert len(receiver.requests) == 1
    plain = service.post("/v1/samples", json={"model": MODEL, "seed": 5}, headers={"Prefer": "wait=60"})
    assert plain.json()["images"] == first.json()["images"]


def test_a_failed_job_sends_its_problem(hooked: Stack, service: httpx.Client, receiver: Receiver) -> None:
    """The webhook of a failed job has the job's problem."""
    response = service.post("/v1/samples", json={"model": FAULTY, "seed": RAISES, "webhook": {"url": receiver.url}})
    job = finished_job(service, response.json()["id"])
    ended(service, job["id"])
    body = verified(hooked, receiver.requests[0])
    assert (body["type"], body["data"]["problem"]["detail"]) == ("job.failed", job["problem"]["detail"])


def test_trainings_and_dry_runs_send_webhooks(hooked: Stack, service: httpx.Client, receiver: Receiver) -> None:
    """Dry runs and cancelled trainings send webhooks; a training links to its deliveries."""
    add_digits(hooked, "hooked")
    webhook = {"url": receiver.url, "events": ["job.cancelled", "job.succeeded"]}
    body = {"family": "vae", "dataset": "hooked", "name": "hooked", "webhook": webhook}
    body |= {"recipe": {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1000, "batch_size": 50}}}
    assert service.post("/v1/trainings", json={**body, "dry_run": True}).status_code in {200, 202}
    training = service.post("/v1/trainings", json=body).json()
    assert training["webhook"] == webhook
    assert service.post(f"/v1/jobs/{training['id']}/cancel").status_code == 200
    (delivery,) = ended(service, training["id"])
    assert (delivery["event"], service.get(training["links"]["deliveries"]).json()["data"][0]["id"]) == (
        "job.cancelled",
        delivery["id"],
    )

    def kinds() -> bool:
        bodies = [verified(hooked, request) for request in receiver.requests]
        return {(one["data"]["kind"], one["type"]) for one in bodies} == {
            ("estimate", "job.succeeded"),
            ("training", "job.cancelled"),
        }

    wait_until(kinds, "both have arrived")


def test_imports_and_publications_send_webhooks(hooked: Stack, service: httpx.Client, receiver: Receiver) -> None:
    """Imports, and publications of a paused training, are jobs that send webhooks, whose deliveries
    are listed.
    """
    webhook = {"url": receiver.url}
    file = with_card(SHIPPED.read_bytes(), name="imported-with-a-webhook")
    form = {"data": {"webhook": json.dumps(webhook)}, "files": {"file": file}}
    imported = service.post("/v1/models/imported-with-a-webhook/versions", **form)  # type: ignore[arg-type]
    assert imported.status_code == 201, imported.text
    (job,) = service.get("/v1/jobs", params={"kind": "import"}).json()["data"]
    assert ended(service, job["id"])[0]["status"] == "delivered"

    add_digits(hooked, "paused")
    recipe = {
        "config": {"hidden": [8], "latents": 2},
        "training": {"epochs": 100000, "batch_size": 50, "save_every_s": 0.2},
    }
    body = {"family": "vae", "dataset": "paused", "name": "paused", "recipe": recipe}
    training = service.post("/v1/trainings", json=body).json()["id"]
    wait_until(lambda: service.get(f"/v1/trainings/{training}").json()["status"] == "running", "it runs", 60)
    wait_until((hooked.state / "state" / "runs" / training / "state.pt").exists, "it has a checkpoint", 60)
    service.post(f"/v1/trainings/{training}/pause")
    wait_until(lambda: service.get(f"/v1/trainings/{training}").json()["status"] == "paused", "it is paused", 60)
    published = service.post(f"/v1/trainings/{training}/publish", json={"webhook": webhook})
    assert published.status_code == 202, published.text
    assert published.json()["webhook"]["url"] == receiver.url
    ended(service, published.json()["id"])
    bodies = [verified(hooked, request)["data"] for request in receiver.requests]
    assert [(body["kind"], body["status"]) for body in bodies] == [
        ("import", "succeeded"),
        ("publication", "succeeded"),
    ]
