"""A job store for the tests of this folder."""

from collections.abc import Iterator

import pytest

from core.jobs.store import JobStore


@pytest.fixture
def job_store(database: str) -> Iterator[JobStore]:
    """An empty job store."""
    opened = JobStore(database)
    yield opened
    opened.engine.dispose()
