"""Fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import stack as service
from tests.stack import Stack

os.environ.setdefault("REVERIE_ALLOWED_HOSTS", "x,testserver,localhost,127.0.0.1,[::1]")
"""What clients of applications in this process call them; a `Stack` has the defaults."""


OWN_SERVICES = {"test_batch_sender", "test_job_events", "test_upscales", "test_celery_worker", "test_content_encoding"}
"""Modules outside tests/service that start services or processes of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a module's tests in one process of xdist where each process would start the module's services anew."""
    for item in items:
        if "service" in item.path.parts or item.path.stem in OWN_SERVICES:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the services of one run share what they need not make again each, also across the processes of xdist."""
    base = tmp_path_factory.getbasetemp()
    service.shared_folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One real service for all tests that leave it whole."""
    running = Stack(tmp_path_factory.mktemp("stack"), sync_timeout_s="20")
    try:
        yield running.up()
    finally:
        running.down()


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    """An HTTP client of the shared service."""
    with httpx.Client(base_url=stack.url, timeout=60) as opened:
        yield opened


@pytest.fixture
def digit() -> bytes:
    """A PNG of 28×28 grey pixels: a bright bar on black."""
    import numpy as np

    from core.imaging.pictures import png

    pixels = np.zeros((1, 28, 28), np.uint8)
    pixels[0, 4:24, 12:16] = 255
    return png(pixels)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]
