"""Give back jobs whose holder fell silent, but only where its silence means that it died."""

import time

import sqlalchemy.exc

from core.jobs.store import JobStore
from core.settings import HEARTBEAT_S


class LeaseReaper:
    """Gives back lapsed leases once their holders could have renewed them and did not.

    While the database cannot be written (its disk is full, it is locked or away) no holder can renew its lease. So a
    lease that is found lapsed is first written to, as it is: where that works, a holder that lives can renew it, too,
    and has the time of some heartbeats to do so. After a write that failed, it has the time of a whole lease. So a full
    disk is not held against a job.
    """

    def __init__(self, job_store: JobStore, lease_s: float, max_attempts: int) -> None:
        self._job_store = job_store
        self._lease_s = lease_s
        self._grace_s = min(lease_s, 2 * HEARTBEAT_S)
        self._max_attempts = max_attempts
        self._not_before = 0.0
        self._suspects: dict[tuple[str, int], float] = {}

    def reap(self) -> list[str]:
        """Give back lapsed jobs; return their ids. Raises what the database raises."""
        now = time.monotonic()
        if now < self._not_before:
            return []
        try:
            lapsed = self._job_store.touch_lapsed()
            due = [key[0] for key in lapsed if now - self._suspects.get(key, now) >= self._grace_s]
            self._suspects = {key: self._suspects.get(key, now) for key in lapsed}
            return self._job_store.reap(self._max_attempts, due) if due else []
        except sqlalchemy.exc.DBAPIError:
            self._not_before = now + self._lease_s
            self._suspects = {}
            raise
