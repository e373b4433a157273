"""A browser for the tests of Studio, and the service that it visits: without keys, and one that
wants them.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser

from tests.api.callers import bearer, key_file, key_line
from tests.browser import chromium
from tests.keyed_api import keyed_api
from tests.stack import Stack
from tests.studio.visits import Service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A running Chromium. While it runs, no other event loop can run in this thread; so it ends
    with the module.
    """
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def keyed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an API process of the shared service that wants keys, and knows `ann-key`."""
    folder = tmp_path_factory.mktemp("keyed")
    with keyed_api(stack, key_file(folder, key_line("ann", "read,run,train,admin"))) as url:
        yield url


@pytest.fixture(params=["open", pytest.param("keyed", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest, stack: Stack) -> Service:
    """The service as it is visited: without keys; in the slow tests also with a key, which the
    browser has.
    """
    if request.param == "open":
        return Service(stack.url)
    return Service(request.getfixturevalue("keyed"), "ann-key")


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """An HTTP client of the service that is visited."""
    headers = {} if service.key is None else bearer(service.key.removesuffix("-key"))
    with httpx.Client(base_url=service.url, headers=headers, timeout=60) as opened:
        yield opened
