"""Limits HTTP connections: a minimum rate of transfers, and the memory of write buffers."""

import asyncio


class ProgressCredit:
    """Checks that a transfer keeps to a minimum rate. It is too slow when `left_s` reaches 0.

    `left_s`, in seconds, starts at the time-out. It decreases with time, and increases with the
    transferred bytes, up to the time-out. So a transfer may pause, but its average rate must reach
    the minimum.
    """

    __slots__ = ("_rate", "_timeout_s", "left_s")

    def __init__(self, timeout_s: float, rate: float) -> None:
        """Set `left_s` to the time-out, in seconds.

        `rate` is the minimum rate in bytes per second.
        """
        self._timeout_s = timeout_s
        self._rate = rate
        self.left_s = timeout_s

    def update(self, elapsed_s: float, moved_bytes: int) -> None:
        """Subtract the elapsed time from `left_s`, and add the time that the transferred bytes
        earn.

        `moved_bytes` bytes earn the time in which they would be transferred at the minimum rate.
        `left_s` never exceeds the time-out.
        """
        self.left_s = min(self._timeout_s, self.left_s - elapsed_s + moved_bytes / self._rate)

    def refill(self) -> None:
        """Reset `left_s` to the time-out."""
        self.left_s = self._timeout_s

    @property
    def low(self) -> bool:
        """Whether `left_s` is less than half of the time-out."""
        return self.left_s < self._timeout_s / 2


class StalledWrites:
    """Counts the bytes that wait in the write buffers of connections, and limits them.

    Only buffers above the high-water mark count, which belong to clients that read slower than the
    server writes.
    """

    def __init__(self, limit: int) -> None:
        """Allow at most `limit` bytes in all counted write buffers together."""
        self._limit = limit
        self._sizes: dict[asyncio.Transport, int] = {}
        self.held = 0

    def add(self, transport: asyncio.Transport) -> list[asyncio.Transport]:
        """Count the write buffer of a connection that has exceeded the high-water mark.

        If all counted buffers together exceed the limit, returns the connections to abort, which
        are the ones that have been counted for the longest time. These are not counted any more.
        """
        self.remove(transport)
        self._sizes[transport] = size = transport.get_write_buffer_size()
        self.held += size
        excess = []
        while self.held > self._limit:
            oldest = next(iter(self._sizes))
            self.remove(oldest)
            excess.append(oldest)
        return excess

    def remove(self, transport: asyncio.Transport) -> None:
        """Stop counting a connection, whose client has read most of the buffer or has left."""
        self.held -= self._sizes.pop(transport, 0)
