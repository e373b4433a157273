"""The page of all figures is made of what was measured, and of nothing else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def papers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, imported as late as this so that the tests of `models` are collected before it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("papers")


def test_every_line_can_be_read_or_says_that_it_was_not_measured(
    papers: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without results the page says so, line by line; what is in a card is there all the same."""
    monkeypatch.setattr(papers, "RESULTS", tmp_path)
    lines = [line for line in papers.page() if line.startswith("| ") and "`python" in line]
    assert len(lines) == len(papers.LINES)
    assert re.search(r"\| 8\d\.\d\d nats \|", lines[0])
    assert papers.MISSING in lines[-1]


def test_its_commands_are_there(papers: Any) -> None:
    """Every command on the page names a script of this repository."""
    for line in papers.LINES:
        script = line[3].split()[1]
        assert script == "-m" or (papers.ROOT / script).is_file()
