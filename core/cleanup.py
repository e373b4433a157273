"""Remove expired results, and orphaned files that failed requests or dead processes have left.

Files are removed before their job is marked as expired, so an interrupted cleanup can be repeated.
A file is removed as an orphan only if it is older than the time between two cleanups and two
cleanups in a row have found that nothing needs it. So a file that another process has just written
is never removed. Each host cleans its state folder; one host at a time cleans what hosts share, the
job database and the blob store.
"""

import fcntl
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path

from core.blobs import Blobs, remove_tree
from core.catalog.shared_versions import SharedVersions
from core.datasets.shared_store import SharedDatasets
from core.files import LOCK, in_use
from core.jobs.database import try_lock
from core.jobs.records import PUBLISHING_KINDS, TERMINAL, JobState
from core.jobs.store import JobStore
from core.runs import SharedRuns
from core.settings import Settings
from core.shared import open_datasets, open_runs, open_versions
from core.webhooks.deliveries import Deliveries

log = logging.getLogger(__name__)

COMPLETION_TTL_S = 900.0  # how long the blob store keeps a completion that no API process has read

_JOB_ID = re.compile(r"job_[0-9a-f]{28}")
_PAGE = 200
_EXPIRY_S = 60.0  # after this time the other steps follow, and the next cleanup removes further expired results
_POSTGRESQL_LOCK = 0x73776570
_ROLLOUT_MARGIN_S = 60.0  # what an activation may take beyond `rollout_timeout_s`
_ROW_TTL_FACTOR = 7  # the row of an expired job is kept this many times as long as its result


@dataclass(frozen=True)
class _Orphan:
    """A file or folder that may be an orphan, that is, that no job and no process needs.

    `written_at` is the Unix time of the last write to it. `is_needed` returns whether a job or
    process needs it after all; `remove` deletes it. It is removed only if the last write is at
    least `min_age_s` seconds ago.
    """

    written_at: float
    is_needed: Callable[[], bool]
    remove: Callable[[], object]
    min_age_s: float = 0.0


class Cleanup:
    """Removes the expired results and the orphaned files of all processes of the service."""

    def __init__(self, settings: Settings, job_store: JobStore, blobs: Blobs) -> None:
        """Prepare to clean up these stores and the state folder; nothing is removed yet."""
        self._settings = settings
        self._job_store = job_store
        self._blobs = blobs
        self._deliveries = Deliveries(job_store.engine)
        self._datasets = open_datasets(settings, job_store.engine, blobs)
        self._versions = open_versions(settings, job_store.engine, blobs)
        self._runs = open_runs(settings, job_store.engine, blobs)
        self._min_age_s = 0.9 * settings.sweep_s
        # unique names of the orphans that the last cleanup has found, of files and of blobs
        self._known_files: set[str] = set()
        self._known_blobs: set[str] = set()
        self._versions_seen = (-1, 0.0)  # the stamp of the versions, and when it was first seen

    def run(self) -> None:
        """Clean up once: results, the quota, interrupted activations, orphans, and unfinished writes.

        Returns at once if another process of this host is cleaning up, and cleans only the state
        folder if another host is cleaning up. If a step fails, the error is logged and the next
        step runs.
        """
        with (self._settings.state / ".sweep.lock").open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            _run(self.remove_orphaned_files, self._remove_unfinished_datasets)
            with try_lock(self._job_store.engine, _POSTGRESQL_LOCK) as locked:
                if locked:
                    _run(self.expire, self.enforce_quota, self.unstage_forgotten)
                    _run(self.remove_orphaned_blobs, self._remove_unfinished_blobs)

    # --- results after their time ---

    def expire(self) -> None:
        """Remove results after their time to live, and expired jobs after 7 times that time.

        An expired job is a row without a result. Webhook deliveries are removed two days after the
        result of their job has expired.
        """
        ttl_s, until = self._settings.result_ttl_s, time.monotonic() + _EXPIRY_S
        while time.monotonic() < until and (job_ids := self._job_store.kept_results(_PAGE, older_than_s=ttl_s)):
            # other blobs of a job, such as its result in another format, are then removed as orphans
            if not self._remove_results(job_ids, self._job_store.with_blobs(job_ids)):
                break
        self._job_store.delete_expired(_ROW_TTL_FACTOR * ttl_s)
        self._job_store.delete_expired_keys(self._settings.idempotency_key_ttl_s)
        self._deliveries.delete_expired(ttl_s)

    def enforce_quota(self) -> None:
        """Remove the oldest results until the blobs of all jobs are within the quota in bytes.

        Stops if none of the 20 oldest results can be removed.
        """
        sizes = self._blobs.sizes("jobs")  # once: of an object store, this is a listing of all blobs
        excess = sum(sizes.values()) - self._settings.disk_quota_bytes
        while excess > 0:
            removed = self._remove_results(self._job_store.kept_results(20), sizes)
            if not removed:
                return
            excess -= sum(sizes.get(job_id, 0) for job_id in removed)

    def _remove_results(self, job_ids: list[str], with_blobs: Collection[str]) -> list[str]:
        """Remove the results of jobs and mark the jobs as expired; return the ids of these jobs.

        Only jobs whose ids are in `with_blobs` have blobs; the deletion of each job's blobs costs
        requests to the blob store. If a result cannot be removed, its job is not marked and not
        returned; the next cleanup tries again.
        """
        removed = []
        for job_id in job_ids:
            try:
                if job_id in with_blobs:
                    self._blobs.delete(f"jobs/{job_id}")
                removed.append(job_id)
            except OSError as error:
                log.warning("result not removed", extra={"job": job_id, "reason": str(error)})
        if removed:
            self._job_store.mark_expired(removed)
        return removed

    # --- interrupted activations ---

    def unstage_forgotten(self) -> None:
        """Unstage the candidates whose activation was interrupted.

        No active version and no candidate has changed for longer than an activation takes.
        """
        stamp, now = self._versions.stamp(), time.monotonic()
        if stamp != self._versions_seen[0]:
            self._versions_seen = (stamp, now)
        elif now - self._versions_seen[1] > self._settings.rollout_timeout_s + _ROLLOUT_MARGIN_S:
            for name, pointer in self._versions.pointers().items():
                if "next" in pointer:
                    log.warning("interrupted activation", extra={"version": f"{name}@{pointer['next']}"})
                    self._versions.unstage(name, pointer["next"])

    # --- orphans ---

    def remove_orphaned_files(self) -> None:
        """Remove the files and folders that this cleanup and the last one have found that nothing
        needs.
        """
        self._known_files = self._remove(self._orphaned_files(), self._known_files)

    def remove_orphaned_blobs(self) -> None:
        """Remove the blobs that this cleanup and the last one have found that nothing needs."""
        self._known_blobs = self._remove(self._orphaned_blobs(), self._known_blobs)

    def _remove(self, orphans: Iterable[tuple[str, _Orphan]], last: set[str]) -> set[str]:
        """Remove the orphans that are old enough and among `last`, those of the last cleanup.

        Returns the unique names of the others that are old enough, for the next cleanup.
        """
        candidates: set[str] = set()
        removed = 0
        for name, orphan in orphans:
            if time.time() - orphan.written_at < max(self._min_age_s, orphan.min_age_s):
                continue
            if name not in last:
                candidates.add(name)
            elif not orphan.is_needed():  # checked again: the listing may be a minute old
                orphan.remove()
                removed += 1
        if removed:
            log.info("orphans removed", extra={"count": removed})
        return candidates

    def _orphaned_files(self) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for each file or folder that no job or process may need."""
        yield from self._job_folders("scratch", lambda state: state.status not in TERMINAL)
        # runs are kept until the training is deleted
        yield from self._job_folders("runs", lambda _state: True)
        yield from self._unfinished_files()
        for path in self._versions.leftovers(self._may_publish):
            yield from self._path("checkpoints", path, lambda: False, self._versions.remove)

    def _orphaned_blobs(self) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for each blob that nothing may need."""
        yield from self._job_blobs()
        for store in (self._datasets, self._versions, self._runs):
            if isinstance(store, SharedDatasets | SharedVersions | SharedRuns):
                yield from self._shared_blobs(store)

    def _job_blobs(self) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for blobs of jobs that do not exist or do not need them."""
        needs_blobs = attrgetter("needs_blobs")
        names = {name: at for name, at in self._blobs.names("jobs").items() if _JOB_ID.fullmatch(name)}
        for job_id in self._not_needed(list(names), needs_blobs):
            created_at = int(job_id[4:16], 16) / 1000
            written_at = max(names[job_id], created_at if created_at <= time.time() else 0.0)
            is_needed = partial(self._is_needed, job_id, needs_blobs)
            remove = partial(self._blobs.delete, f"jobs/{job_id}")
            yield f"jobs/{job_id}", _Orphan(written_at, is_needed, remove, self._blobs.upload_s)

    def _shared_blobs(self, store: SharedDatasets | SharedVersions | SharedRuns) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for each blob in `store` that nothing needs.

        Nothing needs a blob that belongs to no dataset, version or training. A blob is dated by the
        newest blob in its folder, because the files of a dataset are uploaded one after another.
        """

        @cache
        def written_at(folder: str) -> float:
            return max(self._blobs.names(folder).values(), default=time.time())

        for key in store.orphans():
            is_needed, remove = partial(_is_not_among, key, store.orphans), partial(self._blobs.delete, key)
            yield key, _Orphan(written_at(key.rpartition("/")[0]), is_needed, remove, self._blobs.upload_s)

    def _job_folders(self, kind: str, needs: Callable[[JobState], bool]) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for each job folder that no job needs and no process uses.

        `kind` is "scratch" or "runs", the part of the state folder with these folders.
        `needs(state)` returns whether a job in this state needs its folder.
        """
        folder = self._settings.state / kind
        names = [path.name for path in folder.glob("*") if _JOB_ID.fullmatch(path.name)]
        for job_id in self._not_needed(names, needs):

            def is_needed(job_id: str = job_id) -> bool:
                return in_use(folder / job_id / LOCK) or self._is_needed(job_id, needs)

            yield from self._path(kind, folder / job_id, is_needed)

    def _unfinished_files(self) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for each temporary file that no process writes any more.

        These are temporary files of responses and of measured batch sizes (batch plans).
        """
        for path in (self._settings.state / "unfinished").glob("*"):
            yield from self._path("unfinished", path, partial(in_use, path))
        for path in (self._settings.state / "plans").glob("*"):
            # temporary files of `write_durably`; in earlier releases their suffix was a process id
            if path.name.startswith(".") or path.suffix[1:].isdecimal():
                yield from self._path("plans", path, lambda: False)

    @staticmethod
    def _path(
        kind: str, path: Path, is_needed: Callable[[], bool], remove: Callable[[Path], object] = remove_tree
    ) -> Iterator[tuple[str, _Orphan]]:
        """Yield (unique name, orphan) for the file or folder `path` if it is not needed."""
        try:
            written_at = max(file.lstat().st_mtime for file in (path, *path.rglob("*")))
        except OSError:  # it was deleted meanwhile
            return
        if not is_needed():
            yield f"{kind}/{path.name}@{path}", _Orphan(written_at, is_needed, lambda: remove(path))

    def _not_needed(self, job_ids: list[str], needs: Callable[[JobState], bool]) -> list[str]:
        """Return the ids of the jobs that do not exist or do not need their files.

        `needs(state)` returns whether a job in this state needs its files.
        """
        states = self._job_store.states(job_ids)
        return [job_id for job_id in job_ids if job_id not in states or not needs(states[job_id])]

    def _is_needed(self, job_id: str, needs: Callable[[JobState], bool]) -> bool:
        """Return whether a job exists and is in a state that needs its files."""
        return not self._not_needed([job_id], needs)

    def _may_publish(self, model: str) -> bool:
        """Return whether a model has an unfinished job that may publish a version of it.

        This is a training, an import or a publication.
        """
        return bool(self._job_store.unfinished_ids(model=model, kinds=PUBLISHING_KINDS))

    # --- files whose names show that they are unfinished ---

    def _remove_unfinished_datasets(self) -> None:
        """Remove scratch folders that the interrupted making of datasets has left, by their age."""
        self._datasets.clear(self._min_age_s)

    def _remove_unfinished_blobs(self) -> None:
        """Remove unfinished files of the blob store, and completions of batches that nobody has
        read.
        """
        self._blobs.sweep("", 2 * self._settings.sweep_s, partial=True)
        self._blobs.sweep("notes", COMPLETION_TTL_S)


def _run(*steps: Callable[[], None]) -> None:
    """Run the steps of a cleanup; log the errors of those that fail."""
    for step in steps:
        try:
            step()
        except Exception:
            log.exception("cleanup failed", extra={"step": step.__name__.strip("_")})


def _is_not_among(key: str, orphans: Callable[[], list[str]]) -> bool:
    """Return whether the blob `key` is in use: `orphans()` returns the keys of unused blobs."""
    return key not in orphans()
