"""Limits of HTTP connections: how many, how many header bytes, and how slow a transfer may be."""

from dataclasses import dataclass

from core.settings import Settings


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of one connection, and on their number. Times are in seconds, rates in bytes per second."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    idle_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    min_transfer_rate: float

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        """Return the limits in the settings."""
        return cls(
            max_connections=settings.max_connections,
            max_header_bytes=settings.max_header_bytes,
            header_timeout_s=settings.header_timeout_s,
            idle_timeout_s=settings.idle_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            min_transfer_rate=settings.min_transfer_rate,
        )

    @property
    def check_interval_s(self) -> float:
        """Seconds between two checks of a connection."""
        shortest = min(self.header_timeout_s, self.idle_timeout_s, self.body_timeout_s, self.write_timeout_s)
        return min(2.5, shortest / 4)


class ProgressCredit:
    """Seconds that a transfer may still go without progress, `left_s`.

    Time uses them up, and bytes earn them back, up to the time-out: a transfer faster than the minimum rate never runs
    out of them, one that stops or trickles does.
    """

    __slots__ = ("_rate", "_timeout_s", "left_s")

    def __init__(self, timeout_s: float, rate: float) -> None:
        """Begin with the whole time-out; `rate` is in bytes per second."""
        self._timeout_s = timeout_s
        self._rate = rate
        self.left_s = timeout_s

    def update(self, elapsed_s: float, moved_bytes: int) -> None:
        """Count the time that has passed, and the bytes that moved in it."""
        self.left_s = min(self._timeout_s, self.left_s - elapsed_s + moved_bytes / self._rate)

    def refill(self) -> None:
        """Give the whole time-out again."""
        self.left_s = self._timeout_s

    @property
    def low(self) -> bool:
        """Whether more than half of the time-out is used up."""
        return self.left_s < self._timeout_s / 2
