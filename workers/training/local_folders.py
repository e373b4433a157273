"""Remove the folders of jobs from this host if they are in the blob store, or not needed any more.

Hosts that share a blob store and a job database keep nothing durable in their folders. A job's run
and scratch folders are needed only while a worker of this host runs the job. The scratch folder of
a training has hard links to copies of its dataset, which the cache of blobs cannot remove.

Workers of one host may share its folders. Each locks a file in the folders of the job that it runs,
and only folders without a lock are removed.
"""

import fcntl
import logging
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from core.blobs import remove_tree
from core.files import LOCK, in_use
from core.jobs.records import TRAINING, Job
from workers.training.context import JobContext

log = logging.getLogger(__name__)

LOCAL_CLEANUP_S = 60.0

_WORKER_LOCK = ".worker.lock"  # beside `LOCK`, which an API process holds while it waits for an import
_JOB_ID = re.compile(r"job_[0-9a-f]{28}")


class LocalFolders:
    """The run and scratch folders of jobs on this host.

    Does nothing if hosts do not share a blob store: then the run folder is the only place of a
    training's checkpoint.
    """

    def __init__(self, context: JobContext) -> None:
        """Use the stores and paths of a worker; nothing is removed yet."""
        self._context = context

    @contextmanager
    def locked(self, job: Job) -> Iterator[None]:
        """Return a context manager in which the folders that a job uses are not removed.

        A training and a publication use a run folder, too. Raises OSError if the disk is full.
        """
        folders = [self._context.paths.auxiliary_job(job.id)]
        if job.kind in {TRAINING, "publication"}:
            folders.append(self._context.paths.run(training_of(job)))
        with ExitStack() as stack:
            for folder in folders if self._context.shared else ():
                stack.enter_context(_locked(folder, fcntl.LOCK_SH))
            yield

    def remove_unneeded(self) -> None:
        """Remove the folders of all jobs that need none here; see `remove`. Errors are logged."""
        paths = self._context.paths
        folders = [*(paths.state / "runs").glob("*"), *(paths.state / "scratch").glob("*")]
        for job_id in sorted({path.name for path in folders if _JOB_ID.fullmatch(path.name)}):
            if self._context.stopping.is_set():
                return
            try:
                self.remove(job_id)
            except Exception:
                log.warning("folders not removed", exc_info=True, extra={"job": job_id})

    def remove(self, job_id: str) -> None:
        """Remove the folders of a job, unless a process of this host uses them.

        If the job is queued, they are kept, because this host may run it next. A run folder is also
        kept while its checkpoint is later than that in the blob store and may still be needed; if
        no worker runs the training, it is uploaded now. Raises OSError if that fails.
        """
        if not self._context.shared:
            return
        job = self._context.job_store.get(job_id)
        if job is not None and job.status == "queued":
            return
        run, scratch = self._context.paths.run(job_id), self._context.paths.auxiliary_job(job_id)
        for folder in (scratch, run):
            if not folder.exists() or in_use(run / LOCK) or in_use(scratch / LOCK):
                continue
            with suppress(BlockingIOError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                if folder == scratch or job is None or not self._is_needed(job, run):
                    remove_tree(folder)

    def _is_needed(self, job: Job, run: Path) -> bool:
        """Return whether the checkpoint in a run folder may be needed and is nowhere else.

        The last upload of a paused, cancelled or failed training may have failed: it is repeated.
        """
        runs = self._context.runs
        if job.status == "succeeded" or runs.is_stored(job.id, run):
            return False
        if job.status == "running":  # elsewhere
            return True
        return not runs.upload(job.claim, run) and not job.ended


def training_of(job: Job) -> str:
    """Return the id of the training whose run folder a job uses; the job's own id if it uses none."""
    return str(job.request.get("training", job.id))


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    """Create a folder if it is missing, and lock a file in it while the block runs.

    `operation` is that of `fcntl.flock`. With `LOCK_NB`, raises BlockingIOError if another process
    or thread has a lock that excludes this one.
    """
    path = folder / _WORKER_LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("ab")
        except FileNotFoundError:  # the folder was removed meanwhile
            continue
        with file:
            fcntl.flock(file, operation)
            if _is_same_file(file.fileno(), path):  # else it was removed before it was locked
                yield
                return


def _is_same_file(descriptor: int, path: Path) -> bool:
    """Return whether a path still names an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
