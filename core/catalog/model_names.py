"""Match names of models with the patterns of a setting, such as `vae-*, bihm-mnist`."""

from collections.abc import Iterable
from fnmatch import fnmatchcase


def parse_patterns(text: str) -> tuple[str, ...]:
    """Return the patterns in a comma-separated list, sorted; an empty list for an empty text."""
    return tuple(sorted({part for part in map(str.strip, text.split(",")) if part}))


def matches(patterns: Iterable[str], name: str) -> bool:
    """Return whether the name of a model matches one of the patterns; `*` stands for any text."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def may_load(patterns: Iterable[str], ref: str) -> bool:
    """Return whether a worker whose setting `REVERIE_MODELS` has these patterns may load a version.

    Without patterns a worker may load all versions. `ref` is `name@version`.
    """
    chosen = tuple(patterns)
    return not chosen or matches(chosen, ref.partition("@")[0])
