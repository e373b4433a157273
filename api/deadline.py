"""Reads and enforces the deadline of a request, sent as `Request-Timeout: SECONDS`.

The seconds count from the arrival of the header. After the deadline the work stops: a synchronous
request gets 504, and a job ends as failed with a problem of status 504. The header has a duration
and not a time, as the headers of gRPC, fal and Portkey have, because the clocks of clients and
service differ.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from typing import Any

from api.errors import DeadlineExceededError, InvalidError, MalformedError

HEADER = b"request-timeout"
MAX_TIMEOUT_S = 31_536_000  # a year

_SECONDS = re.compile(rb"-?[0-9]{1,15}(\.[0-9]{1,20})?")  # as long as clients write floats
_SCOPE_KEY = "reverie_deadline"


def read_deadline(header: bytes) -> float:
    """Return when the time in a `Request-Timeout` header is over, in seconds since the epoch.

    Raises MalformedError if the header is no number, and InvalidError if it is not above 0 or is
    more than a year.
    """
    text = header.strip()
    if not _SECONDS.fullmatch(text):
        shown = header.decode("latin-1")[:60]
        raise MalformedError(f"Request-Timeout: {shown!r} is no number of seconds; send, for example, 30 or 0.5")
    timeout_s = float(text)
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        past = "the deadline is over already" if timeout_s <= 0 else "it is too far away"
        detail = f"{timeout_s:g} s: {past}; send more than 0 and at most {MAX_TIMEOUT_S} seconds"
        raise InvalidError.in_field("header.Request-Timeout", detail)
    return time.time() + timeout_s


def set_deadline(scope: MutableMapping[str, Any], header: bytes) -> float:
    """Store the deadline from a `Request-Timeout` header in a request's scope, and return it.

    The deadline is in seconds since the epoch. Raises MalformedError if the header is no number,
    and InvalidError if it is out of range.
    """
    deadline_at = read_deadline(header)
    scope[_SCOPE_KEY] = deadline_at
    return deadline_at


def deadline_of(scope: Mapping[str, Any]) -> float | None:
    """Return the deadline of a request, in seconds since the epoch; None if no deadline is set."""
    deadline: float | None = scope.get(_SCOPE_KEY)
    return deadline


@contextlib.asynccontextmanager
async def stop_at(deadline_at: float) -> AsyncIterator[asyncio.Timeout]:
    """Run a block until a deadline; then cancel it and raise DeadlineExceededError.

    Yields the `asyncio.Timeout`. Once a response has started, call the timeout's
    `reschedule(None)`, so that the block is not cancelled at the deadline.
    """
    try:
        async with asyncio.timeout(max(0.0, deadline_at - time.time())) as timeout:
            yield timeout
    except TimeoutError:
        if not timeout.expired():
            raise  # a time-out within the block
        raise DeadlineExceededError("the deadline of the request has passed; its work was stopped") from None
