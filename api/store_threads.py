"""Runs calls of the job store in threads, so that the event loop does not wait for the database."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class StoreThreads:
    """Calls functions of the job store in threads: reads in four, writes in one.

    Writes share one thread because SQLite has one writer at a time.
    """

    def __init__(self) -> None:
        """Create both thread pools; a pool starts its threads when they are first needed."""
        self._writer = ThreadPoolExecutor(1, "job-store-writer")
        self._readers = ThreadPoolExecutor(4, "job-store-reader")

    async def write(self, function: Callable[..., T], *args: object) -> T:
        """Call a function in the writer thread, after all earlier writes; return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, function, *args)

    async def read(self, function: Callable[..., T], *args: object) -> T:
        """Call a function in a reader thread; return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *args)

    def shutdown(self) -> None:
        """Stop the threads after their current calls."""
        self._writer.shutdown()
        self._readers.shutdown()
