"""Check whether the inference workers have loaded a version that is to become active.

The functions take the heartbeats of live workers, keyed by worker id, and a reference
`name@version`.
"""

from collections.abc import Mapping
from typing import Any

Heartbeats = Mapping[str, Mapping[str, Any]]


def is_loaded(heartbeats: Heartbeats, ref: str) -> bool:
    """Return whether each worker in state "ready" has loaded a version, or reported that it cannot.

    False if no worker is ready.
    """
    ready = _ready(heartbeats)
    return bool(ready) and all(ref in one["capacity"] or ref in one.get("refused", {}) for one in ready)


def missing_workers(heartbeats: Heartbeats, ref: str) -> str:
    """Return a sentence for error messages that says why a version is not loaded yet."""
    if not heartbeats:
        return "no inference worker is running"
    ready = _ready(heartbeats)
    if not ready:
        return "no inference worker is ready: those there are load their models, or stop"
    missing = sum(ref not in one["capacity"] for one in ready)
    return f"{missing} of {len(ready)} inference workers have not loaded {ref} yet"


def load_error(heartbeats: Heartbeats, ref: str) -> str:
    """Return the error with which a worker failed to load a version; "" if there is none."""
    return next((one["refused"][ref] for one in heartbeats.values() if ref in one.get("refused", {})), "")


def _ready(heartbeats: Heartbeats) -> list[Mapping[str, Any]]:
    return [heartbeat for heartbeat in heartbeats.values() if heartbeat["state"] == "ready"]
