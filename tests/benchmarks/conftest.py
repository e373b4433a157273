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
    """Import a module by its name, with one thread for torch, as the scripts have.

    Imported only when a test asks, so that the tests of `models` are collected before.
    """
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
