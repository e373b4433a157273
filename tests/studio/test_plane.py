"""The area Plane on a real service: the digit follows the hand, sliders, a film, bad input."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.studio.visits import PHONE, Service, needs_chromium, visit

pytestmark = needs_chromium


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


def test_the_digit_follows_the_hand(browser: Browser, service: Service) -> None:
    """A code is dragged, typed and moved by keys; the address keeps it, and a wrong one is
    explained.
    """
    with visit(browser, service) as visited:
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
        visited.shoot("plane")

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
        visited.check_on_a_phone("plane")


@pytest.mark.slow
def test_sliders_and_film(browser: Browser, service: Service) -> None:
    """A slider changes the picture; a film is played between two pictures, of which one is loaded."""
    with visit(browser, service) as visited:
        page = visited.open("/plane?model=vae-mnist-2d&tab=sliders")
        slider = page.get_by_role("slider", name="z1")
        slider.focus()
        page.keyboard.press("PageUp")
        expect(page).to_have_url(re.compile("z=1%3A"))
        page.keyboard.press("n")
        expect(page).to_have_url(re.compile("seed="))
        visited.check_accessibility()
        visited.shoot("sliders")

        page.get_by_role("radio", name="film").check()
        frame = page.get_by_role("img", name="Frame ")
        expect(frame).to_be_visible()
        expect(page.get_by_text(" of 32")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("film")
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


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """The plane fills the width, and nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/plane?model=vae-mnist-2d&z=1,-1")
        wait_for_picture(page)
        visited.shoot("plane-phone")
        visited.check_width()
        page.get_by_role("button", name="Options").click()
        visited.check_accessibility()
        visited.shoot("plane-phone-options")
