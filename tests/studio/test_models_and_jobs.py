"""The areas Models and Jobs on a real service: versions are switched, jobs are followed, cancelled and deleted."""

from __future__ import annotations

from pathlib import Path

import httpx
from playwright.sync_api import Browser, expect

from tests.stack import Stack
from tests.studio.visits import PHONE, needs_chromium, visit

pytestmark = needs_chromium


def test_models(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Each model has its card, with samples that it draws."""
    with visit(browser, stack.url) as visited:
        page = visited.open("/models")
        expect(page.get_by_role("article", name="enlarge")).to_contain_text("no samples")
        visited.errors.clear()  # Chromium's own line about the status 404 of its sheet
        card = page.get_by_role("article", name="vae-mnist-2d")
        expect(card).to_contain_text("nats")
        expect(card).to_contain_text("mnist")
        expect(card.get_by_role("img", name="Samples of vae-mnist-2d")).to_be_visible()
        visited.check_accessibility()
        visited.shoot(tmp_path, "models")
        card.get_by_role("link", name="Draw").click()
        expect(page.locator(".gallery-cell").first).to_be_visible()


def test_jobs(browser: Browser, stack: Stack, client: httpx.Client, tmp_path: Path) -> None:
    """A job appears with its progress; it can be cancelled and deleted, and the result of another one looked at."""
    body = {"model": "vae-mnist-2d", "count": 4, "seed": 3}
    job = client.post("/v1/samples", json=body, headers={"Prefer": "respond-async"}).json()
    with visit(browser, stack.url) as visited:
        page = visited.open("/jobs")
        row = page.get_by_role("article", name="samples vae-mnist-2d").first
        expect(row).to_contain_text("succeeded")
        row.get_by_role("button", name="Show").click()
        expect(row.get_by_role("img", name="Result of samples")).to_be_visible()
        visited.check_accessibility()
        visited.shoot(tmp_path, "jobs")
        row.get_by_role("button", name="Delete").click()
        expect(row.get_by_role("img")).to_have_count(0)
        assert client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_on_a_phone(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Nothing is wider than the screen."""
    with visit(browser, stack.url, PHONE) as visited:
        for area in ("models", "jobs"):
            page = visited.open(f"/{area}")
            expect(page.get_by_role("heading", name=area.title())).to_be_visible()
            visited.shoot(tmp_path, f"{area}-phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
