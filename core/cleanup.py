"""What removes results after their time, and files that belong to nothing: left by what was killed, cancelled, refused.

Files go before the row that names them is marked, so a sweep that is cut short leaves nothing behind for good. What
another process has just written is never touched: a file counts as an orphan's only if it is older than the time
between two sweeps, and two sweeps one after the other have found it so. Files that vanish meanwhile are no error.
"""

import fcntl
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from core.blobs import Blobs, remove_tree
from core.catalog.recipes import StatePaths
from core.catalog.versions import Versions
from core.datasets.store import Datasets
from core.jobs.records import TERMINAL, TRAINING, JobState
from core.jobs.store import JobStore
from core.settings import Settings
from core.work_folder import LOCK, in_use

log = logging.getLogger(__name__)

NOTES_S = 900.0
"""How long a completion note in the blob store may wait for the API process that it is for."""

_JOB_ID = re.compile(r"job_[0-9a-f]{28}")
_PAGE = 200
_FORGET_FACTOR = 7


@dataclass(frozen=True)
class _Orphan:
    """Something that may belong to nothing: when it was last written, how to make sure, and how to remove it."""

    written_at: float
    belongs: Callable[[], bool]
    remove: Callable[[], object]


class Cleanup:
    """The sweeps of one process over everything that the service keeps."""

    def __init__(self, settings: Settings, job_store: JobStore, blobs: Blobs) -> None:
        """Find the folders; nothing is removed before `run`."""
        self._settings = settings
        self._job_store = job_store
        self._blobs = blobs
        self._places = StatePaths(settings.state)
        self._datasets = Datasets(self._places.datasets)
        self._versions = Versions(self._places.checkpoints)
        self._min_age_s = 0.9 * settings.sweep_s
        self._found: set[str] = set()

    def run(self) -> None:
        """Sweep once, unless another process on this state folder does; a part that fails does not stop the others."""
        with (self._settings.state / ".sweep.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for part in (self.expire, self.keep_quota, self.remove_orphans, self._remove_leftovers):
                try:
                    part()
                except Exception:
                    log.exception("sweep", extra={"sweep": part.__name__.strip("_")})

    # --- results after their time ---

    def expire(self) -> None:
        """Drop results that were kept for their time, and forget jobs much later."""
        keep_s = self._settings.result_ttl_s
        while self._drop(self._job_store.kept_results(_PAGE, older_than_s=keep_s)):
            pass
        self._job_store.delete_expired(_FORGET_FACTOR * keep_s)

    def keep_quota(self) -> None:
        """Drop the oldest results while the blob store is over its quota."""
        while self._blobs.usage_bytes() > self._settings.disk_quota_bytes:
            if not self._drop(self._job_store.kept_results(20)):
                return

    def _drop(self, ids: list[str]) -> bool:
        """Remove the results of these jobs, then say so; return whether any went. What fails is for the next sweep."""
        gone = []
        for job_id in ids:
            try:
                self._blobs.delete(f"jobs/{job_id}")
                gone.append(job_id)
            except OSError as error:
                log.warning("result not removed", extra={"job": job_id, "reason": str(error)})
        if gone:
            self._job_store.mark_expired(gone)
        return bool(gone)

    # --- what belongs to nothing ---

    def remove_orphans(self) -> int:
        """Remove what the last sweep has found already and what is an orphan's still; return how many went."""
        found: set[str] = set()
        removed = 0
        for name, orphan in self._orphans():
            if time.time() - orphan.written_at < self._min_age_s:
                continue
            if name not in self._found:
                found.add(name)
            elif not orphan.belongs():  # asked anew: a minute may have passed since
                orphan.remove()
                removed += 1
        self._found = found
        if removed:
            log.info("orphans removed", extra={"count": removed})
        return removed

    def _orphans(self) -> Iterator[tuple[str, _Orphan]]:
        yield from self._job_blobs()
        yield from self._folders("desk", self._needs_scratch)
        yield from self._folders("runs", self._needs_run)
        yield from self._unfinished()
        for path in self._versions.leftovers(self._has_open_jobs):
            yield from self._path("checkpoints", path, lambda: False, self._versions.remove)

    def _job_blobs(self) -> Iterator[tuple[str, _Orphan]]:
        """Blobs of jobs that are not there any more, or have ended without a result."""
        names = {name: at for name, at in self._blobs.names("jobs").items() if _JOB_ID.fullmatch(name)}
        for job_id in self._without(list(names), self._needs_blobs):
            promised_at = int(job_id[4:16], 16) / 1000
            written_at = max(names[job_id], promised_at if promised_at <= time.time() else 0.0)
            yield (
                f"jobs/{job_id}",
                _Orphan(
                    written_at,
                    lambda job_id=job_id: not self._without([job_id], self._needs_blobs),  # type: ignore[misc]
                    lambda job_id=job_id: self._blobs.delete(f"jobs/{job_id}"),  # type: ignore[misc]
                ),
            )

    def _folders(self, kind: str, needed: Callable[[JobState], bool]) -> Iterator[tuple[str, _Orphan]]:
        """Folders of jobs that need them no more, and that nobody works in."""
        folder = self._settings.state / kind
        names = [path.name for path in _children(folder) if _JOB_ID.fullmatch(path.name)]
        for job_id in self._without(names, needed):

            def belongs(job_id: str = job_id) -> bool:
                return in_use(folder / job_id / LOCK) or not self._without([job_id], needed)

            yield from self._path(kind, folder / job_id, belongs)

    def _unfinished(self) -> Iterator[tuple[str, _Orphan]]:
        """Files that were being made for a response, or for a plan of batches."""
        for path in _children(self._settings.state / "unfinished"):
            yield from self._path("unfinished", path, lambda path=path: in_use(path))  # type: ignore[misc]
        for path in _children(self._settings.state / "plans"):
            if path.suffix[1:].isdecimal():  # named after the process that wrote it
                yield from self._path("plans", path, lambda: False)

    @staticmethod
    def _path(
        kind: str, path: Path, belongs: Callable[[], bool], remove: Callable[[Path], object] = remove_tree
    ) -> Iterator[tuple[str, _Orphan]]:
        try:
            written_at = max(one.lstat().st_mtime for one in (path, *path.rglob("*")))
        except OSError:  # it vanished
            return
        if not belongs():
            yield f"{kind}/{path.name}@{path}", _Orphan(written_at, belongs, lambda: remove(path))

    def _without(self, ids: list[str], needed: Callable[[JobState], bool]) -> list[str]:
        """Those of the jobs that are not there, or do not need it."""
        rows = self._job_store.states(ids)
        return [job_id for job_id in ids if job_id not in rows or not needed(rows[job_id])]

    @staticmethod
    def _needs_blobs(state: JobState) -> bool:
        return state.status not in TERMINAL or (state.status == "succeeded" and not state.expired)

    @staticmethod
    def _needs_scratch(state: JobState) -> bool:
        return state.status not in TERMINAL

    @staticmethod
    def _needs_run(_state: JobState) -> bool:
        return True  # it is kept until its training is deleted

    def _has_open_jobs(self, model: str) -> bool:
        """Whether a training, import or publication may be about to make a version of a model."""
        return bool(self._job_store.unfinished_ids(model=model, kinds=(TRAINING, "import", "publication")))

    # --- what says by itself that it is left over ---

    def _remove_leftovers(self) -> None:
        self._datasets.clear(self._min_age_s)
        self._blobs.sweep("", 2 * self._settings.sweep_s, partial=True)
        self._blobs.sweep("notes", NOTES_S)


def _children(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it is none, or vanished."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []
