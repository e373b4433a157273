"""Claim jobs whose input images are given by URL, and store the images that were fetched."""

from collections.abc import Collection

import sqlalchemy as sa

from core.jobs import transitions
from core.jobs.claims import lock_next, queue_of, record_claims, register_owners, set_claimed
from core.jobs.queries import JobQueries, waiting
from core.jobs.records import Claim, Job
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
            job = lock_next(connection, _QUEUE, claimable)
            if job is None:
                return None
            (claimed,) = set_claimed(connection, [job], holder, lease_s)
            record_claims(connection, _QUEUE, [job.owner])
            return claimed

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
