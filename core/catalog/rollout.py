"""Check whether the inference workers have loaded a version that is to become active.

`heartbeats` has the heartbeats of live workers, keyed by worker id, and `ref` is the version's
reference `name@version`. Workers whose setting `REVERIE_MODELS` leaves the model out are ignored.
"""

from collections.abc import Mapping
from typing import Any

from core.catalog.model_names import may_load

Heartbeats = Mapping[str, Mapping[str, Any]]


def is_loaded(heartbeats: Heartbeats, ref: str) -> bool:
    """Return whether each worker in state "ready" has loaded a version, or reported that it cannot.

    False if no worker is ready.
    """
    return bool(_ready(heartbeats, ref)) and not slow_workers(heartbeats, ref)


def slow_workers(heartbeats: Heartbeats, ref: str) -> list[str]:
    """Return the ids of ready workers that have neither loaded a version nor reported that they
    cannot.
    """
    ready = _ready(heartbeats, ref)
    return [name for name, one in ready.items() if ref not in one["capacity"] and ref not in one.get("refused", {})]


def has_loaded(heartbeats: Heartbeats, ref: str) -> bool:
    """Return whether at least one ready worker has loaded a version."""
    return any(ref in one["capacity"] for one in _ready(heartbeats, ref).values())


def may_be_loaded(heartbeats: Heartbeats, ref: str) -> bool:
    """Return whether the settings of at least one worker allow a version."""
    return any(may_load(one.get("models", ()), ref) for one in heartbeats.values())


def missing_workers(heartbeats: Heartbeats, ref: str) -> str:
    """Return a sentence for an error message that says why the version `ref` is not loaded yet."""
    if not heartbeats:
        return "no inference worker is running"
    if not may_be_loaded(heartbeats, ref):
        return f"no inference worker that runs may load {ref.partition('@')[0]}: REVERIE_MODELS leaves it out"
    ready = _ready(heartbeats, ref)
    if not ready:
        return "no inference worker is ready: those there are load their models, or stop"
    missing = sum(ref not in one["capacity"] for one in ready.values())
    return f"{missing} of {len(ready)} inference workers have not loaded {ref} yet"


def load_error(heartbeats: Heartbeats, ref: str) -> str:
    """Return the error with which a worker failed to load a version; "" if there is none."""
    return next((one["refused"][ref] for one in heartbeats.values() if ref in one.get("refused", {})), "")


def drain_reason(heartbeats: Heartbeats, ref: str, timeout_s: float) -> str:
    """Return a sentence for the log: which workers are stopped, as they have not loaded `ref`.

    `timeout_s` is the time in seconds that the workers had for loading the version.
    """
    slow, ready = slow_workers(heartbeats, ref), _ready(heartbeats, ref)
    verb = "is" if len(slow) == 1 else "are"
    return (
        f"{len(slow)} of {len(ready)} inference workers had not loaded {ref} after {timeout_s:.0f} s and {verb} "
        f"stopped: {', '.join(slow)}"
    )


def _ready(heartbeats: Heartbeats, ref: str) -> dict[str, Mapping[str, Any]]:
    """Return the heartbeats of the workers in state "ready" that may load a version."""
    able = {name: one for name, one in heartbeats.items() if may_load(one.get("models", ()), ref)}
    return {name: one for name, one in able.items() if one["state"] == "ready"}
