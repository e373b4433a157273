"""A browser for the tests of Studio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser import chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium. While it runs, no other event loop can run in this thread; so it ends with the module."""
    with chromium() as browser:
        yield browser
