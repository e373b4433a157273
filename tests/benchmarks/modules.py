"""The type of the fixture `module`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Importer = Callable[[str], Any]
"""Returns a benchmark's module by its name; the modules are scripts without types of their own."""
