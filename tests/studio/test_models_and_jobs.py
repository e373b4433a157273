"""The areas Models and Jobs on a real service: versions are switched, jobs followed, cancelled and
deleted.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from core.imaging.pictures import png
from tests.studio.visits import PHONE, Service, needs_chromium, visit
from tests.uploads import DIGITS
from tests.version_files import SHIPPED, import_version, with_card, with_other_weights

pytestmark = needs_chromium
MODEL = "studio-digits"


@pytest.fixture
def two_versions(client: httpx.Client) -> Iterator[None]:
    """A model with two versions, of which the first is active."""
    data = with_card(SHIPPED.read_bytes(), name=MODEL)
    for version in (data, with_other_weights(data)):
        assert import_version(client, version, MODEL).status_code == 201
    yield
    assert client.delete(f"/v1/models/{MODEL}").status_code == 204


@pytest.mark.usefixtures("two_versions")
def test_models(browser: Browser, service: Service, client: httpx.Client) -> None:
    """Each model has a card with its samples; another version is activated after a confirmation,
    and rolled back.
    """
    with visit(browser, service) as visited:
        page = visited.open("/models")
        expect(page.get_by_role("article", name="enlarge")).to_contain_text("no samples")
        visited.errors.clear()  # Chromium logs the status 404 of its sheet
        card = page.get_by_role("article", name=MODEL)
        expect(card).to_contain_text("135.87 ± 0.47 nats")
        expect(card).to_contain_text("100 epochs")
        expect(card.get_by_role("img", name=f"Samples of {MODEL}")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("models")

        card.get_by_role("button", name="2", exact=True).click()
        dialog = page.get_by_role("dialog")
        visited.check_accessibility()
        dialog.get_by_role("button", name="Cancel").click()
        expect(card).to_contain_text("Version 1 · active")
        card.get_by_role("button", name="2", exact=True).click()
        dialog.get_by_role("button", name="Activate version 2").click()
        expect(card).to_contain_text("Version 2 · active")
        assert client.get(f"/v1/models/{MODEL}").json()["version"] == "2"
        card.get_by_role("button", name="Roll back to 1").click()
        expect(card).to_contain_text("Version 1 · active")
        visited.check_on_a_phone("models")

        card.get_by_role("link", name="Draw").click()
        expect(page.get_by_label("model", exact=True)).to_have_value(MODEL)
        expect(page.locator(".gallery-cell").first).to_be_visible()


def post_job(client: httpx.Client, operation: str = "samples", **fields: Any) -> str:
    """Create a job; return its id."""
    response = client.post(f"/v1/{operation}", json=fields, headers={"Prefer": "respond-async"})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def test_jobs(browser: Browser, service: Service, client: httpx.Client) -> None:
    """A running job is cancelled, a failed one shows its error, and the result of another one is
    shown and deleted.
    """
    failed = post_job(client, model="faulty", count=1, seed=14)
    done = post_job(client, model="vae-mnist-2d", count=4, seed=3)
    picture = base64.b64encode(png(np.zeros((1, 8, 8), np.uint8))).decode()
    running = post_job(client, "likelihoods", model="faulty", images=[picture], options={"k": 10_000, "seconds": 0.01})
    with visit(browser, service) as visited:
        page = visited.open("/jobs")
        rows = {job: page.locator(f"article[title={job}]") for job in (failed, done, running)}
        expect(rows[done]).to_contain_text("succeeded")
        expect(rows[failed].get_by_role("alert")).to_contain_text(
            client.get(f"/v1/jobs/{failed}").json()["problem"]["detail"]
        )
        rows[done].get_by_role("button", name="Show").click()
        expect(rows[done].get_by_role("img", name="Result of samples")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("jobs")

        expect(rows[running]).to_contain_text("running")
        rows[running].get_by_role("button", name="Cancel").click()
        expect(rows[running]).to_contain_text("cancelled")
        visited.check_on_a_phone("jobs")
        for row in rows.values():
            row.get_by_role("button", name="Delete").click()
            expect(row).to_have_count(0)
        assert client.get(f"/v1/jobs/{done}").status_code == 404


@pytest.fixture
def training(client: httpx.Client) -> Iterator[str]:
    """The id of a training that runs for long."""
    form = {"name": "studio-jobs", "validation": "0.1", "test": "0.1"}
    client.post("/v1/datasets", data=form, files={"file": DIGITS.read_bytes()}).raise_for_status()
    recipe = {"config": {"hidden": [16], "latents": 2}, "training": {"epochs": 5000}}
    body = {"family": "vae", "dataset": "studio-jobs", "name": "studio-jobs", "recipe": recipe}
    job = str(client.post("/v1/trainings", json=body).raise_for_status().json()["id"])
    yield job
    client.post(f"/v1/jobs/{job}/cancel")
    client.delete("/v1/datasets/studio-jobs")


def test_trainings_among_jobs(browser: Browser, service: Service, client: httpx.Client, training: str) -> None:
    """A training is cancelled, and deleted, after a confirmation only."""
    with visit(browser, service) as visited:
        page = visited.open("/jobs")
        row = page.locator(f"article[title={training}]")
        dialog = page.get_by_role("dialog")
        row.get_by_role("button", name="Cancel", exact=True).click()
        visited.check_accessibility()
        dialog.get_by_role("button", name="Cancel", exact=True).click()
        expect(dialog).to_have_count(0)
        assert client.get(f"/v1/jobs/{training}").json()["status"] in {"queued", "running"}
        row.get_by_role("button", name="Cancel", exact=True).click()
        dialog.get_by_role("button", name="Cancel the training").click()
        expect(row.locator(".job-status")).to_have_text("cancelled")
        row.get_by_role("button", name="Delete").click()
        dialog.get_by_role("button", name="Delete the training").click()
        expect(row).to_have_count(0)
        assert client.get(f"/v1/jobs/{training}").status_code == 404


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """Nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        for area in ("models", "jobs"):
            page = visited.open(f"/{area}")
            expect(page.get_by_role("heading", name=area.title())).to_be_visible()
            page.wait_for_timeout(500)
            visited.errors.clear()  # Chromium logs the status 404 of a sheet
            visited.shoot(f"{area}-phone")
            visited.check_accessibility()
            visited.check_width()
