"""Results that a worker has computed and cannot record, because the job store is full or unavailable."""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy.exc

from core.jobs.records import Claim, SliceReport
from core.jobs.store import JobStore
from core.storage import storage_problem

log = logging.getLogger(__name__)


class UnsavedReports:
    """Keeps reports and deferrals of jobs until the job store is writable.

    Until then their jobs stay claimed, their leases are renewed, and the worker claims no more.
    Nothing is computed a second time and no attempt is charged. After `wait_s` seconds the reports
    are replaced by failures (507 or 503 with the reason), which are small writes that may still
    succeed.
    """

    def __init__(self, job_store: JobStore, wait_s: float) -> None:
        self._job_store = job_store
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._reports: list[SliceReport] = []
        self._deferred: list[tuple[Claim, dict[str, Any], int]] = []
        self._since = 0.0

    @property
    def waiting(self) -> bool:
        """Whether a report or deferral is not recorded yet."""
        return bool(self._reports or self._deferred)

    def defer(self, claim: Claim, problem: dict[str, Any], size_bytes: int) -> None:
        """Keep a deferral, which the next `add` or `save` records: the job waits for disk space."""
        with self._lock:
            self._deferred.append((claim, problem, size_bytes))

    def add(self, reports: Sequence[SliceReport]) -> list[str]:
        """Record these reports and all kept ones, or keep them; return the ids of the
        written jobs.
        """
        with self._lock:
            self._reports.extend(reports)
            self._since = time.monotonic()
        return self.save()

    def save(self) -> list[str]:
        """Record the kept reports and deferrals; return the ids of the jobs that were written.

        They stay kept while the job store is not writable.
        """
        with self._lock:
            written: list[str] = []
            try:
                while self._deferred:
                    claim, problem, size_bytes = self._deferred[-1]
                    if self._job_store.defer(claim, problem, self._wait_s, size_bytes):
                        written.append(claim.job_id)
                    self._deferred.pop()
                if self._reports:
                    recorded = self._job_store.record_slices(self._reports)
                    if len(recorded) < len(self._reports):
                        log.warning("claims lost", extra={"jobs": len(self._reports) - len(recorded)})
                    written += recorded
                    self._reports = []
            except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError) as error:
                log.warning("job store not writable; retrying", extra={"reason": str(error.orig)})
                if time.monotonic() - self._since >= self._wait_s:
                    problem = storage_problem(error)
                    self._reports = [SliceReport(report.claim, problem=problem) for report in self._reports]
            except Exception:
                self._reports, self._deferred = [], []  # it would fail again; the leases lapse
                raise
            return written
