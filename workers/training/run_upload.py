"""Upload the checkpoints and previews of a running training, so that another host can resume it."""

import logging
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from core.jobs.records import Job
from workers.training.context import JobContext

log = logging.getLogger(__name__)

_RETRY_S = 10.0
_PREVIEW_S = 5.0  # least time between two uploads without a new checkpoint


class RunUploader:
    """Uploads the run folder of a training in a thread, and once more when the training ends.

    Does nothing if hosts do not share a blob store.
    """

    def __init__(self, context: JobContext, job: Job, folder: Path) -> None:
        """Keep what the uploads need; the thread is not started yet."""
        self._context = context
        self._job = job
        self._folder = folder
        self._requested = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-upload", daemon=True)

    def __enter__(self) -> Self:
        """Start the thread that uploads the run folder."""
        if self._context.shared:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the thread and upload a last time, before another worker can claim the job."""
        if self._context.shared:
            self._ended.set()
            self._requested.set()
            self._thread.join()
            self._upload()

    def request(self) -> None:
        """Make the thread upload the run folder soon; return without waiting for the upload."""
        self._requested.set()

    def _run(self) -> None:
        """Upload the run folder after each request; repeat an upload that failed."""
        while not self._ended.is_set():
            self._requested.wait()
            if self._ended.is_set():
                return
            self._requested.clear()
            if not self._upload():
                self._requested.set()
                self._ended.wait(_RETRY_S)
            else:
                self._ended.wait(_PREVIEW_S)

    def _upload(self) -> bool:
        """Upload the run folder; return whether that succeeded. Errors are logged."""
        try:
            if not self._context.runs.upload(self._job.claim, self._folder):
                log.info("checkpoint not recorded; another worker has the job", extra={"job": self._job.id})
        except Exception:
            log.warning("checkpoint not uploaded", exc_info=True, extra={"job": self._job.id})
            return False
        return True
