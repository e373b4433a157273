"""Visits of Studio in a browser, and what must hold of each page that a visit shows."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from api.routes.studio import FOLDER
from tests.browser import Visit, needs_chromium, new_page

__all__ = ["DESK", "PHONE", "Service", "StudioVisit", "needs_chromium", "visit"]

DESK = (1440, 900)
PHONE = (390, 844)
ROOT = Path(__file__).parents[2]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
COLOUR_RULES = ["color-contrast", "link-in-text-block"]
"""The rules of these whose result depends on colours; what the others find is the same in both
themes.
"""

SHOTS = os.environ.get("STUDIO_SHOTS")
"""A folder for screenshots of what the journeys show, in both themes; without it none are made."""


@dataclass(frozen=True)
class Service:
    """The address of a service, and the key that a visitor of it has; None if it wants none."""

    url: str
    key: str | None = None


@functools.cache
def axe_source() -> str:
    """The source of axe-core. It is evaluated, because the page's policy allows no foreign script."""
    file = ROOT / "studio" / "node_modules" / "axe-core" / "axe.min.js"
    assert file.is_file(), "`make test` installs what the tests of Studio need; `python studio/npm.py ci` does so too"
    return file.read_text()


class StudioVisit(Visit):
    """Studio in a browser window."""

    def open(self, path: str) -> Page:
        """Load the page at an address."""
        self.page.goto(f"{self.url}{path}")
        return self.page

    def set_theme(self, theme: str) -> None:
        """Show the page in the theme `light` or `dark`."""
        self.page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)

    def check_accessibility(self) -> None:
        """Check what is shown now by the rules of WCAG 2.1 AA, in both themes."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(axe_source())
        for theme, rules in (("light", RULES), ("dark", COLOUR_RULES)):
            self.set_theme(theme)
            found = self.page.evaluate("rules => axe.run({ runOnly: rules, resultTypes: ['violations'] })", rules)
            violations = [
                f"{theme}: {violation['id']}: {node['html'][:200]} {node['failureSummary']}"
                for violation in found["violations"]
                for node in violation["nodes"]
            ]
            assert not violations, "\n".join(violations)

    def set_size(self, width: int, height: int) -> None:
        """Show the page in a window of another size."""
        self.page.set_viewport_size({"width": width, "height": height})

    def check_width(self) -> None:
        """Check that nothing is wider than the window, once the page has followed a change of its
        size.
        """
        self.page.wait_for_function("() => document.documentElement.scrollWidth <= innerWidth")

    def check_on_a_phone(self, name: str) -> None:
        """Check what is shown in a window of a phone's size, and leave it so."""
        self.set_size(*PHONE)
        self.check_width()
        self.check_accessibility()
        self.shoot(f"{name}-phone")

    def shoot(self, name: str) -> None:
        """Save screenshots of what is shown in both themes, if `STUDIO_SHOTS` names a folder for
        them.
        """
        for theme in ("light", "dark") if SHOTS else ():
            self.set_theme(theme)
            self.page.screenshot(path=Path(SHOTS or "") / f"{name}-{theme}.png")


@contextlib.contextmanager
def visit(browser: Browser, service: Service, size: tuple[int, int] = DESK) -> Iterator[StudioVisit]:
    """Visit Studio; at the end no policy was violated, no error logged, and nothing requested from
    elsewhere.
    """
    if not (FOLDER / "index.html").is_file():
        pytest.fail("Studio is not built: run `make studio`")
    with new_page(browser, *size, downloads=True) as page:
        visited = StudioVisit(page, service.url)
        if service.key is not None:
            page.add_init_script(f"sessionStorage.setItem('reverie-key', '{service.key}')")
        yield visited
        visited.check()
        assert not visited.errors, visited.errors
