"""Who calls: API keys by the hash of their secret."""

import hashlib
import re
from pathlib import Path


class Keys:
    """Names of callers by the SHA-256 of their key, from a file of `name:hash` lines; no file lets everybody in."""

    def __init__(self, path: Path | None) -> None:
        """Read the file. Raises ValueError for a line of another shape."""
        self._names: dict[str, str] | None = None
        if path is None:
            return
        self._names = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, digest = line.strip().partition(":")
            if not name or not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ValueError(f"line {number} of the key file is not name:sha256-in-hex")
            self._names[digest] = name

    def owner(self, authorization: bytes) -> str | None:
        """The caller's name, empty where keys are not used; None if the key is missing or unknown."""
        if self._names is None:
            return ""
        scheme, _, key = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        return self._names.get(hashlib.sha256(key.strip()).hexdigest())
