"""The area Compare on a real service: models side by side, and two of them blind."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.studio.visits import PHONE, Service, needs_chromium, visit

pytestmark = needs_chromium


def test_compare(browser: Browser, service: Service) -> None:
    """Columns have one seed; blind, the names appear after the choice, and the tally outlives a
    reload.
    """
    with visit(browser, service) as visited:
        page = visited.open("/compare?models=vae-mnist-2d,tiny&seed=3&count=9")
        expect(page.get_by_role("img", name="9 samples of vae-mnist-2d@1, seed 3")).to_be_visible()
        expect(page.get_by_role("img", name="9 samples of tiny@1, seed 3")).to_be_visible()
        page.keyboard.press("n")
        expect(page).not_to_have_url(re.compile("seed=3&"))
        page.get_by_role("button", name="Add a model").click()
        expect(page.locator(".column")).to_have_count(3)
        visited.shoot("compare")
        page.get_by_role("button", name="Remove model 3").click()
        expect(page.locator(".column")).to_have_count(2)

        page.get_by_role("checkbox", name=re.compile("blind")).check()
        expect(page.get_by_role("img", name=re.compile("samples of [AB], seed"))).to_have_count(2)
        assert "tiny" not in page.locator(".columns").inner_text()
        visited.check_accessibility()
        visited.shoot("compare-blind")
        page.keyboard.press("a")
        expect(page.get_by_role("status").filter(has_text="You chose A")).to_be_visible()
        expect(page.locator(".columns")).to_contain_text("tiny@1")
        page.keyboard.press("n")
        expect(page.get_by_role("button", name="Equal")).to_be_visible()
        page.get_by_role("button", name="Equal").click()
        page.reload()
        expect(page.locator(".tally")).to_contain_text(re.compile("equal\\s*1"))
        counts = sorted(page.locator(".tally dd").all_inner_texts())
        assert counts == ["0", "1", "1"]
        page.get_by_role("button", name="Clear").click()
        page.get_by_role("dialog").get_by_role("button", name="Clear").click()
        assert set(page.locator(".tally dd").all_inner_texts()) == {"0"}
        visited.check_on_a_phone("compare")


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """Two columns stand side by side, and nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/compare?models=vae-mnist-2d,tiny")
        expect(page.get_by_role("img", name=re.compile("samples of"))).to_have_count(2)
        visited.shoot("compare-phone")
        visited.check_width()
