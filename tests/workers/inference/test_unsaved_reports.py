"""Results that cannot be written to a full database are kept, written later, and not computed
again.
"""

import sqlite3
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa

from core.jobs.records import Claim, ResultChunk, SliceReport
from core.jobs.store import JobStore
from core.storage import lacks_space, storage_problem
from tests.core.jobs.test_store import LEASE_S, job
from workers.inference.jobs import UnsavedReports


@pytest.fixture
def job_store(tmp_path: Path) -> JobStore:
    """An empty database."""
    return JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")


def limited(job_store: JobStore, more_pages: int) -> None:
    """Limit the database to so many more pages, after which SQLite reports a full disk."""
    with job_store.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + more_pages}")


def test_results_wait_for_a_full_database(job_store: JobStore) -> None:
    """A result that does not fit is written under the same claim once the database has room."""
    row = job()
    job_store.insert(row)
    (held,) = job_store.claim("w", LEASE_S, 1)
    unsaved = UnsavedReports(job_store, 60.0)
    limited(job_store, 2)
    result = b"x" * 200_000
    assert unsaved.add([SliceReport(held.claim, 0, 1, result)]) == []
    assert (unsaved.save(), unsaved.waiting) == ([], True)
    assert job_store.states([row.id])[row.id].status == "running"
    limited(job_store, 1000)
    assert (unsaved.save(), unsaved.waiting) == ([row.id], False)
    assert job_store.result(row.id) == [ResultChunk(result, None)]


def test_results_that_wait_too_long_end_with_the_reason(job_store: JobStore) -> None:
    """If a result cannot be written in time, its job fails with 507, a record that needs less
    room.
    """
    row = job()
    job_store.insert(row)
    (held,) = job_store.claim("w", LEASE_S, 1)
    unsaved = UnsavedReports(job_store, 0.2)
    limited(job_store, 2)
    unsaved.add([SliceReport(held.claim, 0, 1, b"x" * 200_000)])
    time.sleep(0.3)
    unsaved.save()
    assert unsaved.save() == [row.id]
    found = job_store.get(row.id)
    assert found is not None
    assert found.status == "failed"
    assert (found.problem or {})["status"] == 507
    assert "full" in str(found.problem)


def test_a_fault_that_would_come_again_is_not_kept(job_store: JobStore) -> None:
    """An error other than a full disk is raised, because a retry would fail again."""
    unsaved = UnsavedReports(job_store, 60.0)
    error = sa.exc.IntegrityError("INSERT", {}, sqlite3.IntegrityError("twice"))
    with patch.object(JobStore, "record_slices", side_effect=error), pytest.raises(sa.exc.IntegrityError):
        unsaved.add([SliceReport(Claim("job", 1), 0, 1, b"x")])
    assert not unsaved.waiting


@pytest.mark.parametrize(("number", "full"), [(28, True), (122, True), (27, True), (5, False), (2, False)])
def test_full_disks_are_distinguished_from_other_errors(number: int, full: bool) -> None:
    """Full disks, quotas and file size limits are 507, other errors 503; the problem has the
    reason.
    """
    error = OSError(number, "reason")
    assert lacks_space(error) == full
    problem = storage_problem(error)
    assert problem["status"] == (507 if full else 503)
    assert "reason" in problem["detail"]


def test_full_databases_are_distinguished_from_other_errors(tmp_path: Path) -> None:
    """The errors of a full SQLite or PostgreSQL are recognised; a locked database is another
    error.
    """
    connection = sqlite3.connect(tmp_path / "l")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count=3")
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    assert lacks_space(sa.exc.OperationalError("", {}, full.value))
    assert not lacks_space(sa.exc.OperationalError("", {}, sqlite3.OperationalError("database is locked")))

    class DiskFull(Exception):  # noqa: N818 - as psycopg has it
        sqlstate = "53100"

    assert lacks_space(sa.exc.OperationalError("", {}, DiskFull()))
    assert not lacks_space(ValueError())
