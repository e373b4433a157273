"""Run this service's Celery tasks directly in Celery's consumer, without its pool and tracer."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Task

from workers.inference.busy_poll import busy_poll

log = logging.getLogger(__name__)


# See docs/decisions.md#workers-run-messages-inline-without-acknowledgements
class InlineTask(Task):  # type: ignore[misc] # celery is not typed
    """A Celery task that runs as soon as its message is received, without Celery's request object.

    Celery's default strategy builds a `Request` for each message and runs it through the pool and a
    tracer, for retries, ETA and expiry, revocation, rate and time limits, acknowledgements,
    results, events and task signals. That takes about half a millisecond, as long as a small
    model's whole forward pass. This service uses none of these features: deadlines and retries are
    handled by the API process or the job store, and time limits by the watchdog. For the same
    reason `celery inspect active` never lists these tasks; the workers' heartbeats do
    (`core.broker.keys.WORKERS`).

    `python benchmarks/messages.py` measures both strategies.
    """

    abstract = True
    ignore_result = True

    def start_strategy(self, app: Any, consumer: Any, **_options: Any) -> Callable[..., None]:  # noqa: ARG002
        """Return the function that Celery's consumer calls with each message for this task.

        The function runs the task at once and logs an exception that the task raises.
        """

        def handle(message: Any, *_arguments: object, **_more: object) -> None:
            args, kwargs, _embed = message.payload
            busy_poll.message_received()
            try:
                self.run(*args, **kwargs)
            except Exception:
                log.exception("task failed", extra={"task": self.name})
            busy_poll.message_handled()

        return handle
