"""Compute the positions of queued jobs, and how fast jobs progress and end, from the job store."""

from collections.abc import Collection
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from core.jobs.claims import queue_of
from core.jobs.database import current_time
from core.jobs.queries import waiting
from core.jobs.records import AUXILIARY_KINDS, TRAINING
from core.jobs.schema import RUNS_INFERENCE, claim_order, events, jobs

_RECENT_S = 600.0  # jobs that ended longer ago say nothing about the pace of today
_RECENT_JOBS = 200
_LEAST_JOBS = 5  # fewer are no measure of a pace


# The name of a job's queue in SQL, as `claim_order.queue_of` returns it.
_QUEUE = sa.case(
    (jobs.c.kind == TRAINING, queue_of(TRAINING)),
    (jobs.c.kind.in_(AUXILIARY_KINDS), queue_of(AUXILIARY_KINDS[0])),
    else_=queue_of(""),
)


def queue_positions(engine: Engine, job_ids: Collection[str]) -> dict[str, int]:
    """Return the position of each of these jobs that is queued for a worker, keyed by job id.

    Training, auxiliary and inference jobs are counted separately; position 1 is next. Owners take
    turns: the oldest job of each comes first, owners in the order of their last claims, then the
    second oldest of each, and so on. The database ranks all queued jobs, so the cost grows with
    their number: 0.1 to 0.2 s for 20 000 jobs.
    """
    turn = sa.func.row_number().over(partition_by=(_QUEUE, jobs.c.owner), order_by=(jobs.c.queued_at, jobs.c.id))
    queued = (
        sa.select(jobs.c.id, jobs.c.owner, _QUEUE.label("queue"), turn.label("turn"))
        .where(waiting(), jobs.c.status == "queued", jobs.c.input_urls.is_(None))
        .subquery()
    )
    claimed_at = sa.func.coalesce(claim_order.c.claimed_at, 0.0)
    position = sa.func.row_number().over(
        partition_by=queued.c.queue, order_by=(queued.c.turn, claimed_at, queued.c.owner)
    )
    same = (claim_order.c.queue == queued.c.queue) & (claim_order.c.owner == queued.c.owner)
    ranked = (
        sa.select(queued.c.id, position.label("position")).select_from(queued.outerjoin(claim_order, same)).subquery()
    )
    query = sa.select(ranked.c.id, ranked.c.position).where(ranked.c.id.in_(list(job_ids)))
    with engine.connect() as connection:
        return {job_id: int(number) for job_id, number in connection.execute(query)}


def inference_pace(engine: Engine) -> float | None:
    """Return how many inference jobs end per second while others wait; None if that is unknown.

    Only the time since the oldest waiting job was queued counts, at most the last 10 minutes,
    because workers may have been idle earlier. The pace is unknown if no job waits, or if fewer
    than 5 jobs have ended in that time.
    """
    queued = sa.select(sa.func.min(jobs.c.queued_at)).where(waiting(), jobs.c.status == "queued", RUNS_INFERENCE)
    with engine.connect() as connection:
        oldest = connection.scalar(queued)
        if oldest is None:
            return None
        now = current_time(connection)
        since = max(float(oldest), now - _RECENT_S)
        ran = jobs.c.status.in_(("succeeded", "failed")) & jobs.c.started_at.is_not(None)
        ended = sa.select(jobs.c.finished_at).where(jobs.c.finished_at > since, ran, RUNS_INFERENCE)
        times = list(connection.scalars(ended.order_by(jobs.c.finished_at.desc()).limit(_RECENT_JOBS)))
    if len(times) < _LEAST_JOBS:
        return None
    return len(times) / max(now - (float(times[-1]) if len(times) == _RECENT_JOBS else since), 1e-3)


@dataclass(frozen=True)
class Pace:
    """The progress of a running training at its first and last report since it was last started.

    `first_at` and `last_at` are Unix times; `first_progress` and `last_progress` are fractions from
    0 to 1.
    """

    first_at: float
    first_progress: float
    last_at: float
    last_progress: float

    def remaining_s(self, now: float) -> float | None:
        """Return the seconds from `now` (Unix time) to the training's end at its pace so far.

        None if the training made no progress between the two reports; 0 if it should have ended
        already.
        """
        gained, seconds = self.last_progress - self.first_progress, self.last_at - self.first_at
        if gained <= 0 or seconds <= 0:
            return None
        return max(0.0, (1 - self.last_progress) * seconds / gained - (now - self.last_at))


def training_paces(engine: Engine) -> dict[str, Pace | None]:
    """Return the pace of each running training, keyed by job id; None before its first progress.

    A pace begins with the first progress event since the training was last started, so that a
    pause, the start of its process and an earlier run do not count.
    """
    running = sa.select(jobs.c.id).where(jobs.c.status == "running", jobs.c.kind == TRAINING)
    paces: dict[str, Pace | None] = {}
    with engine.connect() as connection:
        for job_id in connection.scalars(running).all():
            of_job = events.c.job_id == job_id
            started = sa.select(sa.func.max(events.c.seq)).where(of_job, events.c.name == "status").scalar_subquery()
            reports = sa.select(events.c.at, events.c.data).where(
                of_job, events.c.name == "progress", events.c.seq > started
            )
            first = connection.execute(reports.order_by(events.c.seq).limit(1)).first()
            last = connection.execute(reports.order_by(events.c.seq.desc()).limit(1)).first()
            paces[job_id] = (
                Pace(first.at, first.data["progress"], last.at, last.data["progress"]) if first and last else None
            )
    return paces
