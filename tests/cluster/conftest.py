"""A service of several hosts, which the tests of a module share. Run by `make test-cluster`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import postgresql, seaweedfs
from tests.cluster.members import Cluster
from tests.cluster.network import missing


@pytest.fixture(scope="session", autouse=True)
def _required() -> None:
    """Skip all tests, loudly, where a program is missing."""
    reason = missing()
    if postgresql.programs() is None:
        reason = reason or postgresql.MISSING
    if seaweedfs.program() is None:
        reason = reason or seaweedfs.MISSING
    if reason:
        pytest.skip(f"NOT TESTED: {reason}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A service on ten hosts; each test leaves all members running."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
