"""A service of several hosts, which all tests of this folder share. Run by `make test-cluster`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.members import Cluster
from tests.cluster.network import missing
from tests.postgresql import MISSING, programs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A service on nine hosts; each test leaves all members running."""
    if reason := missing():
        pytest.skip(f"NOT TESTED: {reason}")
    if programs() is None:
        pytest.skip(f"NOT TESTED: {MISSING}")
    settings = {"shutdown_delay_s": "3", "max_sync_timeout_s": "100"}
    with Cluster(tmp_path_factory.mktemp("cluster"), **settings) as running:
        yield running
