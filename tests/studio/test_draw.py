"""The area Draw on a real service: the first pictures, options, seeds, downloads, errors and the history."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.stack import Stack
from tests.studio.visits import DESK, PHONE, needs_chromium, visit

pytestmark = needs_chromium


def pictures(page: Page) -> int:
    """How many pictures of the gallery are in the page."""
    return page.locator(".gallery-cell").count()


def test_draw(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Pictures are there at once; each change draws others, and a reload shows the same address and history."""
    with visit(browser, stack.url) as visited:
        page = visited.open("/?model=vae-mnist-2d")
        expect(page.locator(".gallery-cell")).to_have_count(64)
        expect(page.get_by_label("model", exact=True)).to_have_value("vae-mnist-2d")
        visited.check_accessibility()
        visited.shoot(tmp_path, "draw")

        first = page.locator(".gallery-cell img").first.get_attribute("src")
        page.keyboard.press("n")
        expect(page.locator(".gallery-heading")).to_have_count(2)
        assert "seed=" in page.url
        assert page.locator(".gallery-cell img").first.get_attribute("src") != first

        page.get_by_role("radio", name="draws").check()
        expect(page).to_have_url(re.compile("output=draws"))
        page.get_by_role("spinbutton", name="count").fill("9")
        page.keyboard.press("Enter")
        expect(page.get_by_text("9 in ")).to_be_visible()

        page.locator(".gallery-cell").nth(2).click()
        expect(page.get_by_text("Picture 2 of seed")).to_be_visible()
        page.get_by_role("button", name="Reproduce").click()
        expect(page.get_by_text("the same bytes again")).to_be_visible()
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="ZIP").click()
        with zipfile.ZipFile(downloaded.value.path()) as archive:
            assert len(archive.namelist()) == 9
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="NPZ").click()
        with np.load(io.BytesIO(Path(downloaded.value.path()).read_bytes())) as arrays:
            assert len(arrays["images"]) == 9

        expect(page.locator(".history-entry")).not_to_have_count(0)
        page.reload()
        expect(page.get_by_text("9 in ")).to_be_visible()
        expect(page.locator(".history-entry")).not_to_have_count(0)
        page.get_by_role("button", name="Clear").click()
        page.get_by_role("dialog").get_by_role("button", name="Clear").click()
        expect(page.locator(".history-entry")).to_have_count(0)


def test_errors_stand_beside_their_control(browser: Browser, stack: Stack) -> None:
    """In the service's words; the next good value draws again."""
    with visit(browser, stack.url) as visited:
        page = visited.open("/draw?model=vae-mnist-2d&count=100000")
        error = page.locator(".field-error")
        expect(error).to_contain_text("65536")
        visited.errors.clear()  # Chromium's own line about the status 422
        visited.check_accessibility()
        page.get_by_role("spinbutton", name="count").fill("4")
        page.keyboard.press("Enter")
        expect(page.locator(".gallery-cell")).to_have_count(4)
        expect(error).to_have_count(0)


def test_on_a_phone(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """The options are a sheet that leaves pictures visible; nothing is wider than the screen."""
    with visit(browser, stack.url, PHONE) as visited:
        page = visited.open("/draw?model=vae-mnist-2d")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        visited.shoot(tmp_path, "draw-phone")
        page.get_by_role("button", name="Options").click()
        expect(page.get_by_role("button", name="New")).to_be_visible()
        expect(page.locator(".gallery-cell").first).to_be_visible()
        visited.check_accessibility()
        visited.shoot(tmp_path, "draw-phone-options")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_ten_thousand_pictures(browser: Browser, stack: Stack) -> None:
    """The gallery holds no more than 200 of them in the page, wherever it is scrolled."""
    with visit(browser, stack.url, DESK) as visited:
        page = visited.open("/draw?model=vae-mnist-2d&count=10000")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        gallery = page.locator(".gallery")
        for share in (0, 0.3, 0.9999):
            gallery.evaluate("(element, share) => { element.scrollTop = share * element.scrollHeight; }", share)
            page.wait_for_timeout(100)
            assert 30 <= pictures(page) <= 200
        expect(page.get_by_role("button", name="Picture 9999, seed 1")).to_be_visible()


SCROLL = """
async () => {
  const gallery = document.querySelector(".gallery");
  const tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map(({ duration }) => duration)))
    .observe({ entryTypes: ["longtask"] });
  let frames = 0;
  const started = performance.now();
  while (performance.now() - started < 5000) {
    await new Promise(requestAnimationFrame);
    gallery.scrollTop += 40;
    frames++;
  }
  return { frames: frames / ((performance.now() - started) / 1000), tasks };
}
"""


@pytest.mark.slow
def test_scrolling_ten_thousand_pictures(browser: Browser, stack: Stack) -> None:
    """At least 50 frames a second, and no task longer than 50 ms. It needs an idle machine."""
    with visit(browser, stack.url, DESK) as visited:
        page = visited.open("/draw?model=vae-mnist-2d&count=10000")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        page.wait_for_timeout(3000)
        measured = page.evaluate(SCROLL)
        assert measured["frames"] >= 50, measured
        assert measured["tasks"] == [], measured


@pytest.mark.slow
def test_the_first_paint(browser: Browser, stack: Stack) -> None:
    """Of the second visit, with an empty cache, in less than a second."""
    for _ in range(2):
        with visit(browser, stack.url, DESK) as visited:
            page = visited.open("/draw?model=vae-mnist-2d")
            expect(page.locator(".gallery-cell").first).to_be_visible()
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert paint < 1000
