"""Makes glibc's malloc return freed memory to the system; does nothing with other C libraries."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt(3)
_MMAP_THRESHOLD_BYTES = 256 << 10
_TRIM_THRESHOLD_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Make malloc return blocks of at least 256 KiB to the system as soon as they are freed.

    By default glibc raises this threshold to the size of the largest block that was freed, up to 32
    MiB, and lets the arena of each thread keep up to twice the threshold of free memory at its end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)


def trim() -> None:
    """Return all free pages of the heap to the system, also free pages between blocks in use."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
