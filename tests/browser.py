"""Chromium for tests: it reaches one service only, and its pages report what they request and what
fails.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, WebSocket, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="NOT TESTED: no `chromium` on the PATH; apt-get install --no-install-recommends chromium"
)
ISOLATED = (
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--disable-gpu",
)
"""Options of a browser that reaches 127.0.0.1 only, so that its own background requests fail, too."""

RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
});
"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ISOLATED))
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page in the browser, with the requests and errors that it caused."""

    page: Page
    url: str
    other_origins: list[str] = field(default_factory=list)
    """URLs outside the service that the page requested; the browser does not reach them."""
    errors: list[str] = field(default_factory=list)
    """Errors in the console, and exceptions of scripts."""

    def __post_init__(self) -> None:
        """Record what is requested, and what the page reports from its first script on.

        Requests are not routed: each would wait for this process, and a measurement would be of it.
        """
        page = self.page
        page.on("request", self._record_request)
        page.on("websocket", self._record_web_socket)
        page.on("console", self._record)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.add_init_script(RECORD_VIOLATIONS)

    def _record_request(self, request: Request) -> None:
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.other_origins.append(request.url)

    def _record_web_socket(self, socket: WebSocket) -> None:
        self.other_origins.append(socket.url)

    def _record(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def check(self) -> None:
        """Check that no policy blocked anything and that nothing was requested from elsewhere."""
        assert self.page.evaluate("window.violations") == []
        assert self.other_origins == []


@contextlib.contextmanager
def new_page(browser: Browser, width: int, height: int, *, downloads: bool = False) -> Iterator[Page]:
    """Open a page in a new context; its expectations time out after a minute."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=downloads)
    context.set_default_timeout(60_000)
    expect.set_options(60_000)
    with contextlib.closing(context):
        yield context.new_page()
