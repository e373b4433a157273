"""Databases that are new, of earlier releases or of a newer one, opened by one process or by
several.
"""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from core.broker.codec import unpack
from core.jobs import migrate
from core.jobs.migrate import HEAD, NewerDatabaseError
from core.jobs.records import TRAINING, IdempotencyKey, Insertion, Job, JobState, ResultChunk, SliceReport
from core.jobs.schema import metadata, transaction
from core.jobs.store import JobStore
from core.resources import Ownership, ResourceStore
from core.settings import Settings
from core.startup import StartupError, check_database
from tests.forked import FORKING
from tests.postgresql import PostgreSQL, programs

DUMPS = Path(__file__).parent / "databases"
"""Dumps of databases of two earlier releases, with jobs in every state."""

FIRST, LAST = "first_release.sql", "release_before_migrations.sql"
LEASE_S = 30.0


def job_id(number: int) -> str:
    """Return the id of a job in the dumps."""
    return f"job_{1_700_000_000_000 + number:012x}{number:016x}"


def load(dump: str, file: Path) -> str:
    """Make a database from a dump; return its URL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((DUMPS / dump).read_text())
    return f"sqlite:///{file}"


def tables(file: Path) -> set[str]:
    """Return the names of a database's tables."""
    with closing(sqlite3.connect(file)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def differences(job_store: JobStore) -> list[object]:
    """Return what differs between a database and the tables of the code."""
    with job_store.engine.connect() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))


@pytest.mark.parametrize("dump", [FIRST, LAST])
def test_jobs_of_an_earlier_release_are_served(tmp_path: Path, dump: str) -> None:
    """Queued, interrupted and unfinished jobs are claimed; ended ones keep their results, problems
    and idempotency keys.
    """
    job_store = JobStore(load(dump, tmp_path / "jobs.sqlite3"))
    assert differences(job_store) == []
    assert job_store.reap(3) == [job_id(3), job_id(5)]  # their workers are gone
    lost = job_store.get(job_id(5))
    assert lost is not None
    assert (lost.status, (lost.problem or {})["title"]) == ("failed", "Worker lost")
    if dump == LAST:
        deferred = job_store.get(job_id(14))
        assert deferred is not None
        assert (deferred.status, deferred.blocked_reason, deferred.blocked_bytes) == ("queued", "no room", 1000)
        ownership = ResourceStore(job_store.engine).all()["model", "mine"]
        assert (ownership.owner, ownership.shared) == ("ann", True)
    claimed = [job for _ in range(9) for job in job_store.claim("w", LEASE_S, 32)]
    assert {job.id for job in claimed} - {job_id(14)} == {job_id(number) for number in (1, 2, 3, 4, 13)}
    by_id = {job.id: job for job in claimed}
    encodings, unfinished = by_id[job_id(2)], by_id[job_id(4)]
    assert unpack(encodings.items or b"")["images"].shape == (1, 1, 28, 28)
    assert (encodings.rows_per_image, encodings.owner) == (2, "bob")
    assert (unfinished.next_row, unfinished.continuation, unfinished.progress) == (4, b"\x80", 0.5)
    assert list(encodings.request.items()) == [("model", "vae-mnist-2d"), ("count", 2)]
    assert by_id[job_id(3)].isolated
    report = SliceReport(encodings.claim, 0, encodings.rows, b"done")
    assert job_store.record_slices([report]) == [encodings.id]
    assert job_store.result(encodings.id) == [ResultChunk(b"done", None)]
    assert [event.data["status"] for event in job_store.events(encodings.id)] == ["queued", "running", "succeeded"]

    (chunk,) = job_store.result(job_id(9))
    assert unpack(chunk.data or b"")["images"].shape == (2, 1, 28, 28)
    assert job_store.result(job_id(10)) == [ResultChunk(None, f"jobs/{job_id(10)}/3-0")]
    failed = job_store.get(job_id(11))
    assert failed is not None
    assert failed.problem == {"type": "about:blank", "title": "Bad", "status": 422, "detail": "no such digit"}
    assert job_store.states([job_id(12)]) == {job_id(12): JobState("cancelled", expired=False)}
    key = IdempotencyKey("POST /v1/samples", "a key", "other", 1e12)
    assert job_store.insert(by_id[job_id(13)], idempotency_key=key) == Insertion(job_id(13), "f" * 64)

    (training,) = job_store.claim("t", LEASE_S, kinds=(TRAINING,))
    assert training.id == job_id(7)
    assert job_store.resume(job_id(6))
    (training,) = job_store.claim("t", LEASE_S, kinds=(TRAINING,))
    assert list(training.request["recipe"]) == ["z", "a"]
    assert [job.id for job in job_store.claim("t", LEASE_S, kinds=("estimate", "import"))] == [job_id(8)]
    job_store.engine.dispose()


def test_migrations_make_the_tables_of_the_code(tmp_path: Path) -> None:
    """Migrating an empty database gives the tables of the code, and new databases are marked with
    the last revision.
    """
    assert ScriptDirectory(str(Path(migrate.__file__).parent / "migrations")).get_heads() == [HEAD]
    new = JobStore(f"sqlite:///{tmp_path / 'new.sqlite3'}")
    assert differences(new) == []
    ResourceStore(new.engine).claim("model", "m", "ann", shared=None)
    assert ResourceStore(new.engine).change_count() == 1
    new.engine.dispose()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    with transaction(engine) as connection:
        migrate.upgrade(connection)
    engine.dispose()
    migrated = JobStore(f"sqlite:///{tmp_path / 'empty.sqlite3'}")
    assert differences(migrated) == []
    assert ResourceStore(migrated.engine).claim("model", "m", "ann", shared=True) == Ownership(
        "ann", shared=True, created_at=ResourceStore(migrated.engine).all()["model", "m"].created_at
    )
    migrated.engine.dispose()


def test_a_second_unfinished_training_of_a_name_ends_with_the_upgrade(tmp_path: Path) -> None:
    """Earlier releases rejected it, too; if there is one all the same, it does not stop the start."""
    file = tmp_path / "jobs.sqlite3"
    url = load(LAST, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE jobs SET model = 'mine', status = 'running' WHERE id = ?", (job_id(7),))
        connection.commit()
    job_store = JobStore(url)
    first, second = job_store.get(job_id(6)), job_store.get(job_id(7))
    assert first is not None
    assert second is not None
    assert (first.status, second.status, (second.problem or {})["status"]) == ("paused", "failed", 409)
    assert differences(job_store) == []
    job_store.engine.dispose()


def newer_database(database: str, oldest: str) -> None:
    """Make a database of release 9999, which programs from revision `oldest` on can use."""
    job_store = JobStore(database)
    with job_store.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN not_known_here VARCHAR(10)"))
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(sa.text("UPDATE instance SET oldest_schema = :oldest"), {"oldest": oldest})
    job_store.engine.dispose()


def test_a_database_that_a_newer_release_has_only_added_to_is_used(tmp_path: Path) -> None:
    """During an upgrade a program of the earlier release can start again, and migrates nothing."""
    database = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    newer_database(database, HEAD)
    job_store = JobStore(database)
    job = Job(kind="samples", model="m", method="sample")
    job_store.insert(job)
    assert [claimed.id for claimed in job_store.claim("w", LEASE_S)] == [job.id]
    with job_store.engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT version_num FROM alembic_version")) == "9999"
    job_store.engine.dispose()


def test_a_database_of_a_newer_release_stops_the_start(tmp_path: Path) -> None:
    """A database that this release cannot use is rejected with one sentence."""
    settings = Settings(state=tmp_path)
    newer_database(settings.database, "9998")
    with pytest.raises(NewerDatabaseError, match="9999"):
        JobStore(settings.database)
    with pytest.raises(StartupError, match="was made by a newer release") as refused:
        check_database(settings)
    assert "\n" not in str(refused.value)


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A failed migration is rolled back, so that the earlier release can use the database; a later
    start migrates it.
    """
    file = tmp_path / "jobs.sqlite3"
    url = load(LAST, file)
    before = tables(file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE result_chunks (in_the_way INTEGER)")
    with pytest.raises(sa.exc.OperationalError, match="result_chunks"):
        JobStore(url)
    assert tables(file) == before | {"result_chunks"}
    with closing(sqlite3.connect(file)) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(jobs)")}
        connection.execute("DROP TABLE result_chunks")
    assert {"turn", "alone", "per"} <= columns
    assert JobStore(url).get(job_id(1)) is not None


def open_and_close(url: str) -> None:
    """Open a database in another process."""
    JobStore(url).engine.dispose()


@pytest.mark.parametrize("rounds", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_four_processes_open_one_database(tmp_path: Path, request: pytest.FixtureRequest, rounds: int) -> None:
    """Four processes that open a new or old database at the same time create or migrate it once."""
    urls = [f"sqlite:///{tmp_path / f'new{number}.sqlite3'}" for number in range(rounds)]
    if programs() is not None:
        server: PostgreSQL = request.getfixturevalue("postgresql")
        urls += [server.create() for _ in range(rounds)]
    urls += [load(dump, tmp_path / f"{number}{dump}.sqlite3") for dump in (FIRST, LAST) for number in range(5)]
    with FORKING.Pool(4) as pool:
        for url in urls:
            pool.map(open_and_close, [url] * 4, chunksize=1)
    for url in urls:
        job_store = JobStore(url)
        assert differences(job_store) == []
        assert ResourceStore(job_store.engine).change_count() == 0 or LAST in url
        job_store.engine.dispose()


def test_alembic_is_imported_for_older_databases_alone(tmp_path: Path) -> None:
    """Alembic, whose import is slow, is imported only for a database that needs a migration."""
    program = (
        "import sys\n"
        "from core.jobs.store import JobStore\n"
        "for _ in range(2): JobStore(sys.argv[1])\n"
        "print('alembic' in sys.modules)\n"
    )
    new, old = f"sqlite:///{tmp_path / 'new.sqlite3'}", load(FIRST, tmp_path / "old.sqlite3")
    printed = [
        subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True).stdout.strip()
        for url in (new, old)
    ]
    assert printed == ["False", "True"]


def test_the_database_file_of_earlier_releases_is_renamed(tmp_path: Path) -> None:
    """`ledger.sqlite3` is renamed with its write-ahead log, by whichever process opens it first."""
    old, new = tmp_path / "ledger.sqlite3", tmp_path / "jobs.sqlite3"
    load(LAST, old)
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1])\n"
        "connection.execute('PRAGMA journal_mode=WAL')\n"
        "connection.execute(\"UPDATE jobs SET seed = 99 WHERE owner = 'bob'\")\n"
        "connection.commit()\n"
        "os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(old)], check=False)
    assert old.with_name("ledger.sqlite3-wal").stat().st_size > 0
    with FORKING.Pool(4) as pool:
        pool.map(open_and_close, [f"sqlite:///{new}"] * 8, chunksize=1)
    job_store = JobStore(f"sqlite:///{new}")
    job = job_store.get(job_id(2))
    assert job is not None
    assert (job.owner, job.seed) == ("bob", 99)
    assert not list(tmp_path.glob("ledger*"))
    job_store.engine.dispose()


def test_a_database_file_in_use_is_not_renamed(tmp_path: Path) -> None:
    """If a process of the earlier release uses the file, the start fails and changes nothing."""
    old = tmp_path / "ledger.sqlite3"
    load(LAST, old)
    with closing(sqlite3.connect(old)) as running:
        running.execute("PRAGMA journal_mode=WAL")
        running.execute("SELECT count(*) FROM jobs").fetchone()
        with pytest.raises(StartupError, match="another process uses"):
            check_database(Settings(state=tmp_path))
        running.execute("DELETE FROM events")
        running.commit()
    assert sorted(path.name for path in tmp_path.glob("*.sqlite3")) == ["ledger.sqlite3"]
    check_database(Settings(state=tmp_path))
    assert sorted(path.name for path in tmp_path.glob("*.sqlite3")) == ["jobs.sqlite3"]
