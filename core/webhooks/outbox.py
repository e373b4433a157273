"""Insert webhook deliveries in the transaction that changes a job's status, so none is lost.

A delivery is only stored here; API processes send it later.
"""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import orjson
import sqlalchemy as sa

from core.jobs.database import current_time
from core.jobs.schema import jobs, webhook_deliveries
from core.webhooks.records import Delivery, Webhook

_COPIED = ("id", "kind", "status", "progress", "model", "version", "seed", "request_id", "problem")
_TIMES = ("created_at", "started_at", "finished_at")


def insert_delivery(connection: sa.Connection, job_id: str, status: str) -> None:
    """Insert a delivery that reports a job's new `status` to its webhook.

    Does nothing if the webhook's `events` do not include this status. The job must have a webhook.
    """
    columns = [jobs.c[name] for name in (*_COPIED, *_TIMES, "owner", "webhook")]
    job = connection.execute(sa.select(*columns).where(jobs.c.id == job_id)).one()
    webhook, event = Webhook.of(job.webhook), f"job.{status}"
    if event not in webhook.events:
        return
    now = current_time(connection)
    delivery = Delivery(
        id=f"msg_{int(now * 1000):012x}{uuid4().hex[:16]}",
        job_id=job_id,
        owner=job.owner,
        event=event,
        url=webhook.url,
        host=urlsplit(webhook.url).netloc.rpartition("@")[2][:255],
        body=orjson.dumps(_body(event, now, job)).decode(),
        due_at=now,
        created_at=now,
    )
    connection.execute(webhook_deliveries.insert().values(vars(delivery)))


def _body(event: str, now: float, job: Any) -> dict[str, Any]:
    """Return the body of a webhook's request: the event, its time, and the job without inputs.

    `event` is its name, such as job.failed; `now` is its Unix time, and `job` a row of the table
    `jobs`.
    """
    path = f"/v1/jobs/{job.id}"
    data = {name: getattr(job, name) for name in _COPIED}
    data |= {name: _iso(value) if (value := getattr(job, name)) else None for name in _TIMES}
    data["links"] = {"self": path, "result": f"{path}/result", "deliveries": f"{path}/deliveries"}
    return {"type": event, "timestamp": _iso(now), "data": data}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
