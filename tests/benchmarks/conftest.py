"""Modules of `benchmarks/`, imported as its scripts import them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from tests.benchmarks.modules import Importer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Importer:
    """Return a function that imports a benchmark's module by its name, with one thread for torch.

    Modules are imported when a test requests them, after the tests of `models` are collected.
    """
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
