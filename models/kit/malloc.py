"""Tuning of the C library's memory allocator."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt(3)
MMAP_THRESHOLD_BYTES, TRIM_THRESHOLD_BYTES = 32 * 2**20, 64 * 2**20


def keep_freed_memory() -> None:
    """Make glibc keep up to 64 MiB of freed memory at the end of its heap; do nothing with other C libraries.

    By default glibc returns a freed tensor of a few megabytes to the kernel and requests it again in the next step.
    The kernel then zeroes every page, which costs a tenth of the time of a convolution.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)  # the largest value that glibc accepts
        mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
