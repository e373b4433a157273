"""The area Plane on a real service: the digit follows the hand, sliders, a film, bad input."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.stack import Stack
from tests.studio.visits import PHONE, needs_chromium, visit

pytestmark = needs_chromium

RECORD_AGES = """
window.ages = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntriesByName("studio-decoding")) window.ages.push(entry.duration);
}).observe({ type: "measure" });
"""

# moves as a hand makes them: Playwright waits for a frame after each of its own
DRAG = """
async ([moves, seconds]) => {
  const square = document.querySelector(".plane-square");
  const { left, top, width, height } = square.getBoundingClientRect();
  const started = performance.now();
  for (let number = 0; number < moves * seconds; number++) {
    const share = number / (moves * seconds);
    const place = { clientX: left + share * width, clientY: top + ((37 * share) % 1) * height };
    square.dispatchEvent(new PointerEvent("pointermove", { ...place, pointerId: 1, bubbles: true }));
    const rest = started + ((number + 1) * 1000) / moves - performance.now();
    await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)));
  }
  return (performance.now() - started) / 1000;
}
"""


def picture(page: Page) -> Any:
    """Return the pixels of the decoded picture beside the hand."""
    return page.locator(".plane-picture canvas").evaluate("canvas => canvas.toDataURL()")


def wait_for_picture(page: Page, old: Any = None) -> Any:
    """Wait until a picture is shown that is neither black nor the old one; return its pixels."""
    blank = page.evaluate(
        "() => { const c = document.createElement('canvas'); c.width = c.height = 28; return c.toDataURL(); }"
    )
    page.wait_for_function(
        "old => !old.includes(document.querySelector('.plane-picture canvas')?.toDataURL() ?? old[0])", arg=[blank, old]
    )
    return picture(page)


def test_the_digit_follows_the_hand(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """A code is dragged, typed and moved by keys; the address keeps it, and a wrong one is explained."""
    with visit(browser, stack.url) as visited:
        page = visited.open("/plane?model=vae-mnist-2d")
        expect(page.get_by_label("model", exact=True)).to_have_value("vae-mnist-2d")
        manifold = page.get_by_role("img", name="The manifold of vae-mnist-2d")
        expect(manifold).to_be_visible()
        first = wait_for_picture(page)
        bounds = manifold.bounding_box()
        assert bounds is not None
        page.mouse.move(bounds["x"] + 0.2 * bounds["width"], bounds["y"] + 0.8 * bounds["height"])
        page.mouse.down()
        page.mouse.move(bounds["x"] + 0.25 * bounds["width"], bounds["y"] + 0.75 * bounds["height"], steps=5)
        page.mouse.up()
        second = wait_for_picture(page, first)
        expect(page).to_have_url(re.compile(r"z=-0\.6\d*%2C0\.6"))
        visited.check_accessibility()
        visited.shoot(tmp_path, "plane")

        page.locator(".plane-square").press("ArrowRight")
        third = wait_for_picture(page, second)
        expect(page).not_to_have_url(re.compile(r"z=-0\.67"))
        page.reload()
        page.wait_for_function("old => document.querySelector('.plane-picture canvas')?.toDataURL() === old", arg=third)

        page.get_by_role("spinbutton", name="z₁").fill("99")
        page.keyboard.press("Enter")
        expect(page.locator(".field-error")).to_contain_text("[-16, 16]")
        visited.errors.clear()  # Chromium's own line about the status 422
        visited.check_accessibility()
        page.get_by_role("spinbutton", name="z₁").fill("1")
        page.keyboard.press("Enter")
        expect(page.locator(".field-error")).to_have_count(0)


def test_sliders_and_film(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """A slider changes the picture; a film is played between two pictures, of which one is loaded."""
    with visit(browser, stack.url) as visited:
        page = visited.open("/plane?model=vae-mnist-2d&tab=sliders")
        slider = page.get_by_role("slider", name="z1")
        slider.focus()
        page.keyboard.press("PageUp")
        expect(page).to_have_url(re.compile("z=1%3A"))
        page.keyboard.press("n")
        expect(page).to_have_url(re.compile("seed="))
        visited.check_accessibility()
        visited.shoot(tmp_path, "sliders")

        page.get_by_role("radio", name="film").check()
        frame = page.get_by_role("img", name="Frame ")
        expect(frame).to_be_visible()
        expect(page.get_by_text(" of 32")).to_be_visible()
        visited.check_accessibility()
        visited.shoot(tmp_path, "film")
        page.get_by_label("Load…").first.set_input_files(
            {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"}
        )
        expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
        page.get_by_role("spinbutton", name="frames").fill("4")
        page.keyboard.press("Enter")
        expect(page.get_by_text(" of 4")).to_be_visible()
        with page.expect_download() as downloaded:
            page.get_by_role("button", name="ZIP").click()
        assert len(io.BytesIO(Path(downloaded.value.path()).read_bytes()).getvalue()) > 400


def test_on_a_phone(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """The plane fills the width, and nothing is wider than the screen."""
    with visit(browser, stack.url, PHONE) as visited:
        page = visited.open("/plane?model=vae-mnist-2d&z=1,-1")
        wait_for_picture(page)
        visited.shoot(tmp_path, "plane-phone")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
        page.get_by_role("button", name="Options").click()
        visited.check_accessibility()
        visited.shoot(tmp_path, "plane-phone-options")


@pytest.mark.slow
def test_dragging_for_ten_seconds(browser: Browser, stack: Stack) -> None:
    """At 60 moves a second 30 new pictures a second are shown, 95 % of them at most 50 ms old; no request is left."""
    moves, seconds = 60, 10
    with visit(browser, stack.url) as visited:
        page = visited.page
        page.add_init_script(RECORD_AGES)
        visited.open("/plane?model=vae-mnist-2d")
        bounds = page.locator(".plane-square").bounding_box()
        assert bounds is not None
        wait_for_picture(page)
        open_requests: set[Request] = set()

        def begin(request: Request) -> None:
            open_requests.add(request)

        def end(request: Request) -> None:
            open_requests.discard(request)

        page.on("request", begin)
        page.on("requestfinished", end)
        page.on("requestfailed", end)
        page.mouse.move(bounds["x"] + 10, bounds["y"] + 10)
        page.mouse.down()
        page.evaluate("window.ages.length = 0")
        elapsed = page.evaluate(DRAG, [moves, seconds])
        ages = sorted(page.evaluate("window.ages"))
        page.mouse.up()
        page.wait_for_timeout(1000)
        left = [request.url for request in open_requests if "/v1/decodings" in request.url]
        rate, p95 = len(ages) / elapsed, ages[int(0.95 * len(ages))]
        assert elapsed < seconds * 1.1, f"the page takes no {moves} moves a second: {elapsed:.1f} s"
        assert left == []
        assert rate >= 30, f"{rate:.1f} pictures a second, age p95 {p95:.1f} ms"
        assert p95 <= 50, f"{rate:.1f} pictures a second, age p95 {p95:.1f} ms"
