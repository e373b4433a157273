"""Makes the sample sheet of a model's version: one PNG that shows what the model generates.

The sheet is the preview in the version's checkpoint file or, if the file has none, a grid of
samples that are drawn with seed 0.
"""

import asyncio
import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass

from api.access import quota_exceeded
from api.auth import Caller
from api.batching.batch_sender import BatchSender, FailedError
from api.batching.requests import PendingRequest, StillWaitingError
from api.batching.scheduler import QueueFullError
from api.errors import ModelFailedError, NotFoundError, OverloadedError
from core.broker.codec import Fields
from core.catalog.checkpoint_file import read_preview
from core.catalog.registry import ModelVersion
from core.imaging.pictures import write_grid

SEED = 0
_MAX_SHEETS = 64  # that are kept in memory
_EDGE = 256  # approximate width and height of a sheet, in pixels
_MAX_COLUMNS = 10
_LINES = 64  # samples of a model of vectors, whose images are one pixel high


def _retrieve_error(task: "asyncio.Task[Sheet]") -> None:
    """Read the exception of a task, so that asyncio does not log it as never retrieved.

    This matters if all requests that waited for the task were cancelled.
    """
    if not task.cancelled():
        task.exception()


@dataclass(frozen=True)
class Sheet:
    """A sample sheet: the bytes of its PNG, and their SHA-256 in hex."""

    png: bytes
    digest: str


class SampleSheets:
    """Makes the sample sheet of each version once, and keeps the most recently used sheets."""

    def __init__(self, batch_sender: BatchSender, timeout_s: float) -> None:
        """Set how samples are drawn: by `batch_sender`, in at most `timeout_s` seconds."""
        self._batch_sender = batch_sender
        self._timeout_s = timeout_s
        self._sheets: OrderedDict[tuple[str, str], asyncio.Task[Sheet]] = OrderedDict()

    async def sheet(self, entry: ModelVersion, caller: Caller) -> Sheet:
        """Return the sample sheet of the version `entry`.

        If samples must be drawn, their rows count against the limits of `caller`. Raises
        NotFoundError if the checkpoint file has no preview and the model cannot draw samples,
        ModelFailedError if the model fails, and OverloadedError or TooManyRequestsError if too much
        work is waiting.
        """
        # a model that was deleted may have been trained again: the file's time differs
        key = entry.ref, entry.content_id
        task = self._sheets.get(key)
        if task is None:
            task = self._sheets[key] = asyncio.create_task(self._make(entry, caller))
            task.add_done_callback(_retrieve_error)
            if len(self._sheets) > _MAX_SHEETS:
                self._sheets.popitem(last=False)
        self._sheets.move_to_end(key)
        try:
            return await asyncio.shield(task)  # other requests may wait for it too
        except Exception:
            if self._sheets.get(key) is task:
                del self._sheets[key]  # the next request tries again
            raise

    async def _make(self, entry: ModelVersion, caller: Caller) -> Sheet:
        """Return the preview in the version's file or, if it has none, a sheet of new samples."""
        picture = await asyncio.to_thread(lambda: read_preview(entry.file()))
        if picture is None:
            picture = await self._draw(entry, caller)
        return Sheet(picture, hashlib.sha256(picture).hexdigest())

    async def _draw(self, entry: ModelVersion, caller: Caller) -> bytes:
        """Return a grid of samples with default options, as PNG."""
        operation = entry.operations.get("sample")
        if operation is None:
            raise NotFoundError(f"{entry.ref} has no preview in its file, and cannot draw samples")
        columns = max(1, min(_MAX_COLUMNS, _EDGE // max(entry.image[1:])))
        count, columns = (_LINES, 1) if entry.image.height == 1 else (columns * columns, columns)
        options = operation.options({})
        pending = PendingRequest(entry, "sample", options, SEED, count, owner=caller.name, limits=caller.limits)
        try:
            self._batch_sender.submit(pending)
        except QueueFullError as error:
            if error.own:
                raise quota_exceeded(error.limit, str(error), 2) from error
            raise OverloadedError(f"{error}; try again soon", retry_after_s=2, limit=error.limit) from error
        pixels = (await self._result(pending))["images"]
        file = io.BytesIO()
        await asyncio.to_thread(write_grid, file, pixels, columns)
        return file.getvalue()

    async def _result(self, pending: PendingRequest) -> Fields:
        """Wait for the result of a request.

        Raises ModelFailedError if the model fails, and OverloadedError after the time-out.
        """
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            while True:
                try:
                    return await self._batch_sender.wait(pending)
                except StillWaitingError as error:
                    if asyncio.get_running_loop().time() > deadline:
                        detail = f"the samples were not drawn within {self._timeout_s:g} s; try again later"
                        raise OverloadedError(detail, retry_after_s=10) from error
        except FailedError as error:
            raise ModelFailedError.of(error.problem) from error
        finally:
            self._batch_sender.drop(pending)
