"""Writes large results of synchronous requests to the disk, slice by slice as they arrive."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from api.batching.requests import PendingRequest, RequestSlice
from api.row_files import ROW_FILE_BYTES, RowFile, array_bytes
from core.broker.codec import Fields, joined

log = logging.getLogger(__name__)


class LargeResults:
    """Writes the rows of large results to temporary files, one file for each request."""

    def __init__(self, folder: Path) -> None:
        """Set the folder in which the files of results will be created."""
        self._folder = folder
        self._writer = ThreadPoolExecutor(1, "row-files")  # all completions wait for it, so it has no other work

    async def move_to_disk(self, part: RequestSlice, fields: Fields) -> Fields:
        """Write the arrays of a slice to its request's file if the complete result will be large.

        `fields` is the result of the slice `part`. Returns the fields to keep in memory, in which
        each written array is replaced by one without rows. If the complete result is small or the
        disk is full, returns `fields` unchanged.
        """
        request = part.request
        large = array_bytes(fields) * request.rows > ROW_FILE_BYTES * part.rows
        if not large or request.keep_in_memory or part.first in request.chunks or request.result.done():
            return fields
        try:
            if request.row_file is None:
                request.row_file = RowFile(self._folder, request.rows)
            write = request.row_file.write
            return await asyncio.get_running_loop().run_in_executor(self._writer, write, part.first, fields)
        except OSError as error:
            log.warning("result kept in memory", extra={"request_id": request.request_id, "reason": str(error)})
            request.keep_in_memory = True
            row_file, request.row_file = request.row_file, None
            if row_file is not None:
                row_file.restore(request.chunks)
            return fields


def take_result(request: PendingRequest) -> Callable[[], Fields]:
    """Remove the slices' results from a complete request; return a function that joins them.

    Call this when every slice of the request has a result. The returned function does not use the
    event loop, so a large result can be joined in a thread.
    """
    chunks = [request.chunks[first] for first in sorted(request.chunks)]
    join = joined if request.row_file is None else request.row_file.join
    discard_rows(request)
    return partial(join, chunks)


def discard_rows(request: PendingRequest) -> None:
    """Delete the results of a request's slices, from memory and from the disk."""
    request.chunks.clear()
    request.row_file = None
