"""The area Paint on a real service: painting, what models say, files, and inpaintings of a mask."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.studio.visits import PHONE, Service, needs_chromium, visit

pytestmark = needs_chromium


def paint(page: Page, grid: Locator, *places: tuple[float, float]) -> None:
    """Paint a line through places, given as parts of the grid's side."""
    bounds = grid.bounding_box()
    assert bounds is not None
    points = [(bounds["x"] + x * bounds["width"], bounds["y"] + y * bounds["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_paint(browser: Browser, service: Service, digit: bytes) -> None:
    """Each stroke changes what the model says; undo returns; a file is loaded, and what is no
    picture is named.
    """
    with visit(browser, service) as visited:
        page = visited.open("/paint")
        row = page.get_by_role("article", name="vae-mnist-2d")
        grid = page.get_by_role("application", name="Picture of 28 × 28")
        expect(row).to_contain_text(re.compile(r"energy\s*[\d.]+ nats"))
        expect(row).to_contain_text(re.compile(r"−[\d.]+ ± [\d.]+ nats"))
        expect(row.get_by_role("img", name="Reconstruction")).to_be_visible()
        expect(row.get_by_role("img", name="Encoding")).to_be_visible()
        visited.check_accessibility()
        visited.shoot("paint")

        energy = row.locator("dd").first
        first = energy.inner_text()
        paint(page, grid, (0.2, 0.1), (0.8, 0.15))
        expect(energy).not_to_have_text(first)
        second = energy.inner_text()
        page.keyboard.press("z")
        expect(energy).to_have_text(first)
        grid.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Space")
        expect(energy).not_to_have_text(first)

        load = page.get_by_label("Load…")
        load.set_input_files({"name": "digit.png", "mimeType": "image/png", "buffer": digit})
        expect(energy).not_to_have_text(second)
        load.set_input_files({"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear reader"})
        expect(page.get_by_role("alert")).to_contain_text("letter.txt is not a picture")
        visited.check_on_a_phone("paint-error")


@pytest.mark.slow
def test_inpaintings_appear_while_the_chain_runs(browser: Browser, service: Service) -> None:
    """Pictures are there before the job has ended; a new mask cancels the old job; without a mask
    there are none.
    """
    with visit(browser, service) as visited:
        page = visited.open("/paint?size=8x8&model=tiny&steps=8&seconds=0.5")
        grid = page.get_by_role("application", name="Picture of 8 × 8")
        page.get_by_role("radio", name="mask", exact=True).check()
        paint(page, grid, (0.3, 0.3), (0.7, 0.6))
        running = page.get_by_role("progressbar", name="Inpainting")
        expect(running).to_be_visible()
        expect(page.get_by_role("img", name="Inpainting 8 of 8")).to_be_visible()
        assert running.is_visible()
        visited.check_accessibility()
        visited.shoot("inpaintings")
        expect(running).to_have_count(0)
        page.get_by_role("button", name="Clear").click()
        expect(page.locator(".inpaintings")).to_have_count(0)


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """The grid is as large as on a desk; nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/paint")
        expect(page.get_by_role("img", name="Reconstruction").first).to_be_visible()
        grid = page.get_by_role("application").bounding_box()
        assert grid is not None
        assert round(grid["width"]) == 280
        visited.shoot("paint-phone")
        visited.check_width()
        visited.check_accessibility()
