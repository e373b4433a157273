"""Poll the queue server for up to `POLL_S` seconds before the worker's event loop sleeps.

A client that sends its next request as soon as it has a response does so within a millisecond or
two. To wake a sleeping processor for that message takes a good part of this time. The loop polls
only after a message that came within `DENSE_GAP_S` seconds of the one before; otherwise it sleeps
at once.
"""

import os
import time
from typing import Any

POLL_S = 0.002  # how long the loop polls after a message

# The loop polls if the last message came within this time after the one before it was handled.
DENSE_GAP_S = 0.004


# See docs/decisions.md#a-worker-polls-for-two-milliseconds-after-its-last-message
class BusyPoll:
    """Polls for messages each time before the event loop (kombu's hub) would sleep."""

    def __init__(self) -> None:
        """Start without polling; polling begins after two messages in close succession."""
        self._handled_at = 0.0
        self._until = 0.0
        self._dense = False

    def message_received(self) -> None:
        """Record whether a message, which has just arrived, came soon after the previous one.

        Soon is within `DENSE_GAP_S` seconds after the previous message was handled.
        """
        self._dense = time.perf_counter() - self._handled_at <= DENSE_GAP_S

    def message_handled(self) -> None:
        """Allow polling for the next `POLL_S` seconds if the message just handled came soon.

        If it came more than `DENSE_GAP_S` seconds after the previous message, the event loop
        sleeps.
        """
        self._handled_at = time.perf_counter()
        self._until = self._handled_at + POLL_S if self._dense else 0.0

    def idle_s(self) -> float:
        """Return the time since the last message was handled, in seconds."""
        return time.perf_counter() - self._handled_at

    def register(self, hub: Any) -> None:
        """Make the event loop `hub` call `tick` each time before it waits for events.

        To register the same loop twice changes nothing.
        """
        self._hub = hub
        hub.on_tick.add(self.tick)

    def tick(self) -> None:
        """Poll until an event arrives, which the event loop then handles, or the time is over.

        Return at once if the polling time is already over.
        """
        if time.perf_counter() >= self._until:
            return
        # callbacks run in any order: the transport's, which asks the queue server for a message,
        # has to run first
        for callback in self._hub.on_tick - {self.tick}:
            callback()
        poll = self._hub.poller.poll
        while not poll(0) and time.perf_counter() < self._until:
            os.sched_yield()  # the sender of the next message may need this processor
        self._until = 0.0


busy_poll = BusyPoll()
"""The tick callback of this process; a solo worker has one event loop."""
