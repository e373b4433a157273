"""Poll for the next message for a moment before the worker's event loop sleeps.

A client that sends its next request as soon as it has a response is back within a millisecond or
two. Waking a sleeping processor for that message takes a good part of such a gap. So after a
message the loop polls for at most `POLL_S`, but only while messages come so densely that this
helps.
"""

import os
import time
from typing import Any

POLL_S = 0.002  # how long the loop polls after a message

# The loop polls if the last message came within this time after the one before it was handled.
DENSE_GAP_S = 0.004


# See docs/decisions.md#a-worker-polls-for-two-milliseconds-after-its-last-message
class BusyPoll:
    """Polls for messages in `tick`, which kombu's hub calls before it waits for events."""

    def __init__(self) -> None:
        """Start without polling, until two messages have come in close succession."""
        self._handled_at = 0.0
        self._until = 0.0
        self._dense = False

    def message_received(self) -> None:
        """Measure the time since the last message was handled; call this when a message arrives."""
        self._dense = time.perf_counter() - self._handled_at <= DENSE_GAP_S

    def message_handled(self) -> None:
        """Poll for the next `POLL_S` seconds if messages come in close succession."""
        self._handled_at = time.perf_counter()
        self._until = self._handled_at + POLL_S if self._dense else 0.0

    def register(self, hub: Any) -> None:
        """Call `tick` each time before this hub waits for events; a second call changes nothing."""
        self._hub = hub
        hub.on_tick.add(self.tick)

    def tick(self) -> None:
        """Poll until there is an event, which the hub then handles, or the polling time is over."""
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
