"""Give back jobs whose holder fell silent, but only where its silence means that it died."""

import time

import sqlalchemy.exc

from workers.ledger import Ledger


class LeaseReaper:
    """Gives back lapsed leases, except just after the database could not be written.

    While it cannot be written (its disk is full, it is locked or away) no holder can renew its lease. So after each
    failed write, and after this process has started and does not know what was before, holders get one lease's time
    to renew before their leases count as lapsed: a full disk is not held against a job.
    """

    def __init__(self, ledger: Ledger, lease_s: float, max_attempts: int) -> None:
        """Begin with the time that holders get at a start."""
        self._ledger = ledger
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self.failed()

    def failed(self) -> None:
        """Note that the database could not be written now."""
        self._not_before = time.monotonic() + self._lease_s

    def reap(self) -> list[str]:
        """Give back lapsed jobs; return their ids. Raises what the database raises."""
        if time.monotonic() < self._not_before:
            return []
        try:
            return self._ledger.reap(self._max_attempts)
        except sqlalchemy.exc.DBAPIError:
            self.failed()
            raise
