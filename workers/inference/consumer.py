"""Define the Celery consumer of inference workers: it reconnects soon after an outage.

The setting `worker_consumer` in `core.broker.celery_app` names the class. Only a worker imports it.
"""

import logging
from typing import Any

from celery.worker import consumer
from celery.worker.state import maybe_shutdown

log = logging.getLogger(__name__)

RETRY_S = 1.0  # between two tries to connect


# See docs/decisions.md#inference-workers-reconnect-every-second
class Consumer(consumer.Consumer):  # type: ignore[misc] # celery is not typed
    """A consumer that tries every `RETRY_S` seconds to connect to the queue server, until it can.

    Celery's consumer pauses longer after each failure, up to 30 s. The heartbeat has a connection
    of its own and is back earlier: API processes would send batches to a worker that does not
    receive them yet.
    """

    def ensure_connected(self, conn: Any) -> Any:
        """Connect `conn`, a connection of kombu, and return it.

        Raises WorkerShutdown or WorkerTerminate if the worker is to stop meanwhile.
        """

        def log_failure(error: Exception, _pause_s: float) -> None:
            log.warning("queue server unreachable", extra={"url": conn.as_uri(), "reason": str(error)})

        intervals = {"interval_start": RETRY_S, "interval_step": 0, "interval_max": RETRY_S}
        conn.ensure_connection(log_failure, callback=maybe_shutdown, **intervals)
        self.first_connection_attempt = False
        return conn
