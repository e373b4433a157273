"""The area Enlarge on a real service: photographs, methods, the divider, cancelling, downloads, bad
input.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from core.imaging.pictures import png
from tests.studio.visits import PHONE, Service, needs_chromium, visit
from tests.waiting import wait_until

pytestmark = needs_chromium


def photograph(height: int, width: int) -> bytes:
    """Return a PNG with smooth colours."""
    y, x = np.mgrid[0:height, 0:width]
    return png(np.stack([x * 255 // width, y * 255 // height, (x + y) % 256]).astype(np.uint8))


def choose(page: Page, name: str, data: bytes) -> None:
    """Choose a file in the area's drop zone."""
    page.get_by_label("Choose a file…").last.set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def shows(page: Page, share: float, colour: tuple[int, int]) -> bool:
    """Return whether the picture has this red and green, nearly, at a share of its width."""
    with Image.open(io.BytesIO(page.locator(".pane").screenshot())) as shot:
        pixel = np.asarray(shot.convert("RGB"))[shot.height // 2, int(share * shot.width)]
    return bool((np.abs(pixel[:2].astype(int) - colour) < 30).all())


def test_enlarge(browser: Browser, service: Service) -> None:
    """A photograph is enlarged by two methods, compared, zoomed and saved; what is no picture is
    named.
    """
    with visit(browser, service) as visited:
        page = visited.open("/enlarge?model=enlarge")
        expect(page.get_by_text("Drop or paste a photograph")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("enlarge-empty")
        choose(page, "letter.png", b"Dear reader")
        expect(page.get_by_role("alert")).to_contain_text("letter.png is not a picture")
        choose(page, "view.png", photograph(60, 90))
        expect(page.get_by_role("button", name="Download nearest")).to_be_visible()
        wait_until(lambda: shows(page, 0.25, (64, 128)) and shows(page, 0.75, (191, 128)), "both pictures are drawn")
        page.get_by_role("checkbox", name="smooth").check()
        expect(page.get_by_role("button", name="Download smooth")).to_be_visible()
        assert "method=nearest%2Csmooth" in page.url

        divider = page.get_by_role("slider", name="Divider")
        divider.focus()
        page.keyboard.press("ArrowRight")
        expect(divider).to_have_attribute("aria-valuenow", "52")
        pane = page.locator(".pane").bounding_box()
        assert pane is not None
        page.mouse.move(pane["x"] + 0.3 * pane["width"], pane["y"] + 0.5 * pane["height"])
        page.mouse.wheel(0, -400)
        expect(page.get_by_role("button", name="fit")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("enlarge")
        page.get_by_role("radio", name="side by side").check()
        expect(page.locator(".pane")).to_have_count(3)
        visited.check_accessibility()
        visited.shoot("enlarge-side")

        with page.expect_download() as downloaded:
            page.get_by_role("button", name="Download nearest").click()
        assert downloaded.value.suggested_filename == "view-nearest-x4.png"
        with Image.open(downloaded.value.path()) as saved:
            assert saved.size == (360, 240)
        visited.check_on_a_phone("enlarge-side")


@pytest.mark.slow
def test_bad_options_and_cancelling(browser: Browser, service: Service) -> None:
    """A wrong option is explained beside its control; what runs is cancelled."""
    with visit(browser, service) as visited:
        page = visited.open("/enlarge?model=enlarge&seconds=0.1")
        choose(page, "large.png", photograph(200, 300))
        expect(page.get_by_role("progressbar", name="Progress of nearest")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("cancelled")).to_be_visible()
        page.get_by_role("spinbutton", name="scale").fill("9")
        page.keyboard.press("Enter")
        expect(page.locator(".field-error")).to_contain_text("4")
        visited.errors.clear()  # Chromium's own line about the status 422
        visited.check_accessibility()


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """The bundled picture is enlarged; nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/enlarge?model=enlarge")
        page.get_by_role("button", name="Try the bundled picture").click()
        expect(page.get_by_role("slider", name="Divider")).to_be_visible()
        visited.shoot("enlarge-phone")
        visited.check_width()
        page.get_by_role("button", name="Options").click()
        visited.check_accessibility()
        visited.shoot("enlarge-phone-options")
