"""Load models and measure their batch sizes while the worker receives messages."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.catalog.registry import ModelVersion
from core.log import best_effort
from core.storage import STORES_UNAVAILABLE, reason_of
from workers.inference.context import InferenceContext, describe_load_error

log = logging.getLogger(__name__)

_RETRY_S = 1.0

# The share of a busy worker's time in which it loads versions that no request has needed yet.
_BUSY_SHARE = 0.2


@dataclass
class _Loading:
    """A version that is being loaded, and the steps of loading that remain.

    `candidate`: the version is to become active once workers have loaded it.
    """

    version: ModelVersion
    steps: Iterator[None]
    candidate: bool


# See docs/decisions.md#a-worker-receives-messages-before-its-models-are-loaded
class ModelLoader:
    """Loads the candidates and the active versions in steps, then measures batch sizes.

    Candidates are the versions that are to become active. A request for a model that is not loaded
    yet does not wait for this class: the worker loads the model for the request. `refused` has the
    error of each candidate that could not be loaded, keyed by `name@version`. `loading` has the
    active versions that are still to be loaded, as `name@version`.
    """

    def __init__(self, context: InferenceContext, on_change: Callable[[], object]) -> None:
        """Keep the worker's context, which has the registry and the models; load nothing yet.

        `on_change` is called after each step of loading.
        """
        self._context = context
        self._on_change = on_change
        self._loading: _Loading | None = None
        self._tried: set[str] = set()
        self._retry_at: dict[str, float] = {}  # candidates that could not be read, and when they are tried again
        self._rests_until = 0.0
        self._frozen = False
        self.refused: dict[str, str] = {}
        self.loading: list[str] = []
        self._pending()

    def run(self, seconds: float) -> None:
        """Run one step of loading or measuring, and further steps until `seconds` have passed.

        A step is reading a checkpoint or a forward pass; without steps left, nothing is done. The
        worker receives messages between two calls. With 0 seconds, the worker is busy: only the
        batch sizes of operations that were requested are measured, and versions that are not
        candidates are loaded in a fifth of the time.
        """
        ends = time.perf_counter() + seconds
        while self._run_step(busy=not seconds) and time.perf_counter() < ends:
            pass
        if seconds and not self._frozen and self._loading is None and not self.loading:
            self._frozen = True
            # what is loaded by now stays: a full collection of it would stop the process for a
            # tenth of a second
            gc.collect()
            # See docs/decisions.md#objects-loaded-at-start-are-excluded-from-garbage-collection
            gc.freeze()

    def _run_step(self, *, busy: bool) -> bool:
        """Run the next step of loading or of measuring batch sizes; return False if none was left.

        With `busy`, only operations that were requested are measured, and loading rests in between.
        """
        if self._loading is None:
            self._loading = self._next_version()
        if self._loading is not None and not (busy and self._rests(self._loading)):
            started = time.monotonic()
            self._load_step(self._loading)
            self._rests_until = time.monotonic() + (time.monotonic() - started) * (1 / _BUSY_SHARE - 1)
            return True
        with self._context.watchdog.working("measuring a batch plan"):
            return self._context.model_cache.measure_step(requested_only=busy)

    def _rests(self, loading: _Loading) -> bool:
        """Return whether a busy worker should put off the next step of loading a version.

        A candidate is not put off: other workers wait for this one. Neither is a version after
        which a candidate is to be loaded.
        """
        return not loading.candidate and time.monotonic() < self._rests_until and self._next_candidate() is None

    def _load_step(self, loading: _Loading) -> None:
        """Run one step of loading a version; the error of a candidate is stored in `refused`.

        If the object store or the database cannot be used now, the candidate is tried again after
        `_RETRY_S` seconds instead.
        """
        ref = loading.version.ref
        try:
            with self._context.watchdog.working("loading", ref):
                next(loading.steps)
            best_effort(self._on_change)
        except StopIteration:
            self._finish()
        except STORES_UNAVAILABLE as error:
            log.warning("version cannot be read now", extra={"model": ref, "reason": reason_of(error)})
            self._retry_at[ref] = time.monotonic() + _RETRY_S
            self._finish()
        except Exception as error:
            log.exception("version cannot be loaded", extra={"model": ref})
            if loading.candidate:
                self.refused[ref] = describe_load_error(error)
            self._finish()

    def _finish(self) -> None:
        """End the loading of a version, and call `on_change`."""
        self._loading = None
        self._pending()
        best_effort(self._on_change)

    def _next_version(self) -> _Loading | None:
        """Return the next version to load: first a candidate, which is to become active.

        Otherwise it is the active version with the smallest file; None if no version is left. A
        candidate that could not be loaded is not tried again while it is a candidate. An active
        version is tried once, and only if it is pinned or fits in the memory budget beside the
        loaded models.
        """
        cache = self._context.model_cache
        if (candidate := self._next_candidate()) is not None:
            return _Loading(candidate, cache.loading(candidate, candidate=True), candidate=True)
        for version in self._pending():
            self._tried.add(version.ref)
            if cache.is_pinned(version) or cache.fits(version.size_bytes):
                return _Loading(version, cache.loading(version), candidate=False)
        return None

    def _next_candidate(self) -> ModelVersion | None:
        """Return the next candidate to load; None if there is none."""
        may_load = self._context.may_load
        candidates = {one.ref: one for one in self._context.registry.candidates() if may_load(one.ref)}
        self.refused = {ref: reason for ref, reason in self.refused.items() if ref in candidates}
        self._retry_at = {ref: at for ref, at in self._retry_at.items() if at > time.monotonic()}
        for ref, candidate in candidates.items():
            if ref not in self.refused and ref not in self._retry_at and not self._context.model_cache.holds(candidate):
                return candidate
        return None

    def _pending(self) -> list[ModelVersion]:
        """Return the active versions that this class has neither loaded nor tried yet.

        Pinned versions come first, then those with the smallest file. Sets `loading` to their
        references.
        """
        cache, may_load = self._context.model_cache, self._context.may_load
        active = [one for one in self._context.registry.active() if may_load(one.ref) and not cache.holds(one)]
        pending = [version for version in active if version.ref not in self._tried]
        self.loading = [version.ref for version in pending]
        return sorted(pending, key=lambda version: (not cache.is_pinned(version), version.size_bytes))
