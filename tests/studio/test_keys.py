"""Studio on a service that wants keys: it asks once, keeps the key in the session, and shows what a
key may not do.

The journeys of the areas run with a key, too: they are slow tests, as `test_paint[keyed]`.
"""

from __future__ import annotations

from playwright.sync_api import Browser, expect

from tests.studio.visits import Service, needs_chromium, visit

pytestmark = needs_chromium


def test_a_key_is_asked_for_once(browser: Browser, keyed: str) -> None:
    """A wrong one is rejected in the service's words; the right one serves pictures, events and
    downloads.
    """
    with visit(browser, Service(keyed)) as visited:
        page = visited.open("/models")
        prompt = page.get_by_label("API key")
        expect(page.get_by_text("Authorization: Bearer KEY")).to_be_visible()
        visited.check_accessibility()
        prompt.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_text("is not known here")).to_be_visible()
        prompt.fill("ann-key")
        page.keyboard.press("Enter")
        card = page.get_by_role("article", name="vae-mnist-2d")
        expect(card.get_by_role("img")).to_be_visible()
        page.reload()
        expect(card.get_by_role("img")).to_be_visible()

        page.goto(f"{keyed}/draw?model=vae-mnist-2d")
        expect(page.locator(".gallery-cell")).to_have_count(64)
        expect(page.locator(".code")).to_contain_text("Bearer $REVERIE_KEY")
        assert "ann-key" not in page.content()
        with page.expect_download():
            page.get_by_role("button", name="NPZ").click()
        visited.errors.clear()  # Chromium logs each status 401 and 404
        assert page.evaluate("sessionStorage['reverie-key']") == "ann-key"
        assert page.evaluate("JSON.stringify(localStorage) + document.cookie").count("ann-key") == 0
