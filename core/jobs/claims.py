"""Let workers claim jobs, and write what they report if their claim is still valid.

A claim is a compare-and-set: it increases the job's fencing token and sets a lease. Each later
write states the token, and changes nothing if the job has been requeued, claimed again, paused or
ended. When some rows of a job are finished, the job returns to the end of its queue without a
lease, so that jobs take turns.

This file has more than 400 lines because it has all statements that claim jobs or write under a
claim, whose conditions must agree.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.database import NOW, current_time, dialect_insert
from core.jobs.queries import JobQueries, is_free, jobs_of, waiting
from core.jobs.records import (
    AUXILIARY_KINDS,
    SMALL_JOB_ROWS,
    TRAINING,
    Claim,
    ClaimScope,
    Event,
    Job,
    Problem,
    SliceReport,
)
from core.jobs.schema import RUNS_INFERENCE, claim_order, jobs, result_chunks, transaction
from core.webhooks.outbox import insert_delivery

# A worker whose memory is full leaves jobs of a version that it has not loaded to others for so
# long.
_OTHERS_FIRST_S = 1.0

_MAX_DEFERRAL_S = 30.0  # longest time between two attempts to store a result


# See docs/decisions.md#all-jobs-use-the-bulk-queue-and-are-claimed-in-turn
class JobClaims(JobQueries):
    """The part of the job store with which workers claim jobs and write progress and results."""

    def claim(
        self,
        holder: str,
        lease_s: float,
        limit: int = 1,
        *,
        kinds: Sequence[str] = (),
        skip_owners: Collection[str] = (),
        scope: ClaimScope | None = None,
        batch_rows: Callable[[Job], int] = lambda _job: SMALL_JOB_ROWS,
    ) -> list[Job]:
        """Claim the next job of the given kinds, and small jobs that can share its forward pass.

        The next job is the oldest one of the owner whose last claim is longest ago. `holder`
        becomes the owner of the leases for `lease_s` seconds. `kinds` are all training, all
        auxiliary or all inference kinds; empty means all inference kinds. Jobs of `skip_owners` are
        not claimed and stay queued. With `scope`, only jobs in it are claimed; claimed jobs without
        a device kind get the scope's. At most `limit` jobs are claimed. If there is more than one,
        they have together at most `batch_rows(next job)` rows. Returns the claimed jobs, the next
        job first; an empty list if no job can be claimed.
        """
        claimable = waiting() & (jobs.c.kind.in_(kinds) if kinds else RUNS_INFERENCE)
        if skip_owners:
            claimable &= jobs.c.owner.not_in(skip_owners)
        if scope is not None:
            claimable &= _in_scope(scope)
        queue = queue_of(kinds[0] if kinds else "")
        with transaction(self.engine) as connection:
            first = lock_next(connection, queue, claimable)
            if first is None:
                return []
            batch = [first]
            if limit > 1 and _is_small(first):
                batch += _lock_similar(connection, claimable, first, limit - 1, batch_rows(first) - first.rows)
            claimed = set_claimed(connection, batch, holder, lease_s, scope.device_kind if scope else None)
            for job in batch:
                if job.status == "queued" and job.webhook is not None:
                    insert_delivery(connection, job.id, "running")
            record_claims(connection, queue, (job.owner for job in claimed))
            return claimed

    def is_held(self, claim: Claim) -> bool:
        """Return whether a claim is still valid.

        A claim ends when its job is requeued, claimed again, paused or ended.
        """
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(jobs.c.id).where(transitions.held_by(claim))) is not None

    def append_events(
        self,
        claim: Claim,
        new_events: Sequence[Event],
        progress: float,
        *,
        reset_attempts: bool = False,
        charge_attempt: bool = False,
        unblock: bool = False,
    ) -> bool:
        """Add events to a claimed job and set its progress, a fraction from 0 to 1.

        `reset_attempts` sets the job's number of failed attempts to 0; `charge_attempt` adds 1.
        `unblock` says that the job does not wait any more, see `defer` and `postpone`. Returns
        True; False, and writes nothing, if the claim is no longer valid.
        """
        change: dict[str, Any] = {"progress": round(progress, 4)} | ({"attempts": 0} if reset_attempts else {})
        if charge_attempt:
            change["attempts"] = jobs.c.attempts + 1
        if unblock:
            change |= transitions.NOT_BLOCKED
        with transaction(self.engine) as connection:
            if not connection.execute(jobs.update().where(transitions.held_by(claim)).values(change)).rowcount:
                return False
            transitions.append_events(connection, claim.job_id, new_events)
            return True

    def record_slices(self, reports: Sequence[SliceReport]) -> list[str]:
        """Write the results of some rows of jobs in one transaction; return the ids of these jobs.

        A job ends with the result of its last row (succeeded) or with a reported problem (failed);
        other jobs wait to be claimed for their next rows. Reports whose claim is no longer valid
        are ignored, and their jobs are not returned.
        """
        recorded = []
        with transaction(self.engine) as connection:
            # transactions lock jobs in the order of their ids, so that none waits for one that
            # waits for it
            for report in sorted(reports, key=lambda report: report.claim.job_id):
                held = transitions.held_by(report.claim)
                query = sa.select(jobs.c.rows, jobs.c.next_row).where(held).with_for_update()
                job = connection.execute(query).first()
                if job is not None:
                    _record_slice(connection, report, job.rows, job.next_row)
                    recorded.append(report.claim.job_id)
        return recorded

    def finish(
        self, claim: Claim, *, problem: Problem | None = None, result: bytes | None = None, version: str | None = None
    ) -> bool:
        """End a claimed job: as failed with `problem` or, without it, as succeeded with `result`.

        `result` is stored as the only chunk of the job's result. `version` is the model version
        that the job made; without it, the job's row keeps its version. Returns True; False, and
        writes nothing, if the claim is no longer valid.
        """
        held, job_id = transitions.held_by(claim), claim.job_id
        with transaction(self.engine) as connection:
            if problem is not None:
                return transitions.finish(connection, held, job_id, "failed", problem)
            change: dict[str, Any] = {"progress": 1.0} | ({"version": version} if version else {})
            if not transitions.finish(connection, held, job_id, "succeeded", **change):
                return False
            connection.execute(result_chunks.delete().where(result_chunks.c.job_id == job_id))
            connection.execute(result_chunks.insert().values(job_id=job_id, first_row=0, data=result))
            return True

    def requeue(self, claim: Claim, reason: str, *, any_device_kind: bool = False) -> None:
        """Return a claimed job to its queue, where it can be claimed at once; the claim ends.

        `reason` is a text for the job's event. With `any_device_kind`, workers of each device kind
        can claim the job; it must have no results yet, because workers of one kind compute all
        rows. Writes nothing if the claim is no longer valid.
        """
        change: dict[str, Any] = {"device_kind": None} if any_device_kind else {}
        with transaction(self.engine) as connection:
            transitions.requeue(connection, transitions.held_by(claim), claim.job_id, reason, **change)

    def waiting_kinds(self, older_than_s: float) -> list[tuple[str, str, str | None]]:
        """Return each (model, version, device kind) for which inference jobs wait for a worker.

        The device kind (device, processor, torch version, threads) is None for jobs that have not
        started. Only jobs that were queued more than `older_than_s` seconds ago count.
        """
        columns = (jobs.c.model, jobs.c.version, jobs.c.device_kind)
        waited = is_free() & (jobs.c.queued_at < NOW - older_than_s)
        query = sa.select(*columns).where(waited, RUNS_INFERENCE).distinct()
        with self.engine.connect() as connection:
            return [(row.model, row.version, row.device_kind) for row in connection.execute(query)]

    def restart_on_any_device_kind(self, model: str, version: str, device_kind: str, reason: str) -> list[str]:
        """Let waiting jobs start again at row 0, on any device kind, as theirs has no worker.

        A device kind is what the bits of results depend on: device, processor, torch version,
        threads. All waiting jobs of this version and device kind are changed. `reason` is a text
        for the event of each job. Returns the keys of the blobs that had results of these jobs; the
        caller deletes the blobs.
        """
        left = (jobs.c.model == model) & (jobs.c.version == version) & (jobs.c.device_kind == device_kind)
        fresh = {"device_kind": None, "next_row": 0, "continuation": None, "progress": 0.0}
        keys: list[str] = []
        with transaction(self.engine) as connection:
            query = sa.select(jobs.c.id).where(left, is_free(), RUNS_INFERENCE).order_by(jobs.c.id).with_for_update()
            for job_id in connection.scalars(query).all():
                chunks = result_chunks.c.job_id == job_id
                keys += [key for key in connection.scalars(sa.select(result_chunks.c.blob_key).where(chunks)) if key]
                connection.execute(result_chunks.delete().where(chunks))
                transitions.requeue(connection, (jobs.c.id == job_id) & is_free(), job_id, reason, **fresh)
        return keys

    def fail_waiting(self, model: str, version: str, problem: Problem) -> list[str]:
        """End the waiting inference jobs of a version as failed; return their ids."""
        same = (jobs.c.model == model) & (jobs.c.version == version) & is_free() & RUNS_INFERENCE
        with transaction(self.engine) as connection:
            query = sa.select(jobs.c.id).where(same).order_by(jobs.c.id).with_for_update()
            ids = list(connection.scalars(query))
            return [
                one for one in ids if transitions.finish(connection, same & (jobs.c.id == one), one, "failed", problem)
            ]

    def defer(self, claim: Claim, problem: Problem, max_wait_s: float, size_bytes: int = 0) -> bool:
        """Return a claimed job to its queue because its result cannot be stored now.

        The job can be claimed again after a delay, which grows from 1 to 30 s with each deferral;
        this does not count as a failed attempt. If the result still cannot be stored `max_wait_s`
        seconds after the first deferral, the job fails with `problem`. `size_bytes` is the size of
        the result, 0 if it is unknown. Returns True; False, and writes nothing, if the claim is no
        longer valid.
        """
        held, job_id = transitions.held_by(claim), claim.job_id
        with transaction(self.engine) as connection:
            query = sa.select(jobs.c.blocked_since, jobs.c.blocked_reason).where(held).with_for_update()
            job = connection.execute(query).first()
            if job is None:
                return False
            now = current_time(connection)
            since = job.blocked_since or now
            if now - since >= max_wait_s:
                return transitions.finish(connection, held, job_id, "failed", problem)
            change = {
                "not_before": now + min(_MAX_DEFERRAL_S, max(1.0, now - since), max(0.0, since + max_wait_s - now)),
                "blocked_since": since,
                "blocked_reason": problem["detail"],
                "blocked_bytes": size_bytes,
            }
            return _requeue_blocked(connection, claim, job.blocked_reason, change)

    def postpone(self, claim: Claim, reason: str, delay_s: float) -> bool:
        """Return a claimed job to its queue because it waits for another process.

        The job can be claimed again after `delay_s` seconds. This does not count as a failed
        attempt, nor as a deferral because a result cannot be stored: the job never fails for it.
        `reason` is a text for the client. Returns True; False, and writes nothing, if the claim is
        no longer valid.
        """
        with transaction(self.engine) as connection:
            query = sa.select(jobs.c.blocked_reason).where(transitions.held_by(claim)).with_for_update()
            job = connection.execute(query).first()
            if job is None:
                return False
            change = {"not_before": current_time(connection) + delay_s, "blocked_reason": reason}
            return _requeue_blocked(connection, claim, job.blocked_reason, change)


def _requeue_blocked(connection: sa.Connection, claim: Claim, old_reason: str | None, change: dict[str, Any]) -> bool:
    """Return a claimed job to its queue and set the columns in `change`, such as `blocked_reason`.

    The event is written only if the reason is not `old_reason`: a wait of an hour is no hundred
    events. Returns False if the claim is no longer valid.
    """
    held, reason = transitions.held_by(claim), change["blocked_reason"]
    if old_reason != reason:
        return transitions.requeue(connection, held, claim.job_id, reason, **change)
    change = {**change, "status": "queued", "token": claim.token + 1, **transitions.NO_LEASE}
    return connection.execute(jobs.update().where(held).values(change)).rowcount == 1


def _in_scope(scope: ClaimScope) -> transitions.Condition:
    """Return the SQL condition of the jobs that a worker may claim."""
    version = sa.tuple_(jobs.c.model, jobs.c.version)
    condition = jobs.c.device_kind.is_(None) | (jobs.c.device_kind == scope.device_kind)
    if scope.models is not None:
        condition &= jobs.c.model.in_(scope.models)
    if scope.lacking:
        condition &= version.not_in(scope.lacking)
    if scope.loaded is not None:
        condition &= version.in_(scope.loaded) | (jobs.c.queued_at < NOW - _OTHERS_FIRST_S)
    return condition


def _lock_oldest(connection: sa.Connection, claimable: transitions.Condition) -> Job | None:
    """Lock and return the job matching `claimable` that was queued first; None if there is none.

    Rows that another transaction has locked are skipped. Queued jobs and running ones (between two
    slices) have separate queries, so that each can use the index on status and queue time.
    """
    query = sa.select(jobs).where(claimable).order_by(jobs.c.queued_at).limit(1)
    by_status = [query.where(jobs.c.status == status) for status in ("queued", "running")]
    if connection.dialect.name == "sqlite":
        oldest = [job for one in by_status for job in jobs_of(connection.execute(one))]
        return min(oldest, key=lambda job: job.queued_at, default=None)
    times = [one.with_only_columns(jobs.c.queued_at).scalar_subquery() for one in by_status]
    waiting_since = connection.execute(sa.select(*times)).one()
    found = sorted((since, number) for number, since in enumerate(waiting_since) if since is not None)
    for _, number in found:  # locks no job of the other status, which another worker may claim
        for job in jobs_of(connection.execute(by_status[number].with_for_update(skip_locked=True))):
            return job
    return None


def _is_small(job: Job) -> bool:
    """Return whether a job has few rows and has not started, so that it can share a batch."""
    return job.rows <= SMALL_JOB_ROWS and job.next_row == 0 and job.continuation is None and not job.isolated


def _lock_similar(
    connection: sa.Connection, claimable: transitions.Condition, first: Job, limit: int, rows: int
) -> list[Job]:
    """Lock and return at most `limit` small queued jobs that can share a forward pass with `first`.

    They match `claimable`, have the model, version, operation and options of `first`, and together
    at most `rows` rows. The oldest come first.
    """
    same = [jobs.c[name] == getattr(first, name) for name in ("model", "version", "method", "options")]
    small = [jobs.c.rows <= SMALL_JOB_ROWS, jobs.c.next_row == 0, jobs.c.continuation.is_(None), ~jobs.c.isolated]
    claimable &= sa.and_(jobs.c.status == "queued", jobs.c.id != first.id, *same, *small)
    oldest = sa.select(jobs.c.id, jobs.c.rows, jobs.c.queued_at).where(claimable).order_by(jobs.c.queued_at)
    candidates = oldest.limit(limit).cte("candidates")
    total = sa.func.sum(candidates.c.rows).over(order_by=(candidates.c.queued_at, candidates.c.id))
    fits = sa.select(candidates.c.id, total.label("total")).cte("fits")
    # only the jobs that fit are locked: other workers may claim the rest
    query = sa.select(jobs).join(fits, fits.c.id == jobs.c.id).where(fits.c.total <= rows, claimable)
    locked = query.order_by(jobs.c.queued_at).with_for_update(skip_locked=True, of=jobs)
    return jobs_of(connection.execute(locked))


_CLAIMED = {
    "status": "running",
    "token": jobs.c.token + 1,
    "lease_holder": sa.bindparam("holder", type_=jobs.c.lease_holder.type),
    "lease_until": NOW + sa.bindparam("lease_s", type_=sa.Float()),
    "co_batched": sa.bindparam("batched", type_=sa.Boolean()),
    "started_at": sa.func.coalesce(jobs.c.started_at, NOW),
    "device_kind": sa.func.coalesce(jobs.c.device_kind, sa.bindparam("own_kind", type_=jobs.c.device_kind.type)),
}
_SET_CLAIMED = (
    jobs.update()
    .where(jobs.c.id.in_(sa.bindparam("job_ids", expanding=True)), is_free())
    .values(_CLAIMED)
    .returning(jobs.c.id, *(jobs.c[name] for name in _CLAIMED))
)


def set_claimed(
    connection: sa.Connection, batch: Sequence[Job], holder: str, lease_s: float, device_kind: str | None = None
) -> list[Job]:
    """Claim locked jobs for `holder`, whose leases expire after `lease_s` seconds; return them.

    Jobs without a device kind get `device_kind`. Jobs that were queued get an event. A job that is
    not free any more is left out.
    """
    values = {"job_ids": [job.id for job in batch], "holder": holder, "lease_s": lease_s, "own_kind": device_kind}
    values["batched"] = len(batch) > 1
    changed = {row.id: row._asdict() for row in connection.execute(_SET_CLAIMED, values)}
    queued = [job.id for job in batch if job.status == "queued" and job.id in changed]
    if queued:
        transitions.append_event(connection, queued, Event("status", {"status": "running"}))
    return [replace(job, **changed[job.id]) for job in batch if job.id in changed]


def _record_slice(connection: sa.Connection, report: SliceReport, rows: int, next_row: int) -> None:
    """Write the result of some rows, then end the job or return it to its queue for its next rows.

    A reported problem ends the job as failed. `rows` is the number of rows of the job; `next_row`
    is the index of the first row that had no stored result before this report.
    """
    held, job_id = transitions.held_by(report.claim), report.claim.job_id
    if report.problem is not None:
        transitions.finish(connection, held, job_id, "failed", report.problem)
        return
    if report.continuation is None:
        chunk = {"first_row": report.first_row, "data": report.data, "blob_key": report.blob_key}
        connection.execute(result_chunks.insert().values(job_id=job_id, **chunk))
        next_row = report.first_row + report.rows
    if next_row >= rows:
        transitions.finish(connection, held, job_id, "succeeded", next_row=next_row, progress=1.0)
        return
    progress = round(min((next_row + report.continuation_progress * report.rows) / rows, 1.0), 4)
    change = {
        "next_row": next_row,
        "continuation": report.continuation,
        "progress": progress,
        "attempts": 0,
        "queued_at": NOW,
        **transitions.NO_LEASE,
        **transitions.NOT_BLOCKED,
    }
    connection.execute(jobs.update().where(held).values(change))
    transitions.append_event(connection, [job_id], Event("progress", {"progress": progress}))


# --- the order of claims ---

# Owners take turns, so one owner's backlog does not delay others. The table `claim_order` has the
# time of the last claim for each queue and owner. Of the owners with a claimable job, the one with
# the oldest last claim is next, and its oldest job is claimed. The owner is chosen first, and then
# the job is locked. In PostgreSQL several claims run at the same time. Each locks the row of its
# owner, so that claims at the same time serve different owners; no claim waits for a lock.


def queue_of(kind: str) -> str:
    """Return the queue in which jobs of a kind wait: "training", "auxiliary" or "inference".

    Owners take turns in each queue separately.
    """
    if kind == TRAINING:
        return "training"
    return "auxiliary" if kind in AUXILIARY_KINDS else "inference"


def register_owners(connection: sa.Connection, queues_owners: Iterable[tuple[str, str]]) -> None:
    """Add the pairs of queue and owner that the table `claim_order` lacks.

    A new pair counts as never claimed, so jobs of its owner are claimed before those of others.
    """
    rows = [{"queue": queue, "owner": owner, "claimed_at": 0.0} for queue, owner in sorted(queues_owners)]
    if rows:
        connection.execute(dialect_insert(connection, claim_order).on_conflict_do_nothing(), rows)


def lock_next(connection: sa.Connection, queue: str, claimable: transitions.Condition) -> Job | None:
    """Lock and return the job in `queue` that is claimed next.

    Returns None if there is no claimable job that no other transaction has locked. `claimable` is
    the SQL condition of jobs of this queue that can be claimed.
    """
    while (owner := _next_owner(connection, queue, claimable)) is not None:
        if (job := _lock_oldest(connection, claimable & (jobs.c.owner == owner))) is not None:
            return job
        claimable &= jobs.c.owner != owner  # other transactions claim all its jobs
    return None


def _next_owner(connection: sa.Connection, queue: str, claimable: transitions.Condition) -> str | None:
    """Return the owner whose job in `queue` is claimed next; None if there is no claimable job.

    This is the owner with the oldest last claim. Owners whose jobs other transactions are claiming
    come last. `claimable` is the SQL condition of jobs of this queue that can be claimed.
    """
    has_job = sa.select(jobs.c.id).where(jobs.c.owner == claim_order.c.owner, claimable).exists()
    query = sa.select(claim_order.c.owner).where(claim_order.c.queue == queue, has_job)
    query = query.order_by(claim_order.c.claimed_at).limit(1)
    owner: str | None = connection.scalar(query.with_for_update(skip_locked=True, of=claim_order))
    if owner is None and connection.dialect.name != "sqlite":
        owner = connection.scalar(query)
    if owner is None:  # a job whose owner was never registered
        owner = connection.scalar(sa.select(jobs.c.owner).where(claimable).limit(1))
        if owner is not None:
            register_owners(connection, [(queue, owner)])
    return owner


def record_claims(connection: sa.Connection, queue: str, owners: Iterable[str]) -> None:
    """Record that jobs of these owners were claimed from `queue` now, so that others come next."""
    served = (claim_order.c.queue == queue) & claim_order.c.owner.in_(sorted(set(owners)))
    if connection.dialect.name != "sqlite":
        # a row that is locked belongs to another claim, which sets the time of that owner itself
        unlocked = sa.select(claim_order.c.owner).where(served).with_for_update(skip_locked=True).cte("unlocked")
        served &= claim_order.c.owner.in_(sa.select(unlocked.c.owner))
    connection.execute(claim_order.update().where(served).values(claimed_at=NOW))
