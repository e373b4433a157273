"""Fixtures that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import stack as service
from tests.stack import FAMILIES, Stack

TESTS = Path(__file__).parent

os.environ.setdefault("REVERIE_ALLOWED_HOSTS", "x,testserver,localhost,127.0.0.1,[::1]")
"""What clients of applications in this process call them; a `Stack` has the defaults."""


LONGEST = (
    "service/test_training.py",
    "service/test_full_disk.py",
    "service/test_chaos.py",
    "service/test_leftovers.py",
    "service/test_hang.py",
    "service/test_startup.py",
    "service/test_schemathesis.py",
    "service/test_backup.py",
)
"""Modules that take a minute or more. They run first, so that none of them runs alone at the end."""

SHARED_SERVICES = 2
"""Processes of xdist that start the service of the fixture `stack`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order modules and group them for xdist: tests of one group run in one process, which starts their services once.

    The modules that use the fixture `stack` make two groups; each other module is a group.
    """
    modules = {item: item.path.relative_to(TESTS).as_posix() for item in items}
    sharing = sorted({modules[item] for item in items if "stack" in getattr(item, "fixturenames", ())})
    groups = {module: f"shared service {number % SHARED_SERVICES}" for number, module in enumerate(sharing)}
    for item, module in modules.items():
        item.add_marker(pytest.mark.xdist_group(groups.get(module, module)))
        if item.get_closest_marker("timing") and not module.startswith("api/"):
            raise pytest.UsageError(f"{item.nodeid}: `make test` looks for tests that measure time in tests/api only")
    first = {module: number for number, module in enumerate((*LONGEST, *sharing))}
    items.sort(key=lambda item: first.get(modules[item], len(first)))


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let the services of one run share what they need not make again each, also across the processes of xdist."""
    base = tmp_path_factory.getbasetemp()
    service.shared_folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One real service for all tests that leave it whole."""
    with Stack(tmp_path_factory.mktemp("stack"), sync_timeout_s="20", extra_models=FAMILIES) as running:
        yield running


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
