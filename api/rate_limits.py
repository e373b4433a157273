"""Limits the request rate of owners and the wrong keys of addresses, in one API process.

The library `limits` does the counting.
"""

import math
import time

from limits import RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

# The limiter is asked for 1/20 of a window's requests at a time, because each call is expensive.
_SHARE = 20

REQUESTS = b"requests_per_second"  # the limit's name, as in GET /v1/me and in problems


class RateLimits:
    """Limits requests per second of each owner, and wrong keys per minute of each IP address."""

    def __init__(self, wrong_keys_per_minute: int) -> None:
        """Set how many wrong keys an IP address may send per minute."""
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._wrong_keys = RateLimitItemPerMinute(wrong_keys_per_minute)
        # by owner: requests left in its portion, the window's end, and requests left besides
        self._portions: dict[str, tuple[int, float, int]] = {}

    def wrong_key(self, address: str) -> int:
        """Count a wrong API key from an IP address; return how many seconds the address must wait.

        Returns 0 if the address has not sent too many wrong keys in this minute.
        """
        if self._limiter.hit(self._wrong_keys, "wrong key", address):
            return 0
        reset = self._limiter.get_window_stats(self._wrong_keys, "wrong key", address).reset_time
        return max(1, math.ceil(reset - time.time()))

    def request(self, owner: str, per_second: int) -> bool:
        """Count a request of an owner; return whether the owner's limit allows it.

        `per_second` is the number of requests that are allowed per second; 0 means no limit.
        """
        if not per_second:
            return True
        left, until, beyond = self._portions.get(owner, (0, 0.0, 0))
        now = time.time()
        if left > 0 and now < until:
            self._portions[owner] = (left - 1, until, beyond)
            return True
        item = RateLimitItemPerSecond(per_second)
        for portion in (max(1, per_second // _SHARE), 1):
            if self._limiter.hit(item, "request", owner, cost=portion):
                window = self._limiter.get_window_stats(item, "request", owner)
                self._portions[owner] = (portion - 1, window.reset_time, window.remaining)
                return True
        self._portions[owner] = (0, until, 0)
        return False

    def headers(self, owner: str, per_second: int) -> list[tuple[bytes, bytes]]:
        """Return the header fields `RateLimit` and `RateLimit-Policy` for an owner's response.

        See draft-ietf-httpapi-ratelimit-headers. Empty if `per_second` is 0, which means no limit.
        """
        if not per_second:
            return []
        left, until, beyond = self._portions.get(owner, (0, 0.0, 0))
        reset_s = max(0, math.ceil(until - time.time()))
        return [
            (b"ratelimit-policy", b'"%b";q=%d;w=1' % (REQUESTS, per_second)),
            (b"ratelimit", b'"%b";r=%d;t=%d' % (REQUESTS, left + beyond, reset_s)),
        ]
