"""Waiting for the results of requests with one timer for all of them."""

import asyncio

from api.batching.requests import PendingRequest
from core.broker.codec import Fields

# Seconds after which a wait ends without a result, so that its caller can check whether the client
# is connected.
WAIT_S = 1.0


class StillWaitingError(Exception):
    """There is no result after `WAIT_S`; wait again."""


class ResultWaits:
    """The waits for results, with one timer: a timer for each wait would cost more CPU time than the wait itself."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start without waits and without a timer."""
        self._loop = loop
        self._due: dict[PendingRequest, float] = {}  # the earliest first, as all last equally long
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, request: PendingRequest) -> Fields:
        """Return the result of a request.

        Raises the exception of the request, or StillWaitingError after `WAIT_S` seconds without a
        result.
        """
        self._due[request] = self._loop.time() + WAIT_S
        if self._timer is None:
            self._timer = self._loop.call_later(WAIT_S, self._end_waits)
        try:
            return await request.result
        finally:
            self._due.pop(request, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _end_waits(self) -> None:
        """End the waits that are due: fail their futures with StillWaitingError, and
        replace them.
        """
        now, self._timer = self._loop.time(), None
        for request, due in list(self._due.items()):
            if due > now:
                self._timer = self._loop.call_at(due, self._end_waits)
                return
            del self._due[request]
            if not request.result.done():
                request.result.set_exception(StillWaitingError())
                request.result = self._loop.create_future()
