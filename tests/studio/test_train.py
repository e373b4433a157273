"""The area Train on a real service: a training is started, watched, paused, resumed, published and
compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.studio.visits import PHONE, Service, needs_chromium, visit
from tests.uploads import DIGITS

pytestmark = needs_chromium

SMALL = "config.hidden=16&config.latents=2&training.batch_size=100&count=40&k=10"
"""Parameters of the address for a training whose epochs take some milliseconds."""

EPOCHS = 10_000


@pytest.fixture
def dataset(client: httpx.Client) -> Iterator[str]:
    """The name of a dataset of 2000 digits."""
    form = {"name": "studio-digits", "validation": "0.1", "test": "0.1"}
    client.post("/v1/datasets", data=form, files={"file": DIGITS.read_bytes()}).raise_for_status()
    yield "studio-digits"
    for training in client.get("/v1/trainings?limit=100").json()["data"]:
        client.post(f"/v1/jobs/{training['id']}/cancel")
    client.delete("/v1/datasets/studio-digits")


def test_train(browser: Browser, service: Service, dataset: str) -> None:
    """An error stands beside its option; curves, previews and log of a training are shown until its
    end.
    """
    with visit(browser, service) as visited:
        page = visited.open(f"/train?data={dataset}&{SMALL}&training.epochs=0")
        expect(page.get_by_label("family")).to_have_value("vae")
        visited.check_accessibility()
        visited.shoot("train")
        page.get_by_label("name", exact=True).fill("studio-first")
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.locator(".field-error").filter(has_text="less than the minimum of 1")).to_be_visible()
        visited.errors.clear()  # Chromium's own line about the status 422
        visited.check_accessibility()
        page.get_by_label("epochs", exact=True).fill("4")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Start", exact=True).click()

        expect(page).to_have_url(re.compile("run=job_"))
        expect(page.get_by_role("img", name=re.compile("Losses by epoch. Epoch 4"))).to_be_visible()
        expect(page.get_by_role("status").filter(has_text="succeeded")).to_be_visible()
        expect(page.locator(".u-legend").first).to_contain_text("validation loss")
        expect(page.get_by_role("img", name=re.compile("Samples after epoch"))).to_be_visible()
        expect(page.get_by_role("log")).to_contain_text("succeeded")
        page.get_by_text("log scale").click()
        expect(page).to_have_url(re.compile("scale=log"))
        visited.check_accessibility()
        for theme in ("light", "dark"):  # a chart is drawn again in the colours of the theme
            old = page.locator(".chart canvas").first.evaluate("canvas => canvas.toDataURL()")
            visited.set_theme(theme)
            page.wait_for_function("old => document.querySelector('.chart canvas')?.toDataURL() !== old", arg=old)
        visited.shoot("train-run")
        visited.check_on_a_phone("train-run")
        page.get_by_role("link", name="Draw with it").click()
        expect(page.locator(".gallery-cell").first).to_be_visible()


@pytest.mark.slow
def test_control(browser: Browser, service: Service, dataset: str) -> None:
    """A dry run; then a training is paused, resumed, cancelled and published, and compared with a
    variant of it.
    """
    with visit(browser, service) as visited:
        options = f"{SMALL}&training.epochs=5000&training.save_every_s=0.2"
        page = visited.open(f"/train?data={dataset}&name=studio-long&{options}")
        page.get_by_role("button", name="Dry run").click()
        expect(page.get_by_label("Dry run")).to_contain_text("Memory")
        visited.shoot("train-dry-run")
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("img", name=re.compile("Losses by epoch"))).to_be_visible()
        page.get_by_role("button", name="Pause").click()
        page.get_by_role("button", name="Resume").click()
        expect(page.get_by_role("log")).to_contain_text("checkpoint")
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the training").click()
        page.get_by_role("button", name="Publish the checkpoint").click()
        expect(page.get_by_text("Publishing")).to_have_count(0)
        page.get_by_role("button", name="Start a variant").click()
        expect(page).to_have_url(re.compile("config.latents=2"))
        page.goto(re.sub("epochs=5000", "epochs=3&seed=7", page.url))
        page.get_by_role("button", name="Start", exact=True).click()
        expect(page.get_by_role("status").filter(has_text="succeeded")).to_be_visible()

        page.get_by_role("link", name="All trainings").click()
        for box in page.get_by_role("checkbox", name=re.compile("Compare studio-long")).all():
            box.check()
        page.get_by_role("button", name=re.compile("Compare 2")).click()
        table = page.locator(".table")
        expect(table).to_contain_text("epochs")
        expect(table).to_contain_text("best validation loss")
        visited.check_accessibility()
        visited.shoot("train-compare")


def serve_long_training(page: Page, training: dict[str, object]) -> None:
    """Let the page see a training as one of 10 000 epochs."""
    lines = [
        f"id: {epoch}\nevent: metrics\ndata: "
        + json.dumps({"epoch": epoch, "train_loss": 100 + 1000 / epoch, "validation_loss": 105 + 1000 / epoch})
        for epoch in range(1, EPOCHS + 1)
    ]
    lines.append(f'id: {EPOCHS + 1}\nevent: status\ndata: {{"status":"succeeded"}}\n\n')

    def respond(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body="\n\n".join(lines))

    page.route(f"**/v1/jobs/{training['id']}/events", respond)


@pytest.mark.slow
def test_ten_thousand_epochs(browser: Browser, service: Service, client: httpx.Client, dataset: str) -> None:
    """At most 2000 points are drawn of a training of 10 000 epochs."""
    recipe = {"config": {"hidden": [8], "latents": 2}, "training": {"epochs": 1}}
    body = {"family": "vae", "dataset": dataset, "name": "studio-points", "recipe": recipe}
    training = client.post("/v1/trainings", json=body).json()
    with visit(browser, service) as visited:
        serve_long_training(visited.page, training)
        page = visited.open(f"/train?run={training['id']}")
        chart = page.get_by_role("img", name=re.compile(f"Epoch {EPOCHS}"))
        expect(chart).to_be_visible()
        assert 1000 < int(chart.get_attribute("data-points") or 0) <= 2000


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service, dataset: str) -> None:
    """The three choices come first, and nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open(f"/train?data={dataset}")
        expect(page.get_by_role("button", name="Start", exact=True)).to_be_visible()
        visited.shoot("train-phone")
        visited.check_width()
