"""Define what an inference worker does when Celery's worker starts, stops or connects.

The worker receives messages before its models are loaded: each request loads the model it needs.
"""

import os
import signal
import warnings
from typing import Any

from celery import bootsteps, signals
from celery.platforms import SecurityWarning
from kombu.entity import Queue

from core import log, tracing
from core.broker.celery_app import app
from core.broker.keys import QUEUES, queue_key
from core.settings import settings
from core.startup import QueueGuard
from workers.inference.busy_poll import busy_poll
from workers.inference.worker import InferenceWorker

# How often a worker looks for versions to load and batch plans to measure. It then takes one step,
# or steps for the length of a time slice if no message came within `IDLE_S` seconds.
LOADER_POLL_S, IDLE_S = 0.1, 0.25

# It is about running as root, which in a container has no rights outside.
warnings.simplefilter("ignore", SecurityWarning)

_workers: list[InferenceWorker] = []


def current_worker() -> InferenceWorker:
    """Return the `InferenceWorker` of this process, for use by the Celery tasks.

    Raises IndexError while there is none: `InferenceStep` creates it when Celery starts.
    """
    return _workers[-1]


class InferenceStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery is not typed
    """A bootstep that creates the inference worker before Celery's consumer starts.

    When Celery's worker stops, the step stops the threads of the inference worker.
    """

    requires = ("celery.worker.components:Pool",)

    def start(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Create the inference worker and start its heartbeat."""
        # the queue server may turn out to be another instance's
        self._guard = QueueGuard(settings(), lambda: os.kill(os.getpid(), signal.SIGTERM))
        self._guard.start()
        tracing.set_up(settings(), "inference")
        self._worker = InferenceWorker(settings())
        _workers.append(self._worker)
        for key in (queue_key(queue, target) for target in self._worker.context.targets for queue in QUEUES):
            app.amqp.queues.select_add(Queue(key, routing_key=key, no_ack=True))
        if self._worker.context.models:
            app.amqp.queues.deselect([queue_key(queue) for queue in QUEUES])
        self._worker.start()

    def stop(self, parent: Any) -> None:
        """Stop the threads of the inference worker, after Celery's consumer has stopped.

        The exit status becomes non-zero if the worker stops because the queue server turned out to
        belong to another instance of the service.
        """
        if _workers:
            self._worker.stop()
        if self._guard.exit_status:
            parent.exitcode = self._guard.exit_status


class EventLoopStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """A bootstep that adds this service's callbacks to Celery's event loop.

    They load models and measure their batch sizes, poll for messages before the loop sleeps, and
    let small batches interrupt long work. Celery makes a new event loop for each connection to the
    queue server.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Add the timer and the callbacks to `hub`, the event loop of a new connection.

        Celery cancels the timer when the connection breaks, and calls this method again after it
        has reconnected. `parent` is the consumer of the connection.
        """
        worker = current_worker()
        worker.receiving = True
        busy_poll.register(hub)
        worker.context.preemption.consumer = parent
        hub.call_soon(_load_models)
        hub.call_repeatedly(LOADER_POLL_S, _load_models)


def _load_models() -> None:
    """Load models and measure batch sizes, one step per call or, while no messages come, several.

    `EventLoopStep` calls this function every `LOADER_POLL_S` seconds.
    """
    worker = current_worker()
    idle = busy_poll.idle_s() > IDLE_S
    worker.loader.run(worker.context.settings.time_slice_s if idle else 0.0)


app.steps["worker"].add(InferenceStep)
app.steps["consumer"].add(EventLoopStep)


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logging(**_arguments: object) -> None:
    """Configure logging as in the service's other programs, instead of by Celery's defaults."""
    log.set_up(settings().log_level, "worker")


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def drain(**_arguments: object) -> None:
    """Make the heartbeat report "draining" when Celery's worker begins to stop."""
    for worker in _workers:
        worker.drain()
