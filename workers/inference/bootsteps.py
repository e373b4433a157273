"""Add bootsteps and signal handlers of an inference worker to Celery's worker.

Celery starts the worker's steps in the order of what they require, the consumer last: models are
loaded before the first message is received.
"""

import os
import signal
import warnings
from typing import Any

from celery import bootsteps, signals
from celery.platforms import SecurityWarning
from celery.worker.state import maybe_shutdown

from core import log, tracing
from core.broker.celery_app import app
from core.settings import settings
from core.startup import QueueGuard
from workers.inference.busy_poll import busy_poll
from workers.inference.worker import InferenceWorker

# How often a worker looks for a candidate version, and takes one step in loading it.
CANDIDATE_POLL_S = 0.1

# It is about running as root, which in a container has no rights outside.
warnings.simplefilter("ignore", SecurityWarning)

_workers: list[InferenceWorker] = []


def current_worker() -> InferenceWorker:
    """Return the worker of this process, for the tasks.

    Raises IndexError if Celery has not run `InferenceStep` yet.
    """
    return _workers[-1]


class InferenceStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery is not typed
    """Loads the active models before Celery's consumer starts.

    After the consumer has stopped, it stops the worker's threads.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Create the worker, load its models and start its heartbeat."""
        # the queue server may turn out to be another instance's
        self._guard = QueueGuard(settings(), lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._guard.start()
        tracing.set_up(settings(), "inference")
        self._worker = InferenceWorker(settings())
        _workers.append(self._worker)
        self._worker.start(check_stop=maybe_shutdown)

    def stop(self, parent: Any) -> None:
        """Stop the worker's threads.

        Sets exit status 1 if another instance of the service has marked the queue server as its
        own.
        """
        if _workers:
            self._worker.stop()
        if self._guard.exit_status:
            parent.exitcode = self._guard.exit_status


class EventLoopStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets the event loop load candidates, poll before it sleeps, and interrupt long work.

    Celery has an event loop for each connection to the queue server.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Register timers and callbacks with the event loop of a new connection.

        Celery cancels its timers when the connection breaks, and calls this again for the next one.
        """
        hub.call_repeatedly(CANDIDATE_POLL_S, current_worker().candidates.load_step)
        busy_poll.register(hub)
        current_worker().context.preemption.consumer = parent


app.steps["worker"].add(InferenceStep)
app.steps["consumer"].add(EventLoopStep)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logging(**_arguments: object) -> None:
    """Configure logging as in the other programs of the service, instead of Celery's logging."""
    log.set_up(settings().log_level, "worker")


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(**_arguments: object) -> None:
    """Make the heartbeat say that the worker stops after its current message."""
    for worker in _workers:
        worker.drain()
