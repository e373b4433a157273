"""A service that may connect to this machine, a receiver of its webhooks, and a file server."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.stack import FAMILIES, Stack
from tests.webhooks.pictures import FileServer
from tests.webhooks.receiver import Receiver


@pytest.fixture(scope="package")
def hooked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A real service whose webhooks may be sent to this machine and are retried quickly."""
    folder = tmp_path_factory.mktemp("webhooks")
    settings = {"allowed_networks": "127.0.0.0/8", "webhook_retry_s": "0.2", "extra_models": FAMILIES}
    with Stack(folder, **settings) as running:
        yield running


@pytest.fixture
def service(hooked: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of that service."""
    with httpx.Client(base_url=hooked.url, timeout=60) as opened:
        yield opened


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A running receiver of webhooks."""
    with Receiver().running() as running:
        yield running


@pytest.fixture
def files() -> Iterator[FileServer]:
    """A running file server."""
    with FileServer().running() as running:
        yield running
