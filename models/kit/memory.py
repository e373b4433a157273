"""How the C library hands memory out."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
MAPPED, KEPT = 32 * 2**20, 64 * 2**20


def keep_freed() -> None:
    """Have glibc keep up to 64 MiB of freed memory at its heap's end; elsewhere nothing.

    By its own rule it gives a tensor of some megabytes back to the system and asks for it anew at the next step, and
    the system clears each page again: a tenth of the time of a convolution.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPED)  # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, KEPT)
