"""Claim webhook deliveries under a lease, record the outcomes, and list and delete deliveries.

Several API processes use the table at the same time. A claim sets `due_at` to the end of its lease
and increases the fencing token; the outcome of an attempt is written only with the token of its
claim. So no two processes send a delivery at the same time, and a delivery whose process died is
sent again.
"""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from core.jobs.database import NOW, current_time
from core.jobs.records import TERMINAL
from core.jobs.schema import jobs, transaction, webhook_deliveries
from core.webhooks.records import DELIVERED, FAILED, PENDING, Attempt, Delivery

RETRY_FACTOR = 3.0
MAX_RETRY_S = 3 * 3600.0
KEPT_AFTER_RESULT_S = 2 * 86_400.0

_CANDIDATES = 200
_MAX_ERROR = 300  # characters

_table = webhook_deliveries.c


class Deliveries:
    """The table of webhook deliveries, which several API processes may use."""

    def __init__(self, engine: sa.Engine, retry_s: float = 5.0, retry_period_s: float = 86_400.0) -> None:
        """Use the database of an open job store by its engine.

        `retry_s` is the delay before the first retry. Each further delay is `RETRY_FACTOR` times as
        long, at most `MAX_RETRY_S`. A delivery is given up `retry_period_s` seconds after its
        event. All times are in seconds.
        """
        self._engine = engine
        self._retry_s = retry_s
        self._retry_period_s = retry_period_s

    def any_due(self) -> bool:
        """Return whether a delivery can be claimed now: it is pending and `due_at` has passed."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(_table.id).where(_due()).limit(1)) is not None

    def claim(self, lease_s: float, limit: int, in_flight: Mapping[str, int], per_host: int) -> list[Delivery]:
        """Claim at most `limit` deliveries for `lease_s` seconds, the earliest `due_at` first.

        `in_flight` has the numbers of deliveries that the caller is sending already, keyed by host.
        Together with these, at most `per_host` deliveries go to one host; further deliveries to
        that host are not claimed, so that a slow receiver does not delay others.
        """
        hosts = Counter(in_flight)
        full = [host for host, number in hosts.items() if number >= per_host]
        query = sa.select(webhook_deliveries).where(_due(), _table.host.not_in(full)).order_by(_table.due_at)
        claimed: list[Delivery] = []
        with transaction(self._engine) as connection:
            rows = connection.execute(query.limit(_CANDIDATES).with_for_update(skip_locked=True)).all()
            for row in rows:
                delivery = Delivery(**row._asdict())
                if len(claimed) == limit:
                    break
                if hosts[delivery.host] >= per_host:
                    continue
                hosts[delivery.host] += 1
                change = {"token": delivery.token + 1, "due_at": NOW + lease_s}
                unchanged = (_table.id == delivery.id) & (_table.token == delivery.token) & _due()
                update = webhook_deliveries.update().where(unchanged).values(change)
                changed = connection.execute(update.returning(_table.token, _table.due_at)).first()
                if changed is not None:
                    claimed.append(replace(delivery, token=changed.token, due_at=changed.due_at))
        return claimed

    def record(self, delivery: Delivery, attempt: Attempt) -> bool:
        """Write the outcome of an attempt: delivered, given up, or to be retried after a delay.

        Returns True; False, and writes nothing, if the delivery was claimed again meanwhile.
        """
        held = (_table.id == delivery.id) & (_table.token == delivery.token) & (_table.status == PENDING)
        with transaction(self._engine) as connection:
            change = self._outcome(delivery, attempt, current_time(connection))
            return connection.execute(webhook_deliveries.update().where(held).values(change)).rowcount == 1

    def _outcome(self, delivery: Delivery, attempt: Attempt, now: float) -> dict[str, Any]:
        """Return the columns that the outcome of an attempt changes; `now` is the time in Unix
        time.
        """
        attempts = delivery.attempts + 1
        change: dict[str, Any] = {
            "attempts": attempts,
            "attempted_at": now,
            "response_status": attempt.response_status,
            "error": attempt.error[:_MAX_ERROR].replace("\0", "") if attempt.error else None,
        }
        if attempt.delivered:
            change |= {"status": DELIVERED, "ended_at": now}
        elif attempt.gone or now >= delivery.created_at + self._retry_period_s:
            change |= {"status": FAILED, "ended_at": now}
        else:
            delay_s = max(self.retry_delay_s(attempts), min(attempt.retry_after_s, MAX_RETRY_S))
            # the last attempt is at the end of the period
            change["due_at"] = min(now + delay_s, delivery.created_at + self._retry_period_s)
        return change

    def retry_delay_s(self, attempts: int) -> float:
        """Return the delay in seconds before the next attempt, after `attempts` failed ones.

        It grows exponentially up to `MAX_RETRY_S`, with a random factor from 0.8 to 1.2.
        """
        delay_s = self._retry_s * RETRY_FACTOR ** min(attempts - 1, 40)
        return min(delay_s, MAX_RETRY_S) * random.uniform(0.8, 1.2)

    def listing(self, job_id: str, owner: str, after: str | None, limit: int) -> list[Delivery]:
        """Return at most `limit` deliveries of an owner's job, newest first.

        `after` is the id of a delivery: only older ones are returned; None starts at the newest.
        """
        query = sa.select(webhook_deliveries).where(_table.job_id == job_id, _table.owner == owner)
        if after:
            query = query.where(_table.id < after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_table.id.desc()).limit(limit))
            return [Delivery(**row._asdict()) for row in rows]

    def exists(self, delivery_id: str, job_id: str, owner: str) -> bool:
        """Return whether a job of this owner has a delivery with this id."""
        if "\0" in delivery_id:  # PostgreSQL accepts it in no text
            return False
        same = (_table.id == delivery_id) & (_table.job_id == job_id) & (_table.owner == owner)
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(_table.id).where(same)) is not None

    def delete_expired(self, result_ttl_s: float) -> int:
        """Delete the deliveries of jobs whose results expired more than two days ago.

        `result_ttl_s` is the time to live of results in seconds. No delivery of a job is deleted
        while a delivery of that job is pending or newer, or while the job is unfinished. Returns
        the number of deleted rows.
        """
        cutoff = NOW - (result_ttl_s + KEPT_AFTER_RESULT_S)
        other = webhook_deliveries.alias()
        kept = sa.select(other.c.id).where(
            other.c.job_id == _table.job_id, (other.c.created_at >= cutoff) | (other.c.status == PENDING)
        )
        unfinished = sa.select(jobs.c.id).where(jobs.c.id == _table.job_id, jobs.c.status.not_in(TERMINAL))
        old = (_table.created_at < cutoff) & ~kept.exists() & ~unfinished.exists()
        with self._engine.connect() as connection:
            if connection.scalar(sa.select(_table.id).where(_table.created_at < cutoff).limit(1)) is None:
                return 0
        with transaction(self._engine) as connection:
            return connection.execute(webhook_deliveries.delete().where(old)).rowcount


def _due() -> sa.ColumnElement[bool]:
    """Return the SQL condition of pending deliveries whose `due_at` has passed."""
    return (_table.status == PENDING) & (_table.due_at <= NOW)
