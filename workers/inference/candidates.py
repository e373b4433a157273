"""Loads candidate versions, which are not active yet, in steps between which the worker receives messages."""

import logging
from collections.abc import Callable, Iterator

from core.catalog.registry import ModelVersion
from core.log import best_effort
from workers.inference.context import InferenceContext

log = logging.getLogger(__name__)


class CandidateLoader:
    """Loads the versions that are to become active.

    `refused` says why versions could not be loaded, keyed by `name@version`.
    """

    def __init__(self, context: InferenceContext, publish_heartbeat: Callable[[], None]) -> None:
        """Use the registry and the models of a worker.

        `publish_heartbeat` is called when a version is loaded or refused.
        """
        self._context = context
        self._publish_heartbeat = publish_heartbeat
        self._loading: tuple[ModelVersion, Iterator[None]] | None = None
        self.refused: dict[str, str] = {}

    def load_step(self) -> None:
        """Take one step in loading a candidate, if there is one.

        Messages are received between the steps. A version that cannot be loaded is added to
        `refused`.
        """
        if self._loading is None and (candidate := self._next_candidate()) is not None:
            self._loading = (candidate, self._context.model_cache.loading(candidate))
        if self._loading is None:
            return
        candidate, steps = self._loading
        try:
            with self._context.watchdog.working("loading", candidate.ref):
                next(steps)
        except StopIteration:
            self._finish()
        except Exception as error:
            log.exception("version cannot be loaded", extra={"model": candidate.ref})
            self.refused[candidate.ref] = f"{type(error).__name__}: {error}"
            self._finish()

    def _next_candidate(self) -> ModelVersion | None:
        candidates = {version.ref: version for version in self._context.registry.candidates()}
        self.refused = {ref: reason for ref, reason in self.refused.items() if ref in candidates}
        holds = self._context.model_cache.holds
        return next((one for ref, one in candidates.items() if ref not in self.refused and not holds(ref)), None)

    def _finish(self) -> None:
        self._loading = None
        best_effort(self._publish_heartbeat)
