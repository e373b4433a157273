"""Claim jobs whose input images are given by URL, and store the images that were fetched."""

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.claims import next_owner, queue_of, record_claims, register_owners
from core.jobs.queries import JobQueries, jobs_of, waiting
from core.jobs.records import Claim, Event, Job
from core.jobs.schema import jobs, transaction

_QUEUE = "inputs"


class JobInputs(JobQueries):
    """The part of the job store for API processes that fetch the input images of jobs by URL."""

    def claim_inputs(self, holder: str, lease_s: float, skip_owners: Collection[str] = ()) -> Job | None:
        """Claim the next job whose images must be fetched by URL; return None if there is none.

        `holder` becomes the owner of its lease for `lease_s` seconds. Owners take turns; jobs of
        `skip_owners` are not claimed and stay queued.
        """
        claimable = waiting() & jobs.c.input_urls.is_not(None) & jobs.c.owner.not_in(list(skip_owners))
        with self.engine.connect() as connection:
            if connection.scalar(sa.select(jobs.c.id).where(claimable).limit(1)) is None:
                return None
        with transaction(self.engine) as connection:
            owner = next_owner(connection, _QUEUE, claimable)
            oldest = sa.select(jobs).where(claimable, jobs.c.owner == owner).order_by(jobs.c.queued_at).limit(1)
            found = jobs_of(connection.execute(oldest.with_for_update(skip_locked=True)))
            if not found:
                return None
            job = found[0]
            change: dict[str, Any] = {
                "status": "running",
                "token": job.token + 1,
                "lease_holder": holder,
                "lease_until": time.time() + lease_s,
                "started_at": job.started_at or time.time(),
            }
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(change))
            transitions.append_events(connection, job.id, [Event("status", {"status": "running"})])
            record_claims(connection, _QUEUE, [job.owner])
            return replace(job, **change)

    def set_inputs(self, claim: Claim, job: Job) -> bool:
        """Store the fetched images of a claimed job, and queue it for the workers.

        `job` is the record of the claimed job in which `items` or `items_blob`, `rows`,
        `rows_per_image` and `request` have new values; only these columns are copied to the
        database. Returns True; False, and writes nothing, if the claim is no longer valid.
        """
        names = ("items", "items_blob", "rows", "rows_per_image", "request")
        change = {name: getattr(job, name) for name in names} | {"input_urls": None, "attempts": 0}
        with transaction(self.engine) as connection:
            register_owners(connection, [(queue_of(job.kind), job.owner)])
            return transitions.requeue(
                connection, transitions.held_by(claim), claim.job_id, "its inputs were fetched", **change
            )
