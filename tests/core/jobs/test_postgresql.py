"""What the job store does on PostgreSQL alone: restarts of the server, clocks of hosts, time-outs
and addresses.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from core.jobs import migrate
from core.jobs.database import current_time, open_engine
from core.jobs.leases import LeaseReaper
from core.jobs.records import Job
from core.jobs.schema import jobs, metadata, transaction
from core.jobs.store import JobStore
from core.settings import Settings
from core.startup import StartupError, check_database
from core.storage import DATABASE_UNAVAILABLE, lacks_space, reason_of, storage_problem
from core.webhooks.deliveries import Deliveries
from tests.core.jobs.test_store import LEASE_S, job, status
from tests.deferred_jobs import claimable_from, waits_s
from tests.postgresql import PostgreSQL, running_server
from tests.waiting import wait_until

SKEW_S = 5.0


@pytest.fixture
def store(postgresql: PostgreSQL) -> Iterator[JobStore]:
    """An empty job store in PostgreSQL."""
    opened = JobStore(postgresql.create())
    yield opened
    opened.engine.dispose()


@contextmanager
def host_clock(ahead_s: float) -> Iterator[None]:
    """Let the clock of this host be ahead of the database's."""
    real = time.time
    with patch("time.time", lambda: real() + ahead_s):
        yield


@pytest.mark.parametrize("ahead_s", [-SKEW_S, SKEW_S])
def test_the_clock_of_a_host_changes_nothing(store: JobStore, ahead_s: float) -> None:
    """Leases, waits and deadlines last as long as they should, on whichever host they were set."""
    with host_clock(ahead_s):
        now = time.time()
        times = {"queued_at": now, "created_at": now}
        held, waiting = job(model="a", **times), job(model="c", **times)
        late = job(model="b", deadline_at=now + 2.0, **times)
        store.insert(held)
        (claim,) = store.claim("w", 2.0, 1)
        store.insert(late)
        store.insert(waiting)
        assert not store.has_overdue()
    assert store.reap(3) == []
    with store.engine.connect() as connection:
        now = current_time(connection)
        rows = connection.execute(sa.select(jobs.c.queued_at, jobs.c.created_at)).all()
    assert all(abs(row.queued_at - now) < 2 and abs(row.created_at - now) < 2 for row in rows)
    assert claim.lease_until is not None
    assert 0 < claim.lease_until - now <= 2
    assert claim.started_at is not None
    assert abs(claim.started_at - now) < 2
    assert store.get(late.id) in store.list_jobs(None, {"status": "queued"}, None, 10)
    time.sleep(2.1)
    assert store.end_overdue() == [late.id]
    assert store.reap(3) == [held.id]
    with host_clock(-ahead_s):
        for _ in range(2):
            (again,) = store.claim("w", LEASE_S, 1)
            if again.id == waiting.id:
                assert store.defer(again.claim, {"detail": "full"}, LEASE_S)
            else:
                store.renew_leases("w", LEASE_S)
        assert store.reap(3) == []
    deferred = store.get(waiting.id)
    assert deferred is not None
    assert waits_s(deferred) == pytest.approx(1, abs=1e-3)
    with store.engine.connect() as connection:
        assert -2 < (deferred.not_before or 0) - current_time(connection) <= 1
    claimable_from(store, waiting.id, time.time() + 60)
    assert store.claim("w", LEASE_S, 1) == []
    claimable_from(store, waiting.id, time.time() - 60)
    (again,) = store.claim("x", LEASE_S, 1)
    assert again.id == waiting.id


def test_a_lease_reaper_with_another_clock_takes_no_live_job(store: JobStore) -> None:
    """Its own clock may say that the lease has expired long ago."""
    row = job()
    store.insert(row)
    store.claim("w", 1.5, 1)
    reaper = LeaseReaper(store, 3.0, 3)
    with host_clock(SKEW_S):
        assert reaper.reap() == []
        time.sleep(1.0)
        assert reaper.reap() == []
        store.renew_leases("w", LEASE_S)
        time.sleep(1.0)
        assert reaper.reap() == []
    assert status(store, row.id) == "running"


def change_while(store: JobStore, act: Callable[[], None]) -> None:
    """Call `act` in the middle of a transaction."""
    with transaction(store.engine) as connection:
        connection.execute(sa.select(jobs.c.id))
        act()
        connection.execute(jobs.update().values(progress=0.5))


def test_the_store_goes_on_after_a_restart_of_the_server() -> None:
    """Meanwhile its calls fail as calls that can be repeated do; then they succeed on new
    connections.
    """
    with running_server() as server:
        store = JobStore(server.create())
        row = job()
        store.insert(row)
        (held,) = store.claim("w", LEASE_S, 1)
        for how in (signal.SIGINT, signal.SIGQUIT):  # orderly, and like a crash
            with pytest.raises(DATABASE_UNAVAILABLE) as broken:
                change_while(store, partial(server.stop, how))
            for call in (lambda: store.get(row.id), lambda: store.insert(job()), lambda: store.is_held(held.claim)):
                with pytest.raises(DATABASE_UNAVAILABLE) as failed:
                    call()
            for error in (broken.value, failed.value):
                assert not lacks_space(error)
                problem = storage_problem(error)
                assert (problem["status"], "127.0.0.1" in problem["detail"]) == (503, False)
            server.start()
            assert store.is_held(held.claim)
        store.renew_leases("w", LEASE_S)
        assert store.finish(held.claim, result=b"x")
        assert status(store, row.id) == "succeeded"
        store.engine.dispose()


def test_a_process_that_is_frozen_in_a_transaction_loses_its_locks(postgresql: PostgreSQL) -> None:
    """Others pass over its jobs, or fail after a short time, until the server ends the transaction."""
    store = JobStore(postgresql.create(lock_timeout="200ms", idle_in_transaction_session_timeout="1500ms"))
    row, other = job(), job(model="n")
    store.insert(row)
    store.insert(other)
    frozen = store.engine.connect()
    frozen.execute(jobs.update().where(jobs.c.id == row.id).values(progress=0.5))
    assert [one.id for one in store.claim("w", -1.0, 2)] == [other.id]
    with pytest.raises(sa.exc.OperationalError) as locked:
        store.cancel(row.id)
    assert "lock timeout" in reason_of(locked.value)
    assert store.reap(3) == [other.id]
    wait_until(lambda: _succeeds(lambda: store.cancel(row.id)), "the lock is free", 10)
    with pytest.raises(DATABASE_UNAVAILABLE):
        frozen.execute(sa.select(jobs.c.id))
    frozen.invalidate()
    frozen.close()
    store.engine.dispose()


def _succeeds(call: object) -> bool:
    assert callable(call)
    try:
        call()
    except sa.exc.OperationalError:
        return False
    return True


def test_migrations_make_the_tables_of_the_code(postgresql: PostgreSQL) -> None:
    """As on SQLite; and who waits for another's migration waits without a limit."""
    engine = open_engine(postgresql.create())
    with transaction(engine) as connection:
        migrate.upgrade(connection)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
    url = postgresql.create(lock_timeout="100ms", statement_timeout="100ms")
    opened = threading.Event()

    def open_store() -> None:
        JobStore(url).engine.dispose()
        opened.set()

    engine = open_engine(url)
    with migrate._lock(engine):
        thread = threading.Thread(target=open_store)
        thread.start()
        assert not opened.wait(0.5)
    assert opened.wait(30)
    thread.join()
    with engine.connect() as connection:
        assert not connection.execute(sa.text("SELECT * FROM pg_locks WHERE locktype = 'advisory'")).all()
    engine.dispose()


def test_text_that_postgresql_does_not_accept_names_nothing(store: JobStore) -> None:
    """A NUL character in an id or a filter finds nothing, as on SQLite."""
    store.insert(job())
    assert store.get("job_\0") is None
    assert store.list_jobs(None, {"model": "\0"}, None, 5) == store.list_jobs(None, {}, "\0", 5) == []
    assert not Deliveries(store.engine).exists("\0", "j", "")


def test_long_names_fit(store: JobStore) -> None:
    """PostgreSQL enforces the lengths of columns: the longest names that the service accepts and
    makes.
    """
    row = Job(
        kind="reconstructions",
        owner="o" * 80,
        model="m" * 63,
        version="v" * 40,
        method="reconstruct",
        request_id="r" * 120,
        traceparent="00-" + "0" * 32 + "-" + "0" * 16 + "-01",
        seed=2**63 - 1,
    )
    store.insert(row)
    (held,) = store.claim("h" * 80, LEASE_S, 1)
    assert held.owner == row.owner


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://reverie@127.0.0.1:{port}/no_such_database", "no_such_database"),
        ("postgresql://reverie:secret@127.0.0.1:1/d", "cannot be used"),
        ("mysql://h/d", "not supported"),
        ("nothing", "no database URL"),
    ],
)
def test_a_database_that_cannot_be_used_stops_the_start(postgresql: PostgreSQL, url: str, message: str) -> None:
    """With one sentence that says what to do, and no password."""
    with pytest.raises(StartupError, match=message) as refused:
        check_database(Settings(database_url=url.format(port=postgresql.port)))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_psycopg_the_start_says_what_to_install(tmp_path: Path) -> None:
    """The package is an extra."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from core.settings import Settings\n"
        "from core.startup import check_database, errors_end_the_program\n"
        "with errors_end_the_program(): check_database(Settings(database_url='postgresql://h/d'))\n"
    )
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "pip install -r requirements/postgresql.lock" in ended.stderr
