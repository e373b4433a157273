"""Deliveries of webhooks in the job database: inserted with a job's status, claimed once, retried,
and kept.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from core.jobs.records import TRAINING, Event, Job
from core.jobs.schema import transaction, webhook_deliveries
from core.jobs.store import JobStore
from core.webhooks.deliveries import KEPT_AFTER_RESULT_S, MAX_RETRY_S, Deliveries
from core.webhooks.records import EVENTS, Attempt, Delivery, Webhook

URL = "https://hooks.example/a"
DAY_S = 86_400.0


@pytest.fixture
def job_store(database: str) -> Iterator[JobStore]:
    """An empty job store."""
    opened = JobStore(database)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def deliveries(job_store: JobStore) -> Deliveries:
    """The deliveries of the job store."""
    return Deliveries(job_store.engine)


def insert(job_store: JobStore, *, url: str = URL, events: tuple[str, ...] = EVENTS, **fields: Any) -> Job:
    """Insert a job with a webhook."""
    fields = {"kind": "samples", "model": "m", "method": "sample", **fields}
    job = Job(**fields, webhook=Webhook(url, events).as_dict())
    job_store.insert(job)
    return job


def claim(deliveries: Deliveries, limit: int = 100, lease_s: float = 30.0, per_host: int = 100) -> list[Delivery]:
    """Claim due deliveries."""
    return deliveries.claim(lease_s, limit, {}, per_host)


def set_columns(job_store: JobStore, delivery_id: str, **values: Any) -> None:
    """Set columns of a delivery."""
    with transaction(job_store.engine) as connection:
        connection.execute(webhook_deliveries.update().where(webhook_deliveries.c.id == delivery_id).values(values))


def test_each_status_that_was_asked_for_makes_a_delivery(job_store: JobStore, deliveries: Deliveries) -> None:
    """Each requested status inserts a delivery in the transaction that sets it; a job without a
    webhook has none.
    """
    job_store.insert(Job(kind="samples", model="m", method="sample"))
    job = insert(job_store, kind=TRAINING, model="t", events=("job.running", "job.paused", "job.succeeded"))
    job_store.claim("w", 30)
    (claimed,) = job_store.claim("t", 30, kinds=(TRAINING,))
    job_store.append_events(claimed.claim, [Event("message", {"message": "a"})], 0.5)
    job_store.pause(job.id)
    job_store.resume(job.id)
    (claimed,) = job_store.claim("t", 30, kinds=(TRAINING,))
    assert job_store.finish(claimed.claim, result=b"r", version="3")
    assert not job_store.finish(claimed.claim, result=b"r")
    made = sorted(claim(deliveries), key=lambda delivery: delivery.created_at)
    assert [one.event for one in made] == ["job.running", "job.paused", "job.running", "job.succeeded"]
    assert {(one.job_id, one.url, one.host) for one in made} == {(job.id, URL, "hooks.example")}
    body = orjson.loads(made[-1].body)
    assert (body["type"], body["data"]["status"], body["data"]["version"]) == ("job.succeeded", "succeeded", "3")
    assert body["data"]["finished_at"] <= body["timestamp"]


def test_failed_and_cancelled_jobs_say_so(job_store: JobStore, deliveries: Deliveries) -> None:
    """The delivery of a failed or cancelled job has its status and problem, also if its worker
    died.
    """
    insert(job_store)
    (failed,) = job_store.claim("w", 30)
    job_store.finish(failed.claim, problem={"type": "about:blank", "title": "Bad", "status": 422, "detail": "bad"})
    cancelled = insert(job_store)
    job_store.cancel(cancelled.id)
    insert(job_store)
    (lost,) = job_store.claim("w", -1)
    job_store.reap(1)
    ends = {one.job_id: orjson.loads(one.body) for one in claim(deliveries) if one.event != "job.running"}
    assert ends[failed.id]["data"]["problem"]["detail"] == "bad"
    assert ends[cancelled.id]["type"] == "job.cancelled"
    assert (ends[lost.id]["type"], ends[lost.id]["data"]["problem"]["title"]) == ("job.failed", "Worker lost")


def test_processes_that_claim_at_the_same_time_get_different_deliveries(
    job_store: JobStore, deliveries: Deliveries
) -> None:
    """Concurrent claims return each delivery once."""
    jobs = {insert(job_store, events=("job.cancelled",)).id for _ in range(60)}
    for job_id in jobs:
        job_store.cancel(job_id)

    def work(_: int) -> list[str]:
        claimed = []
        while batch := claim(deliveries, 3):
            claimed += [one.job_id for one in batch]
        return claimed

    with ThreadPoolExecutor(4) as pool:
        counts = Counter(job_id for part in pool.map(work, range(4)) for job_id in part)
    assert counts == dict.fromkeys(jobs, 1)
    assert not deliveries.any_due()


def test_a_lapsed_lease_is_claimed_again_and_its_process_cannot_write(
    job_store: JobStore, deliveries: Deliveries
) -> None:
    """After its lease expired, a delivery is claimed again, and the first attempt's outcome is
    ignored.
    """
    job_store.cancel(insert(job_store, events=("job.cancelled",)).id)
    (first,) = claim(deliveries, lease_s=-1)
    (second,) = claim(deliveries)
    assert first.id == second.id
    assert not deliveries.record(first, Attempt(500, "late"))
    assert deliveries.record(second, Attempt(204))
    assert not deliveries.record(second, Attempt(204))
    (kept,) = deliveries.listing(second.job_id, "", None, 10)
    assert (kept.status, kept.attempts, kept.response_status, kept.error) == ("delivered", 1, 204, None)


def test_failures_are_retried_for_a_day_with_growing_delays(job_store: JobStore, deliveries: Deliveries) -> None:
    """Failed deliveries are retried after 5 s, 15 s, … up to three hours, and fail after a day."""
    delays = [deliveries.retry_delay_s(attempts) for attempts in range(1, 30)]
    for attempts, expected in ((1, 5), (2, 15), (4, 135), (20, MAX_RETRY_S)):
        assert 0.8 * expected <= delays[attempts - 1] <= 1.2 * expected
    job = insert(job_store, events=("job.cancelled",))
    job_store.cancel(job.id)
    created_at, attempts = time.time(), 0
    while pending := claim(deliveries):
        attempts += 1
        assert deliveries.record(pending[0], Attempt(500, "the receiver responded 500"))
        (kept,) = deliveries.listing(job.id, "", None, 10)
        if kept.status == "pending":
            assert kept.due_at > time.time()
            # simulate the delay by moving all times back
            passed = kept.due_at - time.time()
            set_columns(job_store, kept.id, due_at=time.time() - 0.001, created_at=kept.created_at - passed)
    assert kept.status == "failed"
    assert kept.attempts == attempts > 10
    assert DAY_S - 60 <= created_at - kept.created_at <= DAY_S + 60
    assert kept.error == "the receiver responded 500"


@pytest.mark.parametrize(
    ("attempt", "status", "least_s"),
    [
        (Attempt(410, "gone"), "failed", None),
        (Attempt(503, "busy", retry_after_s=600), "pending", 600),
        (Attempt(503, "busy", retry_after_s=999_999), "pending", MAX_RETRY_S),
        (Attempt(302, "redirect"), "pending", 4),
        (Attempt(error="no route"), "pending", 4),
    ],
)
def test_the_receiver_can_end_or_delay_retries(
    job_store: JobStore, deliveries: Deliveries, attempt: Attempt, status: str, least_s: float | None
) -> None:
    """410 ends the retries; `Retry-After` is respected up to three hours."""
    job = insert(job_store, events=("job.cancelled",))
    job_store.cancel(job.id)
    (claimed,) = claim(deliveries)
    deliveries.record(claimed, attempt)
    (kept,) = deliveries.listing(job.id, "", None, 10)
    assert kept.status == status
    if least_s is not None:
        assert least_s - 1 <= kept.due_at - time.time() <= max(7, least_s + 1)


def test_a_slow_host_does_not_hold_up_others(job_store: JobStore, deliveries: Deliveries) -> None:
    """A limited number of deliveries per host is claimed at the same time."""
    for url, count in (("https://slow.example/a", 300), ("https://fast.example/b", 2)):
        for _ in range(count):
            job_store.cancel(insert(job_store, url=url, events=("job.cancelled",)).id)
    first = deliveries.claim(30, 64, {}, 8)
    assert Counter(one.host for one in first) == {"slow.example": 8}
    second = deliveries.claim(30, 56, {"slow.example": 8}, 8)
    assert Counter(one.host for one in second) == {"fast.example": 2}


def test_deliveries_are_kept_two_days_longer_than_the_result(job_store: JobStore, deliveries: Deliveries) -> None:
    """A job's deliveries are deleted together; those of unfinished jobs and pending ones are
    kept.
    """
    ended, pending, unfinished, deleted = (insert(job_store) for _ in range(4))
    job_store.claim("w", 30, limit=1)
    for _ in range(3):
        job_store.claim("w", 30, limit=1)
    for job in (ended, pending, deleted):
        job_store.cancel(job.id)
    job_store.delete(deleted.id)
    for one in claim(deliveries):
        if one.job_id != pending.id:
            deliveries.record(one, Attempt(200))

    def age(days: float) -> None:
        with transaction(job_store.engine) as connection:
            created_at = webhook_deliveries.c.created_at - days * DAY_S
            connection.execute(webhook_deliveries.update().values(created_at=created_at))

    def kept() -> list[int]:
        return [len(deliveries.listing(job.id, "", None, 10)) for job in (ended, pending, unfinished, deleted)]

    assert kept() == [2, 2, 1, 2]
    age((KEPT_AFTER_RESULT_S / DAY_S) + 0.9)
    assert deliveries.delete_expired(DAY_S) == 0
    age(0.2)
    assert deliveries.delete_expired(DAY_S) == 4
    assert kept() == [0, 2, 1, 0]


def test_a_list_is_an_owners_page_by_page(job_store: JobStore, deliveries: Deliveries) -> None:
    """Deliveries are listed newest first in pages, to their owner only."""
    job = insert(job_store, owner="ann")
    job_store.claim("w", 30)
    time.sleep(0.002)
    job_store.cancel(job.id)
    newest, oldest = deliveries.listing(job.id, "ann", None, 10)
    assert (newest.event, oldest.event) == ("job.cancelled", "job.running")
    assert deliveries.listing(job.id, "ann", newest.id, 10) == [oldest]
    assert deliveries.listing(job.id, "ann", None, 1) == [newest]
    assert deliveries.exists(newest.id, job.id, "ann")
    assert deliveries.listing(job.id, "bob", None, 10) == []
    assert not deliveries.exists(newest.id, job.id, "bob")


def test_a_webhook_costs_jobs_without_one_no_statement(job_store: JobStore) -> None:
    """A job without a webhook executes no statement on deliveries."""
    statements: list[str] = []
    sa.event.listen(
        job_store.engine, "before_cursor_execute", lambda _c, _k, statement, *_: statements.append(statement)
    )
    job_store.insert(Job(kind="samples", model="m", method="sample"))
    (job,) = job_store.claim("w", 30)
    job_store.finish(job.claim, result=b"r")
    assert statements
    assert not [statement for statement in statements if "webhook_deliveries" in statement]
