"""Recovery of jobs whose holder died."""

import time

import sqlalchemy.exc

from core.jobs.records import Claim
from core.jobs.store import JobStore
from core.settings import HEARTBEAT_S


class LeaseReaper:
    """Returns the jobs of dead holders to their queues.

    While the database cannot be written (full disk, locked, unreachable), live holders cannot renew
    their leases either. So the reaper first does a write without a change to a job with an expired
    lease. If that works, it gives the holder the time of two heartbeats to renew the lease; after a
    failed write, the time of a whole lease. So a full disk is not charged to a job as an attempt.
    """

    def __init__(self, job_store: JobStore, lease_s: float, max_attempts: int) -> None:
        self._job_store = job_store
        self._lease_s = lease_s
        self._grace_s = min(lease_s, 2 * HEARTBEAT_S)
        self._max_attempts = max_attempts
        self._not_before = 0.0
        self._first_seen: dict[Claim, float] = {}

    def reap(self) -> list[str]:
        """Return the jobs of dead holders to their queues; return their ids.

        Raises the errors of the database.
        """
        now = time.monotonic()
        if now < self._not_before:
            return []
        try:
            self._first_seen = {claim: self._first_seen.get(claim, now) for claim in self._job_store.touch_lapsed()}
            due = [claim.job_id for claim, first_seen in self._first_seen.items() if now - first_seen >= self._grace_s]
            return self._job_store.reap(self._max_attempts, due) if due else []
        except sqlalchemy.exc.DBAPIError:
            self._not_before = now + self._lease_s
            self._first_seen = {}
            raise
