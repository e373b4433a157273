"""`/docs` in a real browser without network: Swagger UI shows the operations and sends requests."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, expect

from tests.api.callers import key_file, key_line
from tests.browser import Visit, chromium, needs_chromium, new_page
from tests.keyed_api import keyed_api
from tests.stack import Stack

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def keyed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an API process of the shared service that wants keys, and knows `ann-key`."""
    folder = tmp_path_factory.mktemp("keyed")
    with keyed_api(stack, key_file(folder, key_line("ann"))) as url:
        yield url


class DocsVisit(Visit):
    """`/docs` of a service in a browser page."""

    def start(self) -> None:
        """Load the page and wait until operations are shown."""
        self.page.goto(f"{self.url}/docs")
        expect(self.page.locator(".opblock").first).to_be_visible()

    def try_out(self, tag: str, operation: str) -> Locator:
        """Open an operation and send its example; return the element with the response."""
        block = self.page.locator(f"#operations-{tag}-{operation}")
        if block.locator(".execute").count() == 0:
            block.locator(".opblock-summary-control").click()
            block.get_by_role("button", name="Try it out").click()
        block.locator(".execute").click()
        return block.locator(".live-responses-table tbody")

    def authorize(self, key: str) -> None:
        """Enter an API key in the dialog "Authorize"."""
        self.page.locator(".scheme-container .authorize").click()
        dialog = self.page.locator(".modal-ux")
        dialog.locator("input").fill(key)
        dialog.locator("button.authorize").click()
        dialog.locator("button.btn-done").click()
        expect(dialog).to_have_count(0)


@contextlib.contextmanager
def visit(browser: Browser, url: str, screenshot: Path) -> Iterator[DocsVisit]:
    """Visit `/docs`; at the end, nothing was blocked by a policy and nothing requested from
    elsewhere.
    """
    with new_page(browser, 1280, 1600) as page:
        visited = DocsVisit(page, url)
        visited.start()
        yield visited
        page.screenshot(path=screenshot)  # stays in pytest's folder, to look at
        visited.check()
        assert page.locator(".errors-wrapper").count() == 0  # what Swagger UI finds in the description


def test_every_operation_is_shown(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Every operation of `/openapi.json` is shown; without API keys there is no "Authorize"
    button.
    """
    description = httpx.get(f"{stack.url}/openapi.json", timeout=60).json()
    operations = [described for methods in description["paths"].values() for described in methods.values()]
    expected = {f"operations-{described['tags'][0]}-{described['operationId']}" for described in operations}
    webhooks = [described for methods in description["webhooks"].values() for described in methods.values()]
    expected |= {f"operations-webhooks-{described['operationId']}" for described in webhooks}
    with visit(browser, stack.url, tmp_path / "docs.png") as visited:
        blocks = visited.page.locator(".opblock").all()
        assert sorted(block.get_attribute("id") or "" for block in blocks) == sorted(expected)
        assert visited.page.locator(".authorize").count() == 0
        assert visited.errors == []


def test_try_it_out(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """The button "Try it out" sends the example of `POST /v1/samples` and shows the result."""
    with visit(browser, stack.url, tmp_path / "samples.png") as visited:
        response = visited.try_out("operations", "create_samples")
        expect(response.locator(".response-col_status").first).to_have_text(re.compile("^200"))
        expect(response).to_contain_text('"images": [')
        response.scroll_into_view_if_needed()
        assert visited.errors == []


def test_authorize(browser: Browser, keyed: str, tmp_path: Path) -> None:
    """Without a key the page shows a 401; after "Authorize" the same request succeeds."""
    with visit(browser, keyed, tmp_path / "keys.png") as visited:
        response = visited.try_out("operations", "create_samples")
        status = response.locator(".response-col_status").first
        expect(status).to_have_text(re.compile("^401"))
        expect(response).to_contain_text('"detail":')
        assert [error for error in visited.errors if "401" not in error] == []
        visited.errors.clear()

        visited.authorize("ann-key")
        visited.try_out("operations", "create_samples")
        expect(status).to_have_text(re.compile("^200"))
        expect(response).to_contain_text('"images": [')
        response.scroll_into_view_if_needed()
        assert visited.errors == []
