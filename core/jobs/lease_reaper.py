"""Recovery of jobs whose holder died."""

import time

import sqlalchemy.exc

from core.jobs.records import Claim
from core.jobs.store import JobStore
from core.settings import HEARTBEAT_S


class LeaseReaper:
    """Takes jobs from holders that could have renewed their leases and did not.

    While the database cannot be written (its disk is full, it is locked or away), no holder can
    renew its lease. So the reaper first writes to a job whose lease has lapsed, without a change.
    If that works, a live holder can write too, and gets the time of some heartbeats to do so. After
    a failed write, it gets the time of a whole lease. So a full disk is not counted against a job.
    """

    def __init__(self, job_store: JobStore, lease_s: float, max_attempts: int) -> None:
        self._job_store = job_store
        self._lease_s = lease_s
        self._grace_s = min(lease_s, 2 * HEARTBEAT_S)
        self._max_attempts = max_attempts
        self._not_before = 0.0
        self._first_seen: dict[Claim, float] = {}

    def reap(self) -> list[str]:
        """Return jobs of dead holders to their queues.

        Return their ids. Raises what the database raises.
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
