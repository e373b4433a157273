"""Claims, leases and fencing, on a real database."""

import time
from pathlib import Path
from typing import Any

import pytest

from workers.ledger import ADOPTER, SMALL, Done, Job, Ledger, new_id

LEASE_S = 30.0


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty ledger."""
    return Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")


def job(**more: Any) -> Job:
    """A queued job of one row."""
    now = time.time()
    base = {
        "id": new_id(),
        "kind": "samples",
        "owner": "",
        "status": "queued",
        "model": "m",
        "version": "1",
        "method": "sample",
        "options": "{}",
        "request": "{}",
        "seed": 3,
        "rows": 1,
        "turn": now,
        "created_at": now,
    }
    return base | more


def status(ledger: Ledger, job_id: str) -> str:
    """A job's status."""
    found = ledger.get(job_id)
    assert found is not None
    return str(found["status"])


def test_a_job_is_claimed_once(ledger: Ledger) -> None:
    """Two workers never hold the same job."""
    ledger.add([job() for _ in range(5)])
    first = ledger.claim("a", LEASE_S, 3)
    second = ledger.claim("b", LEASE_S, 3)
    assert (len(first), len(second)) == (3, 2)
    assert not {one["id"] for one in first} & {one["id"] for one in second}
    assert ledger.claim("c", LEASE_S, 3) == []


def test_only_alike_jobs_share_a_pass(ledger: Ledger) -> None:
    """Another model, method or options, many rows, or a suspect job: each goes by itself."""
    others = [job(model="n"), job(method="encode"), job(options='{"a":1}'), job(rows=SMALL + 1), job(alone=True)]
    ledger.add([job(), job(), *others])
    sizes = [len(ledger.claim("a", LEASE_S, 32)) for _ in range(6)]
    assert sizes == [1, 1, 1, 1, 1, 2]


def test_a_lapsed_holder_is_fenced_off(ledger: Ledger) -> None:
    """Who lost a job to another can no longer write to it; the other's result stands alone."""
    row = job()
    ledger.add([row])
    (stale,) = ledger.claim("frozen", -1.0, 1)
    assert ledger.reap(3) == [row["id"]]
    (fresh,) = ledger.claim("other", LEASE_S, 1)
    assert fresh["token"] > stale["token"]
    assert ledger.settle([Done(row["id"], stale["token"], 0, 1, b"late")]) == []
    assert ledger.settle([Done(row["id"], fresh["token"], 0, 1, b"right")]) == [row["id"]]
    assert ledger.settle([Done(row["id"], fresh["token"], 0, 1, b"again")]) == []
    assert ledger.result(row["id"]) == [(b"right", None)]
    ends = [event for event in ledger.events_after(row["id"], 0) if '"succeeded"' in event["data"]]
    assert len(ends) == 1


def test_three_deaths_alone_fail_a_job(ledger: Ledger) -> None:
    """A job that ran among others is not charged; alone, three times and out, with the reason."""
    row = job()
    ledger.add([row, job()])
    assert len(ledger.claim("a", -1.0, 2)) == 2
    ledger.reap(3)
    found = ledger.get(row["id"])
    assert found is not None
    assert (found["attempts"], bool(found["alone"])) == (0, True)
    for _ in range(6):  # both in turn, each alone
        assert len(ledger.claim("a", -1.0, 2)) == 1
        ledger.reap(3)
    found = ledger.get(row["id"])
    assert found is not None
    assert found["status"] == "failed"
    assert "3 times" in found["problem"]


def test_losing_an_api_process_is_not_held_against_a_job(ledger: Ledger) -> None:
    """A job that an API process held goes back uncharged and unsuspected."""
    row = job(status="running", lease_owner=ADOPTER + "1", lease_until=time.time() - 1, token=1)
    ledger.add([row])
    assert ledger.reap(1) == [row["id"]]
    found = ledger.get(row["id"])
    assert found is not None
    assert (found["status"], found["attempts"], bool(found["alone"])) == ("queued", 0, False)


def test_slices_take_turns(ledger: Ledger) -> None:
    """A long job goes to the back of the line after each slice, and its parts come out in order."""
    long, short = job(rows=100), job(rows=50)
    ledger.add([long])
    ledger.add([short | {"turn": time.time() + 0.001}])
    order = []
    for _ in range(3):
        (held,) = ledger.claim("a", LEASE_S, 1)
        order.append(held["id"])
        first = held["next_row"]
        ledger.settle([Done(held["id"], held["token"], first, 50, str(first).encode())])
    assert order == [long["id"], short["id"], long["id"]]
    assert [data for data, _ in ledger.result(long["id"])] == [b"0", b"50"]
    assert status(ledger, long["id"]) == status(ledger, short["id"]) == "succeeded"


def test_cancel_is_terminal_at_every_stage(ledger: Ledger) -> None:
    """Queued or running, a cancelled job stays so, whatever its holder writes; an ended one is not cancelled."""
    queued, running = job(), job(model="n")
    ledger.add([queued, running])
    assert ledger.cancel(queued["id"])
    (held,) = ledger.claim("a", LEASE_S, 1)
    assert held["id"] == running["id"]
    assert ledger.cancel(running["id"])
    assert ledger.settle([Done(held["id"], held["token"], 0, 1, b"x")]) == []
    assert not ledger.cancel(running["id"])
    assert status(ledger, queued["id"]) == status(ledger, running["id"]) == "cancelled"


def test_idempotency_keys_name_the_first_job(ledger: Ledger) -> None:
    """The second insert under a key adds nothing and answers the first; after its time a key is free again."""
    first, second = job(), job()
    assert ledger.add_once(first, "r", "k", "f1", 60) == (first["id"], "f1")
    assert ledger.add_once(second, "r", "k", "f2", 60) == (first["id"], "f1")
    assert ledger.get(second["id"]) is None
    assert ledger.add_once(second, "other route", "k", "f2", 60) == (second["id"], "f2")
    third = job()
    assert ledger.add_once(third, "r", "k", "f3", -1) == (third["id"], "f3")


def test_expiry_drops_results_then_rows(ledger: Ledger) -> None:
    """An old job first loses its result and says so, and later is forgotten."""
    row = job()
    ledger.add([row])
    (held,) = ledger.claim("a", LEASE_S, 1)
    ledger.settle([Done(row["id"], held["token"], 0, 1, b"x")])
    assert ledger.expire(60, 600) == []
    assert ledger.expire(-1, 600) == [row["id"]]
    found = ledger.get(row["id"])
    assert found is not None
    assert found["expired"]
    assert ledger.result(row["id"]) == []
    ledger.expire(-1, -1)
    assert ledger.get(row["id"]) is None


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    """A ledger of a later version is not written to."""
    import sqlalchemy as sa

    url = f"sqlite:///{tmp_path / 'l.sqlite3'}"
    ledger = Ledger(url)
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE about SET schema_version = 99"))
    ledger.engine.dispose()
    with pytest.raises(RuntimeError, match="99"):
        Ledger(url)
