"""The area Draw on a real service: the first pictures, options, seeds, downloads, errors and the
history.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.stack import Stack
from tests.studio.visits import DESK, PHONE, Service, needs_chromium, visit
from tests.version_files import SHIPPED, import_version, with_card, with_other_weights

pytestmark = needs_chromium


def pictures(page: Page) -> int:
    """How many pictures of the gallery are in the page."""
    return page.locator(".gallery-cell").count()


def test_draw(browser: Browser, service: Service) -> None:
    """Pictures are there at once; each change draws others, and a reload shows the same address and
    history.

    An error stands beside its control, in the service's words; the next good value draws again.
    """
    with visit(browser, service) as visited:
        page = visited.open("/?model=vae-mnist-2d")
        expect(page.locator(".gallery-cell")).to_have_count(64)
        expect(page.get_by_label("model", exact=True)).to_have_value("vae-mnist-2d")
        visited.check_accessibility()
        visited.shoot("draw")

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

        count = page.get_by_role("spinbutton", name="count")
        count.fill("100000")
        page.keyboard.press("Enter")
        error = page.locator(".field-error").filter(has_text="65536")
        expect(error).to_be_visible()
        visited.errors.clear()  # Chromium's own line about the status 422
        visited.check_on_a_phone("draw-error")
        expect(page.get_by_role("button", name="Correct the options")).to_be_visible()
        visited.set_size(*DESK)
        count.fill("4")
        page.keyboard.press("Enter")
        expect(page.get_by_text("4 in ")).to_be_visible()
        expect(error).to_have_count(0)


@pytest.mark.slow
def test_on_a_phone(browser: Browser, service: Service) -> None:
    """The options are a sheet that leaves pictures visible; nothing is wider than the screen."""
    with visit(browser, service, PHONE) as visited:
        page = visited.open("/draw?model=vae-mnist-2d")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        visited.shoot("draw-phone")
        page.get_by_role("button", name="Options").click()
        expect(page.get_by_role("button", name="New")).to_be_visible()
        expect(page.locator(".gallery-cell").first).to_be_visible()
        visited.check_accessibility()
        visited.shoot("draw-phone-options")
        page.get_by_role("button", name="Close", exact=True).click()
        expect(page.get_by_role("button", name="New")).to_be_hidden()
        page.locator(".gallery-cell").first.click()
        expect(page.get_by_role("img", name="Picture 0 of seed 1")).to_be_in_viewport()
        visited.check_accessibility()
        visited.shoot("draw-phone-selected")
        visited.check_width()


def serve_older_card(page: Page, name: str) -> None:
    """Let the page see version 2 of a model as one of an earlier release, without the option
    `truncation`.
    """

    def respond(route: Route) -> None:
        response = route.fetch()
        body = response.json()
        del body["card"]["operations"]["samples"]["options"]["properties"]["truncation"]
        route.fulfill(response=response, json=body)

    page.route(f"**/v1/models/{name}/versions/2", respond)


@pytest.mark.slow
def test_the_options_of_another_version(browser: Browser, service: Service, client: httpx.Client) -> None:
    """The controls are those of the chosen version, which may have other options than the active
    one.
    """
    name = f"studio-versions-{service.key or 'open'}"
    data = with_card(SHIPPED.read_bytes(), name=name)
    for version in (data, with_other_weights(data)):
        assert import_version(client, version, name).status_code == 201
    try:
        with visit(browser, service) as visited:
            serve_older_card(visited.page, name)
            page = visited.open(f"/draw?model={name}")
            expect(page.get_by_role("spinbutton", name="truncation")).to_be_visible()
            page.get_by_label("version", exact=True).select_option("2")
            expect(page.get_by_role("spinbutton", name="truncation")).to_have_count(0)
            expect(page.get_by_role("spinbutton", name="temperature")).to_be_visible()
            expect(page.locator(".code")).to_contain_text(f"{name}@2")
    finally:
        client.delete(f"/v1/models/{name}").raise_for_status()


@pytest.mark.slow
def test_ten_thousand_pictures(browser: Browser, stack: Stack) -> None:
    """The gallery holds no more than 200 of them in the page, wherever it is scrolled."""
    with visit(browser, Service(stack.url), DESK) as visited:
        page = visited.open("/draw?model=vae-mnist-2d&count=10000")
        expect(page.locator(".gallery-cell").first).to_be_visible()
        gallery = page.locator(".gallery")
        for share in (0, 0.3, 0.9999):
            gallery.evaluate("(element, share) => { element.scrollTop = share * element.scrollHeight; }", share)
            page.wait_for_timeout(100)
            assert 30 <= pictures(page) <= 200
        expect(page.get_by_role("button", name="Picture 9999, seed 1")).to_be_visible()
