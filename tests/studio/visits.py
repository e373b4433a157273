"""Visits of Studio in a browser, and what must hold of each page that a visit shows."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from api.routes.studio import FOLDER
from tests.browser import Visit, needs_chromium, new_page

__all__ = ["DESK", "PHONE", "StudioVisit", "needs_chromium", "visit"]

DESK = (1440, 900)
PHONE = (390, 844)
ROOT = Path(__file__).parents[2]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


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

    def check_accessibility(self) -> None:
        """Check what is shown now by the rules of WCAG 2.1 AA, in both themes."""
        self.page.evaluate(axe_source())
        for theme in ("light", "dark"):
            self.page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            found = self.page.evaluate("tags => axe.run({ runOnly: tags, resultTypes: ['violations'] })", RULES)
            violations = [
                f"{theme}: {violation['id']}: {node['html'][:200]} {node['failureSummary']}"
                for violation in found["violations"]
                for node in violation["nodes"]
            ]
            assert not violations, "\n".join(violations)

    def shoot(self, folder: Path, name: str) -> None:
        """Save screenshots of what is shown, in both themes; they stay in pytest's folder, to look at."""
        for theme in ("light", "dark"):
            self.page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            self.page.screenshot(path=folder / f"{name}-{theme}.png")


@contextlib.contextmanager
def visit(browser: Browser, url: str, size: tuple[int, int] = DESK) -> Iterator[StudioVisit]:
    """Visit Studio; at the end no policy was violated, no error logged, and nothing requested from elsewhere."""
    if not (FOLDER / "index.html").is_file():
        pytest.fail("Studio is not built: run `make studio`")
    with new_page(browser, *size, downloads=True) as page:
        visited = StudioVisit(page, url)
        yield visited
        visited.check()
        assert visited.errors == []
