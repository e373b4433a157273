"""Clients of the shared service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reverie.client import Client
from tests.reverie.faulty_proxy import FaultyProxy
from tests.stack import Stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """Return a client of the shared service."""
    with Client(stack.url) as connected:
        yield connected


@pytest.fixture
def proxy(stack: Stack) -> Iterator[FaultyProxy]:
    """Return a faulty proxy in front of the shared service."""
    with FaultyProxy(stack.url).open() as line:
        yield line


@pytest.fixture
def proxied(proxy: FaultyProxy) -> Iterator[Client]:
    """Return a client that reaches the service through the faulty proxy."""
    with Client(proxy.url) as connected:
        yield connected
