"""`/docs` in a real browser without network: Swagger UI shows the operations and sends requests."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, WebSocketRoute, expect, sync_playwright

from tests.api.callers import key_file, key_line
from tests.stack import Stack

CHROMIUM = shutil.which("chromium")
MISSING = "NOT TESTED: no `chromium` on the PATH; apt-get install --no-install-recommends chromium"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
ISOLATED = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--disable-gpu",
)
"""Options of a browser that resolves no host name, so that its own background requests fail,
too.
"""

RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ISOLATED))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service with API keys, which knows the key `ann-key`."""
    folder = tmp_path_factory.mktemp("keyed")
    with Stack(folder, api_keys=str(key_file(folder, key_line("ann"))), sync_timeout_s="60") as running:
        yield running


@dataclass
class Visit:
    """`/docs` of a service in a browser page, with the requests and errors that the page caused."""

    page: Page
    url: str
    other_origins: list[str] = field(default_factory=list)
    """URLs outside the service that the page requested; they are blocked."""
    errors: list[str] = field(default_factory=list)
    """Errors in the console, and exceptions of scripts."""

    def start(self) -> None:
        """Load the page and wait until operations are shown."""
        page = self.page
        page.route("**/*", self._route)
        page.route_web_socket(re.compile(""), self._block_web_socket)
        page.on("console", self._record)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.add_init_script(RECORD_VIOLATIONS)
        page.goto(f"{self.url}/docs")
        expect(page.locator(".opblock").first).to_be_visible()

    def _route(self, route: Route) -> None:
        if route.request.url.startswith(f"{self.url}/"):
            route.continue_()
        else:
            self.other_origins.append(route.request.url)
            route.abort()

    def _block_web_socket(self, socket: WebSocketRoute) -> None:
        self.other_origins.append(socket.url)
        socket.close()

    def _record(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

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
def visit(browser: Browser, url: str, screenshot: Path) -> Iterator[Visit]:
    """Visit `/docs`; at the end check that no content policy was violated and no other origin was
    requested.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 1600}, accept_downloads=False)
    context.set_default_timeout(60_000)
    expect.set_options(60_000)
    with contextlib.closing(context):
        visited = Visit(context.new_page(), url)
        visited.start()
        yield visited
        visited.page.screenshot(path=screenshot)  # kept in pytest's folder for inspection
        assert visited.page.evaluate("window.violations") == []
        assert visited.other_origins == []
        assert visited.page.locator(".errors-wrapper").count() == 0  # errors that Swagger UI finds in the description


def test_every_operation_is_shown(browser: Browser, stack: Stack, tmp_path: Path) -> None:
    """Every operation of `/openapi.json` is shown; without API keys there is no "Authorize"
    button.
    """
    description = httpx.get(f"{stack.url}/openapi.json").json()
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


def test_authorize(browser: Browser, keyed: Stack, tmp_path: Path) -> None:
    """Without a key the page shows a 401; after "Authorize" the same request succeeds."""
    with visit(browser, keyed.url, tmp_path / "keys.png") as visited:
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
